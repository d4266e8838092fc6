"""Claims of our own, fixed before they were judged: here those about what theory predicts, from study 1's tables; others in `experiments`.

T1: a prediction's replicates are the seeds from whose runs its two measured factors come; the published median's
reading error enters its interval, and is all of T6's, which speaks of published figures alone. T2 and T3 are means over
runs, AlexNet's on the two data sets on which it learns at `reduced`. T5 is about epochs that begin after three
relaxation times, which runs of 150 epochs have; the other epochs are there to lend their spread to a single seed.
"""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd

from rwclib.analysis import claims
from rwclib.analysis.claims import INFINITY, RATIO_MARGIN, Cell, Claim, Comparison, level, ratio
from rwclib.runs import archive
from rwclib.studies import layerwise
from rwclib.studies.extensions import experiments, predicted, runs
from rwclib.studies.extensions.predicted import BATCH_NORM, CIFAR, RUN
from rwclib.studies.layerwise.figures import GROUPS
from rwclib.studies.layerwise.runs import DATASETS
from rwclib.studies.layerwise.two_definitions import READING_ERROR
from rwclib.studies.study import Study

SLOPE = 2 / np.pi
READING = READING_ERROR / 1.96  # standard error of a published median's logarithm
_R, _, _A = GROUPS
_SETS = dict.fromkeys(BATCH_NORM, DATASETS) | {_A: DATASETS[2:]}


def _mean(model: str, quantity: str, group: str = "all", weight: float = 1.0) -> tuple[tuple[float, Cell], ...]:
    """Terms of a mean over data sets."""
    return tuple((weight / len(_SETS[model]), Cell(model, dataset, group, quantity)) for dataset in _SETS[model])


def _level(model: str, quantity: str, low: float, high: float, **settings: object) -> Comparison:
    return Comparison(f"{model}: {quantity}", _mean(model, quantity), low, high, "value", None, **settings)


def _alike(model: str) -> tuple[Comparison, ...]:
    """The factor of every two groups within 10%."""
    return tuple(
        Comparison(f"{model}: factor, {a} / {b}", _mean(model, "factor", a) + _mean(model, "factor", b, -1.0),
                   -RATIO_MARGIN, RATIO_MARGIN, similar=True)
        for b, a in itertools.combinations(GROUPS[model], 2)
    )  # fmt: skip


_OF_THEORY = (
    Claim("T1", "The published medians of the 14 batch-norm groups on CIFAR lie within a factor of 1.5 of the prediction",
          tuple(level(Cell(model, dataset, group, "published / predicted"), f"{model} {dataset}: {group}, published / predicted",
                      -np.log(1.5), np.log(1.5), unit="ratio", error=READING)
                for model in BATCH_NORM for dataset in CIFAR for group in GROUPS[model]), ("-",)),
    Claim("T2", "Mean over median grows with ln N with slope 2/π = 0.64 within its interval",
          tuple(_level(model, "slope", SLOPE, SLOPE, covers=True) for model in GROUPS), ("-",)),
    Claim("T3", "Measured l2 follows the ρ form over batch-norm runs (R² of logs at least 0.85) and not over AlexNet",
          (*(_level(model, "R²", 0.85, INFINITY) for model in BATCH_NORM), _level(_A, "R²", -INFINITY, 0.85)), ("-",)),
    Claim("T4", "The sub-diffusive factor is the same for all depths within 10%",
          tuple(part for model in BATCH_NORM for part in _alike(model)), ("-",)),
    Claim("T5", "In equilibrium (after 3 relaxation times) Eq. 1 does not order ResNet-18's blocks (block4 / block1 within 0.9 to 1.1)",
          tuple(ratio(Cell(_R, dataset, "block4", "settled"), Cell(_R, dataset, "block1", "settled"), low=np.log(0.9), high=np.log(1.1), margin=None)
                for dataset in CIFAR), ("Eq. 1",)),
    Claim("T6", "What orders the published medians on CIFAR is size (block4 / block1 within 0.9 to 1.25 after dividing by 1 + (2/π) ln N)",
          tuple(level(Cell(_R, dataset, "block4 / block1", "published over size"), f"{_R} {dataset}: block4 / block1, published over size",
                      np.log(0.9), np.log(1.25), unit="ratio", exact=True, error=2**0.5 * READING) for dataset in CIFAR),
          ("-",), "figures", profile="paper"),
)  # fmt: skip

CLAIMS = (*_OF_THEORY, *experiments.CLAIMS)


def values(tables: archive.Tables) -> pd.DataFrame:
    """What `claims.details` judges, from study 1's tables and the published medians; ratios as logarithms."""
    rows = predicted.layers(tables)
    covered = rows[rows["model"].isin(BATCH_NORM)]
    fits, paper = predicted.fits(rows), predicted.published(covered)
    parts = [fits.assign(quantity=name, value=fits[column]) for name, column in (("slope", "slope"), ("R²", "r2"))]
    parts += [paper.assign(quantity="published / predicted", value=np.log(paper["published"] / paper["predicted"]))]
    parts += [_medians(covered, "factor", "factor")]
    group = covered["group"].where(covered["settled"], covered["group"] + ", not settled")
    parts += [_medians(covered.assign(group=group), "rwc", "settled").assign(definition="Eq. 1")]
    parts += [_published_over_size().assign(profile="paper", model=_R, quantity="published over size", seed=0)]
    table = pd.concat(parts, ignore_index=True)
    return pd.concat(
        [table.fillna({"group": "all", "definition": "-"})[claims.VALUES], experiments.values()], ignore_index=True
    )


def _medians(rows: pd.DataFrame, column: str, quantity: str) -> pd.DataFrame:
    medians = np.log(rows.groupby([*RUN, "group"])[column].median())
    return medians.rename("value").reset_index().assign(quantity=quantity)


def _published_over_size() -> pd.DataFrame:
    """ln of ResNet-18's published block4 / block1 after division by 1 + (2/π) ln N, N the median size of a group's layers."""
    paper, found = predicted.figures.published().query("model == @_R"), []
    for dataset in CIFAR:
        medians = paper[paper["dataset"] == dataset].groupby("group")["median"].mean()
        over = np.log(medians / (1 + SLOPE * np.log(predicted.sizes(_R, dataset).groupby("group")["size"].median())))
        found.append({"dataset": dataset, "group": "block4 / block1", "value": over["block4"] - over["block1"]})
    return pd.DataFrame(found)


def _why_not_run(claim: Claim, reason: str) -> str:
    if claim in experiments.CLAIMS:
        return "its trainings are not finished"
    return "needs 150 epochs" if claim.id == "T5" else reason


STUDY = Study(
    "extensions", "Our own questions", "", runs, CLAIMS, values, layerwise.runs,
    why_not_run=_why_not_run,
)  # fmt: skip

"""The seven claims of study 3, and how their values are had from its tables.

D1 and D2 are about the share of parameters changed, which the slides do not define: at all, by more than 0.1%, by more than 1%. A
share is a count of all parameters of one training, so it is exact. In the others the replicates are the trainings of one network, data
set and optimizer: initialisations and seeds. A training that has hardly learned is not judged, nor what was retrained from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from rwclib import archive, claims
from rwclib.claims import SHARE_MARGIN, Cell, Claim, Comparison, level, ratio
from rwclib.studies import base, dynamics, scoring

CHANGED = {"changed": "at all", "changed_1e3": "by 0.1%", "changed_1e2": "by 1%"}
CORRELATIONS = ("mean of positive r", "mean r")
CLOSE = 2 * max(d / w1 for kind, _, w1, _, d in dynamics.PUBLISHED if kind == "distort:1e-06")  # twice the slides' largest
ALIKE = 0.9  # "very high" correlation of features
TRAINED_ALIKE = 10  # points of training top-1 between the two trainings of a pair, at most
_LARGE = ("resnet18", "vgg19")
_NAMES = {"sgd": "SGD", "adam": "Adam"}


def _shares(model: str, datasets: Sequence[str], low: float, high: float) -> tuple[Comparison, ...]:
    return tuple(
        level(Cell(model, dataset, f"{init}, {name}", "share changed"), f"{model} {dataset}: {init}, {name}", low, high, exact=True)
        for dataset in datasets for init in dynamics.INITS for name in _NAMES.values()
    )  # fmt: skip


def _each(models: Sequence[str], quantity: str) -> list[tuple[str, Cell, Cell]]:
    """Name of each network and data set, its Adam cell and its SGD cell."""
    return [(f"{model} {dataset}", *(Cell(model, dataset, name, quantity) for name in ("Adam", "SGD")))
            for model in models for dataset in dynamics.DATASETS]  # fmt: skip


def _levels(quantity: str, label: str, low: float, high: float) -> tuple[Comparison, ...]:
    """A level for every network, data set and optimizer."""
    return tuple(
        level(cell, f"{name}: {cell.group}, {label}", low, high)
        for name, *pair in _each(tuple(dynamics.MODELS), quantity)
        for cell in reversed(pair)
    )


def _differences(models: Sequence[str], low: float, high: float, margin: float | None) -> tuple[Comparison, ...]:
    return tuple(
        Comparison(f"{name}: Adam - SGD", ((1.0, adam), (-1.0, sgd)), low, high, "difference", margin)
        for name, adam, sgd in _each(models, "correlation")
    )


CLAIMS = (
    Claim("D1", "ResNet-18 keeps over 60% of its parameters unchanged, whatever the data, optimizer, initialisation",
          _shares("resnet18", dynamics.DATASETS, -1.0, 0.4), tuple(CHANGED.values())),
    Claim("D2a", "CIFAR-10: LeNet changes 100% of its parameters (99.5% or more)", _shares("lenet5", ["cifar10"], 0.995, 2.0), tuple(CHANGED.values())),
    Claim("D2b", "CIFAR-10: VGG-19 changes over 90% of its parameters", _shares("vgg19", ["cifar10"], 0.9, 2.0), tuple(CHANGED.values())),
    Claim("D3", "SGD ends nearer to its start than Adam in the large networks (distance over the norm at the start)",
          tuple(ratio(adam, sgd, f"{name}: Adam / SGD") for name, adam, sgd in _each(_LARGE, "distance")), ("-",), "trainings"),
    Claim("D4", f"Trained alike (within {TRAINED_ALIKE} points), Adam's features correlate more than SGD's in the large networks, and not in LeNet (by less than {SHARE_MARGIN:g})",
          (*_differences(_LARGE, 0.0, 2.0, SHARE_MARGIN), *_differences(["lenet5"], -2.0, SHARE_MARGIN, None)), CORRELATIONS, "pairs"),
    Claim("D5", f"After a 1e-6 distortion retraining usually comes back (in over half of the cases: distance at most {CLOSE:.3f} of the norm, correlation of features {ALIKE:g} or more)",
          _levels("comes back", "share that comes back", 0.5, 2.0), ("-",), "trainings", in_general=True),
    Claim("D6", "After a sign flip retraining ends far away: distance about twice the norm (1.8 to 2.2)",
          _levels("flipped", "distance / norm", 1.8, 2.2), ("-",), "trainings"),
)  # fmt: skip


def judged(found: archive.Tables) -> archive.Tables:
    """The trainings of the grid that have learned (`base.learned`), and what was retrained from them."""
    runs = found.runs.set_index("hash")
    grid = base.only(found, set(runs.index[runs["perturbation"] == "none"]))
    kept = set(base.learned(grid)[0].runs["hash"])
    again = {hash_ for hash_ in runs.index[runs["perturbation"] != "none"] if runs["parent"][hash_] in kept}
    return base.only(found, kept | again)


def positive_r(penultimate: np.ndarray) -> float:
    """Mean of the positive correlations between different features, of (images, features); NaN without any."""
    x = penultimate.astype(np.float64)
    matrix = np.corrcoef(x[:, x.std(0) > 0], rowvar=False)
    above = matrix[np.triu_indices(len(matrix), 1)]
    return float(above[above > 0].mean()) if (above > 0).any() else float("nan")


def pairs(found: archive.Tables) -> pd.DataFrame:
    """The (SGD, Adam) trainings from one start, of each what D3 and D4 compare, and whether they were trained alike.

    Columns: profile, model, dataset, seed (initialisation and seed), group, distance (log), `CORRELATIONS`, untrained (mean r at the
    start), train_top1, alike.
    """
    ends = dynamics.endings(found).query("perturbation == 'none'")
    ends = ends.assign(
        seed=[f"{init.partition(':')[0]} {seed}" for init, seed in zip(ends["init"], ends["seed"], strict=True)],
        group=ends["optimizer"].map(_NAMES), distance=np.log(ends["distance_start"] / ends["norm_start"]), untrained=ends["correlation_start"],
    )  # fmt: skip
    ends["mean r"] = ends["correlation"]
    ends["mean of positive r"] = [positive_r(found.arrays[hash_, "penultimate"]) for hash_ in ends["hash"]]
    keys = ["profile", "model", "dataset", "seed"]
    top1 = ends.groupby(keys)["train_top1"]
    ends["alike"] = top1.transform("max") - top1.transform("min") <= TRAINED_ALIKE
    both = top1.transform("size") == 2
    return ends.loc[both, [*keys, "group", "distance", *CORRELATIONS, "untrained", "train_top1", "alike"]]


def values(found: archive.Tables) -> pd.DataFrame:
    """What every training says, as `rwclib.claims.details` wants it; `found` are the runs that have learned."""
    ends = dynamics.endings(found)
    start = ends["init"].str.partition(":")[0]
    ends = ends.assign(seed=start + " " + ends["seed"].astype(str), group=ends["optimizer"].map(_NAMES))
    trained = ends["perturbation"] == "none"
    shares = ends[trained].assign(quantity="share changed", group=(start + ", " + ends["group"])[trained])
    parts = [shares.assign(definition=name, value=shares[column]) for column, name in CHANGED.items()]
    both = pairs(found)
    parts.append(both.assign(definition="-", quantity="distance", value=both["distance"]))
    alike = both[both["alike"]]
    parts += [alike.assign(definition=name, quantity="correlation", value=alike[name]) for name in CORRELATIONS]
    relative = ends["distance_parent"] / ends["norm_parent"]
    back = ((relative <= CLOSE) & (ends["paired"] >= ALIKE)).astype(float)
    for kind, quantity, value in (("distort:1e-06", "comes back", back), ("flip_sign", "flipped", relative)):
        parts.append(ends.assign(definition="-", quantity=quantity, value=value)[ends["perturbation"] == kind])
    return pd.concat(parts, ignore_index=True)[claims.VALUES]


def details(found: archive.Tables) -> pd.DataFrame:
    """Every comparison of the claims, as `rwclib.claims.details`."""
    kept = judged(complete(found)) if len(found.runs) else found
    return scoring.judge(values(kept) if len(kept.runs) else None, CLAIMS)


def complete(found: archive.Tables) -> archive.Tables:
    """The runs of whole cells alone: all initialisations and optimizers of a profile, network, data set, perturbation and seed.

    A profile that is half trained must not take the place of one that is done.
    """
    kept: set[str] = set()
    there = set(found.runs["hash"])
    for profile, runs in found.runs.groupby("profile"):
        seeds = {"seeds": [int(seed) for seed in runs["seed"].unique()]}
        cells: dict[tuple, set[str]] = {}
        for config in [*dynamics.grid(profile, **seeds), *dynamics.retrainings(profile, **seeds)]:
            cells.setdefault((config.model, config.dataset, config.perturbation, config.seed), set()).add(config.hash)
        kept |= {hash_ for cell in cells.values() if cell <= there for hash_ in cell}
    return base.only(found, kept)


def verdicts(found: archive.Tables, profile: str = "best") -> pd.DataFrame:
    """The scorecard of these tables, as `scoring.verdicts`; its training accuracies are those of the runs judged on."""
    kept = None
    if len(found.runs):
        kept = judged(complete(found))
        kept = base.only(kept, set(kept.runs.loc[kept.runs["perturbation"] == "none", "hash"]))
    table = scoring.verdicts(found, CLAIMS, details(found), profile, kept)
    unlike = (table["claim"] == "D4") & table["reason"].str.startswith("some")
    table.loc[unlike, "reason"] = f"no pair of trainings within {TRAINED_ALIKE} points of each other on some of its data sets"
    return table


def scorecard(results: str | Path | None = None, profile: str = "best") -> pd.DataFrame:
    """The claims on the archive's runs, at one profile or at each that can judge them (`best`)."""
    return verdicts(dynamics.tables(results), profile)

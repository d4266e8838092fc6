"""The seven claims of study 3, and how their values are had from its tables.

D1 and D2 are about the share of parameters changed, which the slides do not define: at all, by more than 0.1%, by more than 1%. A share counts
all parameters of one training, so it is exact. In the others the replicates are the trainings of one network, data set and optimizer.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from rwclib.analysis import claims
from rwclib.analysis.claims import SHARE_MARGIN, Cell, Claim, Comparison, level, ratio
from rwclib.runs import archive
from rwclib.studies.dynamics import figures
from rwclib.studies.dynamics.figures import CORRELATIONS, PUBLISHED, TRAINED_ALIKE
from rwclib.studies.dynamics.runs import DATASETS, INITS, NETWORKS, OPTIMIZER_NAMES, runs
from rwclib.studies.study import INCOMPLETE, Study

CHANGED = {"changed": "at all", "changed_1e3": "by 0.1%", "changed_1e2": "by 1%"}
CLOSE = 2 * max(d / w1 for kind, _, w1, _, d in PUBLISHED if "distort" in kind)  # twice the slides' largest
ALIKE = 0.9  # "very high" correlation of features
_LARGE, _ALL = ("resnet18", "vgg19"), tuple(NETWORKS)


def _shares(model: str, datasets: Sequence[str], low: float, high: float) -> tuple[Comparison, ...]:
    names = [
        (dataset, f"{init}, {name}") for dataset in datasets for init in INITS for name in OPTIMIZER_NAMES.values()
    ]
    cells = [(f"{model} {dataset}: {group}", Cell(model, dataset, group, "share changed")) for dataset, group in names]
    return tuple(level(cell, name, low, high, exact=True) for name, cell in cells)


def _cells(models: Sequence[str], quantity: str) -> list[tuple[str, Cell, Cell]]:
    """Name of each network and data set, its Adam cell and its SGD cell."""
    names = [(model, dataset) for model in models for dataset in DATASETS]
    return [(" ".join(name), Cell(*name, "Adam", quantity), Cell(*name, "SGD", quantity)) for name in names]


def _levels(quantity: str, label: str, low: float, high: float) -> tuple[Comparison, ...]:
    cells = [(name, cell) for name, adam, sgd in _cells(_ALL, quantity) for cell in (sgd, adam)]
    return tuple(level(cell, f"{name}: {cell.group}, {label}", low, high) for name, cell in cells)


def _differences(models: Sequence[str], low: float, high: float, margin: float | None) -> tuple[Comparison, ...]:
    return tuple(Comparison(f"{name}: Adam - SGD", ((1.0, adam), (-1.0, sgd)), low, high, "difference", margin)
                 for name, adam, sgd in _cells(models, "correlation"))  # fmt: skip


CLAIMS = (
    Claim("D1", "ResNet-18 keeps over 60% of its parameters unchanged, whatever the data, optimizer, initialisation",
          _shares("resnet18", DATASETS, -1.0, 0.4), tuple(CHANGED.values())),
    Claim("D2a", "CIFAR-10: LeNet changes 100% of its parameters (99.5% or more)", _shares("lenet5", ["cifar10"], 0.995, 2.0), tuple(CHANGED.values())),
    Claim("D2b", "CIFAR-10: VGG-19 changes over 90% of its parameters", _shares("vgg19", ["cifar10"], 0.9, 2.0), tuple(CHANGED.values())),
    Claim("D3", "SGD ends nearer to its start than Adam in the large networks (distance over the norm at the start)",
          tuple(ratio(adam, sgd, f"{name}: Adam / SGD") for name, adam, sgd in _cells(_LARGE, "distance")), ("-",), "trainings"),
    Claim("D4", f"Trained alike (within {TRAINED_ALIKE} points), Adam's features correlate more than SGD's in the large networks, and not in LeNet (by less than {SHARE_MARGIN:g})",
          (*_differences(_LARGE, 0.0, 2.0, SHARE_MARGIN), *_differences(["lenet5"], -2.0, SHARE_MARGIN, None)), CORRELATIONS, "pairs"),
    Claim("D5", f"After a 1e-6 distortion retraining usually comes back (in over half of the cases: distance at most {CLOSE:.3f} of the norm, correlation of features {ALIKE:g} or more)",
          _levels("comes back", "share that comes back", 0.5, 2.0), ("-",), "trainings", in_general=True),
    Claim("D6", "After a sign flip retraining ends far away: distance about twice the norm (1.8 to 2.2)",
          _levels("flipped", "distance / norm", 1.8, 2.2), ("-",), "trainings"),
)  # fmt: skip


def values(tables: archive.Tables) -> pd.DataFrame:
    """What every training that may be judged says, as `rwclib.analysis.claims.details` wants it."""
    ends, pairs = figures.endings(tables), figures.pairs(tables)
    seed, group = ends["start"] + " " + ends["seed"].astype(str), ends["optimizer"].map(OPTIMIZER_NAMES)
    ends = ends.assign(seed=seed, group=group)
    shares = ends.assign(quantity="share changed", group=ends["start"] + ", " + group)[ends["perturbation"] == "none"]
    parts = [shares.assign(definition=name, value=shares[column]) for column, name in CHANGED.items()]
    parts.append(pairs.assign(definition="-", quantity="distance", value=pairs["distance"]))
    alike = pairs[pairs["alike"]].assign(quantity="correlation")
    parts += [alike.assign(definition=name, value=alike[name]) for name in CORRELATIONS]
    relative = ends["relative_parent"]
    back = ((relative <= CLOSE) & (ends["paired"] >= ALIKE)).astype(float)
    for kind, quantity, value in (("distort:1e-06", "comes back", back), ("flip_sign", "flipped", relative)):
        parts.append(ends.assign(definition="-", quantity=quantity, value=value)[ends["perturbation"] == kind])
    return pd.concat(parts, ignore_index=True)[claims.VALUES]


def why_not_run(claim: Claim, reason: str) -> str:
    """D4 may lack pairs that were trained alike."""
    if (claim.id, reason) == ("D4", INCOMPLETE):
        return f"no pair of trainings within {TRAINED_ALIKE} points of each other on some of its data sets"
    return reason


STUDY = Study(
    "dynamics", "Analysis of Parameter Dynamics (slides)", "", runs, CLAIMS, values,
    candidates=figures.candidates, why_not_run=why_not_run,
)  # fmt: skip

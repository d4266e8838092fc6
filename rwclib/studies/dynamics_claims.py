"""The six claims of study 3, and their scorecard.

D1 and D2 are about the share of weights changed, which the slides do not define: they are judged for weights that differ
from their start at all, by more than 0.1% and by more than 1% of it; each training on its own, with intervals over its
weight tensors where it has one seed. D3 to D6 compare trainings of one network and data set, and draw from these: from
initialisations and seeds, of retrained models from optimizers too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from rwclib import archive, claims
from rwclib.claims import Claim, Comparison, Difference, Group, Level
from rwclib.config import PROFILES
from rwclib.studies import base, dynamics, scoring
from rwclib.weights import WHOLE

CHANGED = {"changed": "at all", "changed_1e3": "by 0.1%", "changed_1e2": "by 1%"}
CLOSE, ALIKE = 0.1, 0.9  # "close": twice the slides' largest distance over norm; "highly correlated"
_LARGE = ("resnet18", "vgg19")


def _shares(model: str, datasets: Sequence[str], low: float, high: float) -> tuple[Level, ...]:
    return tuple(
        Level(a=Group(model, dataset, f"{init}, {optimizer}, share changed"), low=low, high=high, weighted=True)
        for dataset in datasets
        for init in dynamics.INITS
        for optimizer in dynamics.OPTIMIZERS
    )


def _each(models: Sequence[str]) -> list[tuple[str, str]]:
    return [(model, dataset) for model in models for dataset in dynamics.DATASETS]


def _retrained(quantity: str, low: float, high: float) -> tuple[Level, ...]:
    return tuple(
        Level(a=Group(*pair, quantity), low=low, high=high, over="trainings") for pair in _each(tuple(dynamics.MODELS))
    )


def _optimizers(quantity: str, pair: tuple[str, str]) -> tuple[Group, Group]:
    return Group(*pair, f"Adam, {quantity}"), Group(*pair, f"SGD, {quantity}")


CLAIMS = (
    Claim("D1", "ResNet-18 keeps over 60% of its parameters unchanged, whatever the data, optimizer, initialisation",
          _shares("resnet18", dynamics.DATASETS, -1, 0.4)),
    Claim("D2", "CIFAR-10: LeNet changes 100% of its parameters (99.5% or more), VGG-19 over 90%",
          (*_shares("lenet5", ["cifar10"], 0.995, 2), *_shares("vgg19", ["cifar10"], 0.9, 2))),
    Claim("D3", "SGD ends nearer to its start than Adam in the large networks",
          tuple(Comparison(*_optimizers("distance", pair), over="trainings") for pair in _each(_LARGE))),
    Claim("D4", "Adam gives stronger positive feature correlation than SGD in the large networks, not in LeNet",
          tuple(Difference(a=a, b=b, over="trainings", **(
              {"low": -2.0, "high": 0.0} if pair[0] == "lenet5" else {"low": 0.0, "high": 2.0}))
              for pair in _each(tuple(dynamics.MODELS)) for a, b in [_optimizers("correlation", pair)])),
    Claim("D5", f"After a 1e-6 distortion retraining ends close to the old weights (distance under {CLOSE:g} of the norm), "
                f"features highly correlated with the old ({ALIKE:g} or more)",
          (*_retrained("distorted, distance / norm", -1, CLOSE), *_retrained("distorted, features", ALIKE, 2))),
    Claim("D6", "After a sign flip retraining ends far away: distance about twice the norm (1.8 to 2.2)",
          _retrained("flipped, distance / norm", 1.8, 2.2)),
)  # fmt: skip


def _init(init: str) -> str:
    return init.partition(":")[0]


def shares(found: archive.Tables) -> pd.DataFrame:
    """One row per tensor of every training of the grid: the shares of its weights changed at the end, as `rwclib.claims` reads them."""
    runs = found.runs.loc[found.runs["perturbation"] == "none", ["profile", "hash", "init", "optimizer", "epochs"]]
    table = found.extra["snapshots"].merge(runs, on=["profile", "hash"])
    table = table[(table["epoch"] == table["epochs"]) & (table["tensor"] != WHOLE)]
    group = [
        f"{_init(init)}, {optimizer}, share changed"
        for init, optimizer in zip(table["init"], table["optimizer"], strict=True)
    ]
    keys = ["profile", "model", "dataset", "seed", "size", *CHANGED]
    return table[keys].assign(group=group, layer=table["model"] + " " + table["tensor"])


def quantities(found: archive.Tables) -> pd.DataFrame:
    """One row per training and quantity that D3 to D6 compare, as `rwclib.claims` reads them."""
    ends, parts = dynamics.endings(found), []
    ends["seed"] = [f"{_init(init)} {seed}" for init, seed in zip(ends["init"], ends["seed"], strict=True)]
    of_grid = ends[ends["perturbation"] == "none"]
    for optimizer, name in (("sgd", "SGD"), ("adam", "Adam")):
        rows = of_grid[of_grid["optimizer"] == optimizer]
        for column, quantity in (("distance_start", "distance"), ("correlation", "correlation")):
            parts.append(rows.assign(group=f"{name}, {quantity}", value=rows[column]))
    for perturbation, name in (("distort:1e-06", "distorted"), ("flip_sign", "flipped")):
        rows = ends[ends["perturbation"] == perturbation]
        rows = rows.assign(seed=rows["seed"] + " " + rows["optimizer"])
        parts.append(rows.assign(group=f"{name}, distance / norm", value=rows["distance_parent"] / rows["norm_parent"]))
        parts.append(rows.assign(group=f"{name}, features", value=rows["paired"]))
    table = pd.concat(parts, ignore_index=True)
    return table[["profile", "model", "dataset", "seed", "group", "value"]].assign(layer=WHOLE)


def details(found: archive.Tables) -> pd.DataFrame:
    """Every comparison of the claims, as `rwclib.claims.details`; trainings at chance are not judged on."""
    judged, _ = base.learned(found)
    names = list(PROFILES)
    if not len(judged.runs):
        empty = pd.DataFrame(
            columns=["profile", "model", "dataset", "seed", "group", "layer", "value", "size", *CHANGED]
        )
        return pd.concat(
            [
                claims.details(empty, empty, CLAIMS[:2], names, CHANGED),
                claims.details(empty, empty, CLAIMS[2:], names, {"value": "-"}),
            ]
        )
    return pd.concat([
        claims.details(shares(judged), judged.epochs, CLAIMS[:2], names, CHANGED),
        claims.details(quantities(judged), judged.epochs, CLAIMS[2:], names, {"value": "-"}),
    ], ignore_index=True)  # fmt: skip


def verdicts(found: archive.Tables) -> pd.DataFrame:
    """The scorecard of these tables, as `scoring.verdicts`."""
    return scoring.verdicts(found, CLAIMS, parts=details(found))


def scorecard(results: str | Path | None = None, profile: str = "best") -> pd.DataFrame:
    """The claims on the archive's runs of one profile, or of the `best` that has all of a claim's."""
    return verdicts(dynamics.tables(results, profile))

"""The six claims of study 3, and their scorecard.

D1 and D2 are about the share of parameters changed, which the slides do not define: they are judged for parameters that differ
from their start at all, by more than 0.1% and by more than 1% of it; each training on its own, where it has one seed with an
interval over its parameter tensors. D3 to D6 compare trainings of one network and data set, retrained ones also of one
optimizer; their intervals are the spread over initialisations and seeds, not over seeds alone.

A training at chance is not judged on, nor what is retrained from it; what retraining itself makes of a trained model is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from rwclib import archive, claims
from rwclib.claims import Claim
from rwclib.comparisons import Comparison, Difference, Group, Level
from rwclib.config import PROFILES
from rwclib.studies import base, dynamics, scoring
from rwclib.weights import WHOLE

CHANGED = {"changed": "at all", "changed_1e3": "by 0.1%", "changed_1e2": "by 1%"}
CLOSE, ALIKE = 0.1, 0.9  # "close": twice the slides' largest distance over norm; "highly correlated"
_LARGE = ("resnet18", "vgg19")
_NAMES = {"sgd": "SGD", "adam": "Adam"}


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
        Level(a=Group(*pair, f"{optimizer}, {quantity}"), low=low, high=high, over="trainings")
        for pair in _each(tuple(dynamics.MODELS))
        for optimizer in _NAMES.values()
    )


def _correlations(pair: tuple[str, str]) -> tuple[Level, ...]:
    """That Adam's features correlate positively, and more than SGD's."""
    adam, sgd = _optimizers("correlation", pair)
    return Level(a=adam, low=0.0, over="trainings"), Difference(a=adam, b=sgd, over="trainings")


def _optimizers(quantity: str, pair: tuple[str, str]) -> tuple[Group, Group]:
    return Group(*pair, f"Adam, {quantity}"), Group(*pair, f"SGD, {quantity}")


CLAIMS = (
    Claim("D1", "ResNet-18 keeps over 60% of its parameters unchanged, whatever the data, optimizer, initialisation",
          _shares("resnet18", dynamics.DATASETS, -1, 0.4)),
    Claim("D2", "CIFAR-10: LeNet changes 100% of its parameters (99.5% or more), VGG-19 over 90%",
          (*_shares("lenet5", ["cifar10"], 0.995, 2), *_shares("vgg19", ["cifar10"], 0.9, 2))),
    Claim("D3", "SGD ends nearer to its start than Adam in the large networks (distance over the norm at the start)",
          tuple(Comparison(*_optimizers("distance", pair), over="trainings") for pair in _each(_LARGE))),
    Claim("D4", "Adam: positive feature correlation, stronger than SGD's, in the large networks; not stronger in LeNet",
          (*(part for pair in _each(_LARGE) for part in _correlations(pair)),
           *(Difference(a=a, b=b, low=-2.0, high=0.0, over="trainings")
             for pair in _each(["lenet5"]) for a, b in [_optimizers("correlation", pair)]))),
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
    measured = {
        "none": {"distance": ends["distance_start"] / ends["norm_start"], "correlation": ends["correlation"]},
        "distort:1e-06": {"distorted, distance / norm": ends["distance_parent"] / ends["norm_parent"], "distorted, features": ends["paired"]},
        "flip_sign": {"flipped, distance / norm": ends["distance_parent"] / ends["norm_parent"]},
    }  # fmt: skip
    names = ends["optimizer"].map(_NAMES)
    for perturbation, of in measured.items():
        for quantity, values in of.items():
            rows = ends.assign(group=names + f", {quantity}", value=values, layer=WHOLE)
            parts.append(rows[rows["perturbation"] == perturbation])
    table = pd.concat(parts, ignore_index=True)
    return table[["profile", "model", "dataset", "seed", "group", "layer", "value"]]


def judged(found: archive.Tables) -> tuple[archive.Tables, set[tuple[str, str, str]]]:
    """As `base.learned`, by how the trainings of the grid learned; what was retrained goes with its first ancestor."""
    runs = found.runs.set_index("hash")
    grid = base.only(found, set(runs.index[runs["perturbation"] == "none"]))
    learned, at_chance = base.learned(grid)
    kept, parents = set(learned.runs["hash"]), runs["parent"]
    again = {hash_ for hash_ in runs.index[runs["perturbation"] != "none"] if parents[hash_] in kept}
    return base.only(found, kept | again), at_chance


def details(found: archive.Tables) -> pd.DataFrame:
    """Every comparison of the claims, as `rwclib.claims.details`."""
    texts, numbers = ["profile", "model", "dataset", "seed", "group", "layer"], ["value", "size", *CHANGED]
    changed = pd.DataFrame(columns=[*texts, *numbers]).astype(dict.fromkeys(numbers, "float64"))
    of_runs = epochs = changed
    if len(found.runs):
        of, _ = judged(complete(found))
        changed, of_runs, epochs = shares(of), quantities(of), of.epochs
    parts = [(changed, CLAIMS[:2], CHANGED), (of_runs, CLAIMS[2:], {"value": "-"})]
    return pd.concat(
        [claims.details(table, epochs, about, list(PROFILES), names) for table, about, names in parts],
        ignore_index=True,
    )


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


def verdicts(found: archive.Tables) -> pd.DataFrame:
    """The scorecard of these tables, as `scoring.verdicts`; its training accuracies are those of the runs judged on."""
    parts, runs = details(found), found.runs
    tables = []
    for about, perturbations in ((CLAIMS[:4], ["none"]), (CLAIMS[4:], list(dynamics.PERTURBATIONS))):
        rows, of = parts[parts["claim"].isin([claim.id for claim in about])], None
        if len(runs):
            kept, at_chance = judged(complete(found))
            of = base.only(kept, set(runs.loc[runs["perturbation"].isin(perturbations), "hash"])), at_chance
        tables.append(scoring.verdicts(found, about, parts=rows, judged=of))
    return pd.concat(tables, ignore_index=True)


def scorecard(results: str | Path | None = None, profile: str = "best") -> pd.DataFrame:
    """The claims on the archive's runs of one profile, or of the `best` that has all of a claim's."""
    return verdicts(dynamics.tables(results, profile))

"""The eight claims of study 2, and how their values are had. W7's layers are chosen elementwise, so that only Eq. 1 tests it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from rwclib.analysis import claims
from rwclib.analysis.claims import DEFINITIONS, SHARE_MARGIN, Cell, Claim, Comparison, level, ratio, similar
from rwclib.analysis.clustering import least
from rwclib.runs import archive
from rwclib.studies.captions import ACCURACIES
from rwclib.studies.study import Study
from rwclib.studies.weightscale import figures
from rwclib.studies.weightscale.runs import NETWORKS, RESNETS, grid, runs

ONE_CLUSTER = 0.9  # share of two blocks' layers in one cluster, at least, to be "part of the same cluster"
_NET = "efficientnet_b4"


def _depth(dataset: str, low: float, high: float) -> tuple[Comparison, ...]:
    """The rank correlation of depth and change of both ResNets."""
    return tuple(level(Cell(model, dataset, "all", "depth"), f"{model} {dataset}: Spearman of depth and change", low, high, margin=SHARE_MARGIN)
                 for model in RESNETS)  # fmt: skip


def _sets(dataset: str, a: str, b: str, **limits: float | None) -> Comparison:
    """One set of EfficientNet's layers of a primitive above another; `last two` stands against all `other`."""
    quantity = f"{a.split()[-1]}{' ends' if 'last two' in b else ''}"
    return ratio(*(Cell(_NET, dataset, group, quantity) for group in (a, b)), **limits)


CLAIMS = (
    Claim("W1", "ResNet, CIFAR-10: change falls with depth (Spearman over the layers)", _depth("cifar10", -2.0, 0.0)),
    Claim("W2", "ResNet: change falls with depth on CIFAR-10 and rises on CIFAR-100", (*_depth("cifar10", -2.0, 0.0), *_depth("cifar100", 0.0, 2.0))),
    Claim("W3", f"ResNet, SVHN: blocks 3 and 4 in one cluster ({ONE_CLUSTER:.0%} or more of their layers), changing alike (within 10%)",
          tuple(part for model in RESNETS for part in (
              level(Cell(model, "svhn", "all", "cluster"), f"{model} svhn: share in one cluster", ONE_CLUSTER, 2.0),
              similar(Cell(model, "svhn", "block4"), Cell(model, "svhn", "block3"))))),
    Claim("W4", "EfficientNet-B4, CIFAR-10, depthwise: the late third changes least",
          (_sets("cifar10", "early DW", "late DW"), _sets("cifar10", "middle DW", "late DW"))),
    Claim("W5", "EfficientNet-B4, CIFAR-100, pointwise: the late third changes much more than the early one (1.5 times or more)",
          (_sets("cifar100", "late PW", "early PW", low=float(np.log(1.5)), margin=None),)),
    Claim("W6", "EfficientNet-B4, SVHN, depthwise: the last two layers change less than the others", (_sets("svhn", "other DW", "last two DW"),)),
    Claim("W7", "ResNet: layers of outlier clusters spike (peak over median above the other layers'; chosen elementwise, so that only Eq. 1 tests it)",
          tuple(ratio(*(Cell(model, dataset, group, "peak") for group in ("spiking", "other")), f"{model} {dataset}: peak over median, spiking / other")
                for model in RESNETS for dataset in ("cifar10", "cifar100"))),
    Claim("W8", "The four accuracies of each network and data set within 2 points (judged at the published size alone)",
          tuple(level(Cell(model, dataset, kind, "accuracy"), f"{model} {dataset}: {kind.replace('_top', ' top-')} - published", -2.0, 2.0, unit="points")
                for model, settings in NETWORKS.items() for dataset in settings["accuracy"] for kind in ACCURACIES),
          ("-",), profile="paper"),
)  # fmt: skip


def _of_resnet(run: pd.DataFrame, late: pd.DataFrame, metric: str) -> Iterator[tuple[str, str, float]]:
    """Quantity, group and value of one ResNet run; `late` are its rows after the first epoch."""
    dataset = run["dataset"].iloc[0]
    for block, median in late.groupby("group", sort=False)[metric].median().filter(like="block").items():
        yield "change", block, np.log(median)
    medians = late.groupby("depth")[metric].median()
    yield "depth", "all", float(spearmanr(medians.index, medians).statistic)
    curves = late.pivot(index="layer", columns="epoch", values=metric)
    for group, layers in figures.spiking(run, dataset).items():
        if layers:
            yield "peak", group, np.log((curves.loc[layers].max(axis=1) / curves.loc[layers].median(axis=1)).median())
    if dataset == "svhn":
        clean = figures.curves(run, "all", metric)
        inside = clean.index.isin(run.loc[run["group"].isin(["block3", "block4"]), "layer"])
        yield "cluster", "all", np.bincount(least(clean.to_numpy(), 3)[3].labels[inside]).max() / inside.sum()


def _of_efficientnet(late: pd.DataFrame, metric: str) -> Iterator[tuple[str, str, float]]:
    """Quantity, group and value of one EfficientNet run: thirds by depth, and the last two layers against the others."""
    for primitive in ("DW", "PW"):
        rows = late[late["group"] == primitive].set_index("depth")[metric]
        depths = np.unique(rows.index)
        thirds = zip(("early", "middle", "late"), np.array_split(depths, 3), strict=True)
        ends = (("other", depths[:-2]), ("last two", depths[-2:]))
        for quantity, parts in ((primitive, thirds), (f"{primitive} ends", ends)):
            for name, part in parts:
                yield quantity, f"{name} {primitive}", np.log(rows[part].median())


def values(tables: archive.Tables) -> pd.DataFrame:
    """What each run says under both definitions, and its accuracies less the published; as `rwclib.analysis.claims.details` wants it."""
    rows = []
    for key, run in tables.layers.groupby(["profile", "model", "dataset", "seed"], sort=False):
        (profile, model, dataset, seed), late = key, run[run["epoch"] > 1]
        for metric in DEFINITIONS.keys() & set(run):  # the released arrays have one
            measured = _of_resnet(run, late, metric) if model in RESNETS else _of_efficientnet(late, metric)
            here = (profile, DEFINITIONS[metric], model)
            rows += [(*here, quantity, dataset, group, seed, value) for quantity, group, value in measured]
    for row in archive.last_epochs(tables.epochs).itertuples():
        for kind, published in zip(ACCURACIES, NETWORKS[row.model]["accuracy"].get(row.dataset, ()), strict=False):
            key = (row.profile, "-", row.model, "accuracy", row.dataset, kind, row.seed)
            rows.append((*key, getattr(row, kind) - published))
    return pd.DataFrame(rows, columns=claims.VALUES)


STUDY = Study(
    "weightscale", "WeightScale", "https://arxiv.org/abs/2107.07005", runs, CLAIMS, values,
    grid=grid, accuracies=figures.accuracy_table,
)  # fmt: skip

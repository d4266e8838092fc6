"""The eight claims of study 2, and how their values are had from its tables.

W7 is about the layers of outlier clusters: `spiking`, in clusters of at most an eighth of the layers (elementwise curves,
the published k) and moving more than the average layer. Since the elementwise definition chooses them, it all but meets the claim
by itself; only Eq. 1 tests it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from rwclib import archive, claims
from rwclib.claims import DEFINITIONS, SHARE_MARGIN, Cell, Claim, Comparison, level, ratio, similar
from rwclib.clustering import cluster
from rwclib.studies import base, scoring, weightscale

_NET = "efficientnet_b4"
_OUTLIERS = 1 / 8  # of the layers, at most, in an outlier cluster
TOGETHER = 0.9  # share of two blocks' layers in one cluster, at least, to be "part of the same cluster"
MUCH_MORE = float(np.log(1.5))


def _depth(dataset: str, **limits: float) -> tuple[Comparison, ...]:
    """The rank correlation of depth and change of both ResNets."""
    return tuple(
        level(Cell(model, dataset, "all", "depth"), f"{model} {dataset}: Spearman of depth and change", margin=SHARE_MARGIN, **limits)
        for model in weightscale.RESNETS
    )  # fmt: skip


def _above(dataset: str, higher: str, *lower: str, **limits: float) -> tuple[Comparison, ...]:
    """One set of EfficientNet's layers above each of others of the same primitive."""
    quantity = "DW ends" if "two" in lower[0] else higher.split()[-1]
    return tuple(ratio(Cell(_NET, dataset, higher, quantity), Cell(_NET, dataset, other, quantity), **limits) for other in lower)  # fmt: skip


CLAIMS = (
    Claim("W1", "ResNet, CIFAR-10: change falls with depth (Spearman over the layers)", _depth("cifar10", low=-2.0, high=0.0)),
    Claim("W2", "ResNet: change falls with depth on CIFAR-10 and rises on CIFAR-100",
          (*_depth("cifar10", low=-2.0, high=0.0), *_depth("cifar100", low=0.0, high=2.0))),
    Claim("W3", f"ResNet, SVHN: blocks 3 and 4 in one cluster ({TOGETHER:.0%} or more of their layers), changing alike (within 10%)",
          tuple(part for model in weightscale.RESNETS for part in (
              level(Cell(model, "svhn", "all", "cluster"), f"{model} svhn: share in one cluster", TOGETHER, 2.0),
              similar(Cell(model, "svhn", "block4"), Cell(model, "svhn", "block3"))))),
    Claim("W4", "EfficientNet-B4, CIFAR-10, depthwise: the late third changes least",
          tuple(part for third in ("early", "middle") for part in _above("cifar10", f"{third} DW", "late DW"))),
    Claim("W5", "EfficientNet-B4, CIFAR-100, pointwise: the late third changes much more than the early one (1.5 times or more)",
          _above("cifar100", "late PW", "early PW", low=MUCH_MORE, margin=None)),
    Claim("W6", "EfficientNet-B4, SVHN, depthwise: the last two layers change less than the others", _above("svhn", "other DW", "last two DW")),
    Claim("W7", "ResNet: layers of outlier clusters spike (their peak over their median is above the other layers')",
          tuple(ratio(Cell(model, dataset, "spiking", "peak"), Cell(model, dataset, "other", "peak"),
                      f"{model} {dataset}: peak over median, spiking / other")
                for model in weightscale.RESNETS for dataset in ("cifar10", "cifar100"))),
    Claim("W8", "The four accuracies of each network and data set within 2 points (judged at the published size alone)",
          tuple(level(Cell(model, dataset, kind, "accuracy"), f"{model} {dataset}: {kind.replace('_top', ' top-')} - published", -2.0, 2.0, unit="points")
                for model, settings in weightscale.MODELS.items() for dataset in settings["accuracy"] for kind in base.ACCURACIES),
          ("-",), profile="paper"),
)  # fmt: skip


def spiking(run: pd.DataFrame, dataset: str) -> tuple[list[str], list[str]]:
    """The layers of a run's outlier clusters, and all others that are clustered."""
    of = weightscale.panel(run, dataset, "all", "rwc_elementwise")
    means, small = of.curves.mean(axis=1).to_numpy(), np.bincount(of.labels) <= _OUTLIERS * len(of.labels)
    spikes = small[of.labels] & (means > means.mean())
    return list(of.curves.index[spikes]), list(of.curves.index[~spikes])


def _of_resnet(run: pd.DataFrame, late: pd.DataFrame, dataset: str, metric: str) -> Iterator[tuple[str, str, float]]:
    """Quantity, group and value of one ResNet run; `late` are its rows after the first epoch."""
    for group, values in late.groupby("group")[metric]:
        if group.startswith("block"):
            yield "change", group, np.log(values.median())
    medians = late.groupby(["depth", "layer"])[metric].median().droplevel("layer")
    yield "depth", "all", float(spearmanr(medians.index, medians).statistic)
    curves = late.pivot(index="layer", columns="epoch", values=metric)
    peaks = curves.max(axis=1) / curves.median(axis=1)
    for group, layers in zip(("spiking", "other"), spiking(run, dataset), strict=True):
        if layers:
            yield "peak", group, np.log(peaks[layers].median())
    if dataset == "svhn":
        clean = weightscale.curves(run, "all", metric)
        labels = cluster(clean.to_numpy(), 3, n_init=50).labels
        block = run.drop_duplicates("layer").set_index("layer")["group"].loc[clean.index]
        yield "cluster", "all", np.bincount(labels[block.isin(["block3", "block4"])]).max() / block.isin(["block3", "block4"]).sum()


def _of_efficientnet(late: pd.DataFrame, metric: str) -> Iterator[tuple[str, str, float]]:
    """Quantity, group and value of one EfficientNet run: thirds by depth, and the last two depthwise layers."""
    for primitive in ("DW", "PW"):
        rows = late[late["group"] == primitive]
        depths = np.sort(rows["depth"].unique())
        sets = {(primitive, f"{third} {primitive}"): part for third, part in zip(("early", "middle", "late"), np.array_split(depths, 3), strict=True)}
        if primitive == "DW":
            sets |= {("DW ends", "other DW"): depths[:-2], ("DW ends", "last two DW"): depths[-2:]}
        for (quantity, group), part in sets.items():
            yield quantity, group, np.log(rows.loc[rows["depth"].isin(part), metric].median())


def values(found: archive.Tables) -> pd.DataFrame:
    """What each run says under both definitions, and its accuracies less the published; as `rwclib.claims.details` wants it."""
    rows = []
    for (profile, model, dataset, seed), run in found.layers.groupby(["profile", "model", "dataset", "seed"], sort=False):
        late = run[run["epoch"] > 1]
        for metric, definition in DEFINITIONS.items():
            if metric in run:  # the released arrays have one definition
                each = _of_resnet(run, late, dataset, metric) if model in weightscale.RESNETS else _of_efficientnet(late, metric)
                rows += [(profile, definition, model, quantity, dataset, group, seed, value) for quantity, group, value in each]
    for row in archive.last_epochs(found.epochs).to_dict("records") if len(found.epochs) else ():
        published = weightscale.MODELS[row["model"]]["accuracy"].get(row["dataset"], (np.nan,) * 4)
        rows += [(row["profile"], "-", row["model"], "accuracy", row["dataset"], kind, row["seed"], row[kind] - value)
                 for kind, value in zip(base.ACCURACIES, published, strict=True)]  # fmt: skip
    return pd.DataFrame(rows, columns=claims.VALUES)


def details(found: archive.Tables, models: Sequence[str] = tuple(weightscale.MODELS)) -> pd.DataFrame:
    """Every comparison of the claims, as far as they speak of `models` alone; as `scoring.details`."""
    return scoring.details(found, claims.about(CLAIMS, models), values)


def verdicts(
    found: archive.Tables, models: Sequence[str] = tuple(weightscale.MODELS), profile: str = "best"
) -> pd.DataFrame:
    """The scorecard of these tables, as `scoring.verdicts`."""
    return scoring.verdicts(found, claims.about(CLAIMS, models), details(found, models), profile)


def released(layers: pd.DataFrame) -> pd.DataFrame:
    """The claims judged on the released arrays: claim, comparison, effect, verdict.

    The paper's sentences are about these very runs, so that there is nothing to generalise from and no interval.

    Args:
        layers: of one or several arrays, as `weightscale_release.tidy` gives them.
    """
    none = pd.DataFrame()
    here = set(layers[["model", "dataset"]].itertuples(index=False, name=None))
    about = [claim for claim in claims.about(CLAIMS, ["resnet34", _NET]) if claim.profile is None and claim.runs <= here]
    about = scoring.under(about, {"": "elementwise"})
    table = claims.details(values(archive.Tables(none, layers, none)), about, ["released"], {"released": claims.NO_SPREAD})
    return table[["claim", "comparison", "effect", "verdict"]]


def scorecard(results: str | Path | None = None, profile: str = "best") -> pd.DataFrame:
    """The claims under both definitions on the archive's runs, at one profile or at each that can judge them (`best`)."""
    return verdicts(weightscale.tables(results), profile=profile)

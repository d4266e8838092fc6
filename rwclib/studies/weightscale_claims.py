"""The eight claims of study 2, and their scorecard.

W7 needs the layers of outlier clusters and those around them. Of each run they are added to the tables as groups of
their own: `spiking`, the layers in clusters of at most an eighth of the layers (elementwise curves, the published k) that
move more than the average layer; and `surrounding`, other layers at most three places away. Chosen by the elementwise
definition, they all but meet the claim under it; Eq. 1 is the test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from rwclib import archive, claims
from rwclib.claims import Claim
from rwclib.comparisons import Accuracy, Comparison, Group
from rwclib.config import PROFILES
from rwclib.studies import base, scoring, weightscale

_EFFICIENTNET = "efficientnet_b4"
_OUTLIERS, _AROUND = 1 / 8, 3


def _higher(model: str, dataset: str, a: tuple[str, str], *others: tuple[str, str]) -> tuple[Comparison, ...]:
    """(group, third) `a` above each of `others`."""
    return tuple(Comparison(Group(model, dataset, *a), Group(model, dataset, *b)) for b in others)


_FIRST, _LAST = ("block1", ""), ("block4", "")

CLAIMS = (
    Claim(
        "W1", "ResNet, CIFAR-10: later layers change less than earlier ones (block4 < block1)",
        tuple(part for model in weightscale.RESNETS for part in _higher(model, "cifar10", _FIRST, _LAST)),
    ),
    Claim(
        "W2", "ResNet: CIFAR-10's order is turned round on CIFAR-100, where change rises with depth",
        tuple(
            part
            for model in weightscale.RESNETS
            for part in (*_higher(model, "cifar10", _FIRST, _LAST), *_higher(model, "cifar100", _LAST, _FIRST))
        ),
    ),
    Claim(
        "W3", "ResNet, SVHN: blocks 3 and 4 change alike (ratio 0.9 to 1.1)",
        tuple(Comparison(Group(model, "svhn", "block4"), Group(model, "svhn", "block3"), 0.9, 1.1) for model in weightscale.RESNETS),
    ),
    Claim(
        "W4", "EfficientNet-B4, CIFAR-10, depthwise: the late third changes least",
        tuple(p for third in ("early", "middle") for p in _higher(_EFFICIENTNET, "cifar10", ("DW", third), ("DW", "late"))),
    ),
    Claim(
        "W5", "EfficientNet-B4, CIFAR-100, pointwise: the late third changes most",
        _higher(_EFFICIENTNET, "cifar100", ("PW", "late"), ("PW", "early"), ("PW", "middle")),
    ),
    Claim(
        "W6", "EfficientNet-B4, SVHN, depthwise: the late third changes least",
        tuple(p for third in ("early", "middle") for p in _higher(_EFFICIENTNET, "svhn", ("DW", third), ("DW", "late"))),
    ),
    Claim(
        "W7", "ResNet: layers of outlier clusters change more than those around them",
        tuple(
            part
            for model in weightscale.RESNETS
            for dataset in ("cifar10", "cifar100")
            for part in _higher(model, dataset, ("spiking", ""), ("surrounding", ""))
        ),
    ),
    Claim(
        "W8", "The four accuracies of each network and data set within 2 points (judged at the published size alone)",
        tuple(
            Accuracy(model, dataset, published, kind=kind)
            for model, settings in weightscale.MODELS.items()
            for dataset, values in settings["accuracy"].items()
            for kind, published in zip(base.ACCURACIES, values, strict=True)
        ),
        profile="paper",
    ),
)  # fmt: skip


def spiking(layers: pd.DataFrame) -> pd.DataFrame:
    """The rows of `spiking` and `surrounding` layers of the ResNet runs in a tidy table, under these names as groups."""
    parts = [layers.iloc[:0]]
    keys = ["profile", "model", "dataset", "seed"]
    for (_, model, dataset, _), run in layers.groupby(keys, sort=False):
        if model not in weightscale.RESNETS:
            continue
        of = weightscale.panel(run, dataset, "all", "rwc_elementwise")
        means, small = of.curves.mean(axis=1).to_numpy(), np.bincount(of.labels) <= _OUTLIERS * len(of.labels)
        spikes = small[of.labels] & (means > means.mean())
        near = np.convolve(spikes, np.ones(2 * _AROUND + 1), "same") > 0
        for name, chosen in (("spiking", spikes), ("surrounding", near & ~spikes)):
            parts.append(run[run["layer"].isin(of.curves.index[chosen])].assign(group=name))
    return pd.concat(parts, ignore_index=True)


def _with_spiking(found: archive.Tables) -> archive.Tables:
    layers = pd.concat([found.layers, spiking(found.layers)], ignore_index=True) if len(found.layers) else found.layers
    return archive.Tables(found.runs, layers, found.epochs)


def details(found: archive.Tables, models: Sequence[str] = tuple(weightscale.MODELS)) -> pd.DataFrame:
    """Every comparison of the claims, as far as they speak of `models` alone; as `scoring.details`."""
    return scoring.details(_with_spiking(found), claims.about(CLAIMS, models))


def verdicts(
    found: archive.Tables,
    models: Sequence[str] = tuple(weightscale.MODELS),
    metrics: Mapping[str, str] = claims.DEFINITIONS,
) -> pd.DataFrame:
    """The scorecard of these tables, as `scoring.verdicts`."""
    return scoring.verdicts(_with_spiking(found), claims.about(CLAIMS, models), metrics)


def released(layers: pd.DataFrame) -> pd.DataFrame:
    """The claims judged on the released arrays themselves: claim, comparison, effect, low, high, verdict.

    Args:
        layers: of one or several arrays, as `weightscale_release.tidy` gives them; elementwise values, one seed, so that
            intervals are over layers.
    """
    layers = pd.concat([layers, spiking(layers)], ignore_index=True)
    about = [claim for claim in claims.about(CLAIMS, ["resnet34", _EFFICIENTNET]) if claim.profile is None]
    here = set(layers[["model", "dataset"]].itertuples(index=False, name=None))
    about = [claim for claim in about if claim.runs <= here]
    names = {"rwc_elementwise": "elementwise"}
    table = claims.details(layers, pd.DataFrame(columns=["profile"]), about, [*PROFILES, "released"], names)
    return table[["claim", "comparison", "effect", "low", "high", "verdict"]]


def scorecard(results: str | Path | None = None, profile: str = "best") -> pd.DataFrame:
    """The claims under both definitions on the archive's runs of one profile, or of the `best` that has all of a claim's."""
    return verdicts(weightscale.tables(results, profile))

"""The seventeen claims of study 1, and how their values are had from its tables."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from rwclib import archive, claims
from rwclib.claims import DEFINITIONS, Cell, Claim, Comparison, farther, level, ratio, similar
from rwclib.studies import layerwise, scoring

GROUPS = {
    "resnet18": ("block1", "block2", "block3", "block4"),
    "vgg19_bn": ("early", "middle", "late"),
    "alexnet": ("early", "middle", "late"),
}
SIMPLER = ("cifar10", "mnist")  # "comparatively simpler tasks like CIFAR-10 and MNIST"
_READING_ERROR = 0.1  # half the 95% interval of a median read off a published figure


def _above(model: str, dataset: str, higher: str, *lower: str) -> tuple[Comparison, ...]:
    """Group `higher` above each of `lower`."""
    return tuple(ratio(Cell(model, dataset, higher), Cell(model, dataset, other)) for other in lower)


def _rising(model: str, *datasets: str) -> tuple[Comparison, ...]:
    """Every group above the one before."""
    pairs = itertools.pairwise(GROUPS[model])
    return tuple(part for a, b in pairs for dataset in datasets for part in _above(model, dataset, b, a))


def _across(model: str, higher: str, lower: str) -> tuple[Comparison, ...]:
    """Every group on data set `higher` above the same on `lower`."""
    return tuple(ratio(Cell(model, higher, group), Cell(model, lower, group)) for group in GROUPS[model])


def _farther(model: str, a: str, b: str, far: str, near: str) -> Comparison:
    """The ratio of two groups farther from 1 on data set `far` than on `near`."""
    (there,), (here,) = _above(model, far, a, b), _above(model, near, a, b)
    return farther(there, here, f"{model}: |{a} / {b}| on {far} over {near}")


_R, _V, _A = GROUPS

CLAIMS = (
    Claim("L1", "ResNet-18, CIFAR-10: block1 < block2 < block3", _rising(_R, "cifar10")[:2]),
    Claim(
        "L2", "ResNet-18, CIFAR-10: block3 and block4 similar (within 10%), in contrast to CIFAR-100",
        (similar(Cell(_R, "cifar10", "block4"), Cell(_R, "cifar10", "block3")), _farther(_R, "block4", "block3", "cifar100", "cifar10")),
    ),
    Claim("L3", "ResNet-18, CIFAR-100: block1 < block2 < block3 < block4", _rising(_R, "cifar100")),
    Claim(
        "L4", "ResNet-18, MNIST: blocks 1 and 2 < block4 < block3",
        (*_above(_R, "mnist", "block3", "block1", "block2", "block4"), *_above(_R, "mnist", "block4", "block1", "block2")),
    ),
    Claim("L5", "ResNet-18, Fashion-MNIST: blocks 1, 2 and 4 < block3", _above(_R, "fashion_mnist", "block3", "block1", "block2", "block4")),
    Claim(
        "L6", "In general, MNIST below Fashion-MNIST across the groups of ResNet-18 and VGG-19",
        tuple(part for model in (_R, _V) for part in _across(model, "fashion_mnist", "mnist")), in_general=True,
    ),
    Claim("L7", "VGG-19, CIFAR-10: early < late < middle", (*_above(_V, "cifar10", "middle", "early", "late"), *_above(_V, "cifar10", "late", "early"))),
    Claim("L8", "VGG-19: CIFAR-100 above CIFAR-10 in every group", _across(_V, "cifar100", "cifar10")),
    Claim(
        "L9", "VGG-19, CIFAR-100: early < middle and late; late / middle nearer to 1 than on CIFAR-10",
        (*_above(_V, "cifar100", "middle", "early"), *_above(_V, "cifar100", "late", "early"), _farther(_V, "late", "middle", "cifar10", "cifar100")),
    ),
    Claim(
        "L10", "VGG-19, MNIST and Fashion-MNIST: late < early < middle",
        tuple(part for dataset in ("mnist", "fashion_mnist") for a, b in (("middle", "early"), ("early", "late")) for part in _above(_V, dataset, a, b)),
    ),
    Claim("L11", "AlexNet, CIFAR-10: early and late < middle", _above(_A, "cifar10", "middle", "early", "late")),
    Claim("L12", "AlexNet, CIFAR-100: early < middle < late", _rising(_A, "cifar100")),
    Claim("L13", "AlexNet, MNIST and Fashion-MNIST: early < middle < late", _rising(_A, "mnist", "fashion_mnist")),
    Claim(
        "L14", "Conclusion: in general, late above early across networks and data sets",
        tuple(part for model, of in GROUPS.items() for dataset in layerwise.DATASETS for part in _above(model, dataset, of[-1], of[0])),
        in_general=True,
    ),
    Claim(
        "L15", "Conclusion: on CIFAR-100 late above early and middle, every network",
        tuple(part for model, of in GROUPS.items() for part in _above(model, "cifar100", of[-1], *of[:-1])),
    ),
    Claim(
        "L16", "The twelve test accuracies within 2 points (judged at the published size alone)",
        tuple(
            level(Cell(model, dataset, "test top-1", "accuracy"), f"{model} {dataset}: test top-1 - published", -2.0, 2.0, unit="points")
            for model, settings in layerwise.MODELS.items()
            for dataset in settings["top1"]
        ),
        ("-",), profile="paper",
    ),
    Claim(
        "L17", "Conclusion: on simpler tasks (CIFAR-10, MNIST) late below middle, every network",
        tuple(part for model, of in GROUPS.items() for dataset in SIMPLER for part in _above(model, dataset, *of[-2:])),
    ),
)  # fmt: skip


def values(found: archive.Tables, metrics: Mapping[str, str] = DEFINITIONS, statistic: str = "median") -> pd.DataFrame:
    """Logarithms of each group's median over layers and drawn epochs, and accuracies less the published; as `claims.details`.

    With `statistic="mean"` means of the finite values, which notebook 04 shows beside.
    """
    layers, keys = layerwise.drawn(found.layers), ["profile", "model", "dataset", "group", "seed"]
    layers = layers[[group in GROUPS.get(model, ()) for model, group in zip(layers["model"], layers["group"], strict=True)]]
    if statistic == "mean":
        layers = layers.replace(float("inf"), np.nan)
    center = layers.groupby(keys, sort=False)[list(metrics)].agg(statistic).rename(columns=metrics)
    change = np.log(center).melt(var_name="definition", ignore_index=False).reset_index().assign(quantity="change")
    last = archive.last_epochs(found.epochs)
    published = [layerwise.MODELS[model]["top1"].get(on, np.nan) for model, on in zip(last["model"], last["dataset"], strict=True)]
    top1 = last.assign(definition="-", quantity="accuracy", group="test top-1", value=last["test_top1"] - published)
    return pd.concat([change, top1])[claims.VALUES]  # fmt: skip


def details(
    found: archive.Tables,
    models: Sequence[str] = tuple(GROUPS),
    metrics: Mapping[str, str] = DEFINITIONS,
    statistic: str = "median",
) -> pd.DataFrame:
    """Every comparison of the claims, as far as they speak of `models` alone; as `scoring.details`."""
    about = scoring.under(claims.about(CLAIMS, models), metrics)
    return scoring.details(found, about, lambda of: values(of, metrics, statistic))


def verdicts(
    found: archive.Tables,
    models: Sequence[str] = tuple(GROUPS),
    metrics: Mapping[str, str] = DEFINITIONS,
    profile: str = "best",
) -> pd.DataFrame:
    """The scorecard of these tables, as `scoring.verdicts`."""
    about = scoring.under(claims.about(CLAIMS, models), metrics)
    return scoring.verdicts(found, about, details(found, models, metrics), profile)


def published_details() -> pd.DataFrame:
    """Every comparison judged by the published figures' medians (elementwise values) with their reading error; as `claims.details`."""
    medians = layerwise.published().groupby(["model", "dataset", "group"])["median"].mean().reset_index()
    table = medians.assign(
        profile="published", definition="published", quantity="change", seed=0, value=np.log(medians["median"])
    )
    error, free = (_READING_ERROR / 1.96) ** 2, float("inf")
    about = [claim for claim in scoring.under(CLAIMS, {"": "published"}) if claim.id != "L16"]
    spread = claims.Spread(error, free, error, free, "reading error")
    return claims.details(table[claims.VALUES], about, ["published"], {"published": spread})


def scorecard(results: str | Path | None = None, profile: str = "best") -> pd.DataFrame:
    """The claims under both definitions on the archive's runs, at one profile or at each that can judge them (`best`)."""
    return verdicts(layerwise.tables(results), profile=profile)

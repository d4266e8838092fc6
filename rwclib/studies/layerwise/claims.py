"""The seventeen claims of study 1, and how their values are had from its tables."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from rwclib.analysis import claims
from rwclib.analysis.claims import DEFINITIONS, Cell, Claim, Comparison, farther, level, ratio, similar
from rwclib.runs import archive
from rwclib.studies.layerwise import figures
from rwclib.studies.layerwise.figures import GROUPS
from rwclib.studies.layerwise.runs import DATASETS, NETWORKS, runs
from rwclib.studies.study import Study

SIMPLER = ("cifar10", "mnist")  # "comparatively simpler tasks like CIFAR-10 and MNIST"
_R, _V, _A = GROUPS


def _orders(model: str, dataset: str, *pairs: str) -> tuple[Comparison, ...]:
    """Of each pair `a / b`, group a above group b."""
    return tuple(ratio(*(Cell(model, dataset, group) for group in pair.split(" / "))) for pair in pairs)


def _across(model: str, higher: str, lower: str) -> tuple[Comparison, ...]:
    """Every group on data set `higher` above the same on `lower`."""
    return tuple(ratio(Cell(model, higher, group), Cell(model, lower, group)) for group in GROUPS[model])


def _farther(model: str, pair: str, far: str, near: str) -> Comparison:
    """The ratio of a pair of groups farther from 1 on data set `far` than on `near`."""
    return farther(
        *_orders(model, far, pair),
        *_orders(model, near, pair),
        f"{model}: distance of {pair} from 1, {far} over {near}",
    )


CLAIMS = (
    Claim("L1", "ResNet-18, CIFAR-10: block1 < block2 < block3", _orders(_R, "cifar10", "block2 / block1", "block3 / block2")),
    Claim("L2", "ResNet-18, CIFAR-10: block3 and block4 similar (within 10%), in contrast to CIFAR-100",
          (similar(Cell(_R, "cifar10", "block4"), Cell(_R, "cifar10", "block3")), _farther(_R, "block4 / block3", "cifar100", "cifar10"))),
    Claim("L3", "ResNet-18, CIFAR-100: block1 < block2 < block3 < block4",
          _orders(_R, "cifar100", "block2 / block1", "block3 / block2", "block4 / block3")),
    Claim("L4", "ResNet-18, MNIST: blocks 1 and 2 < block4 < block3",
          _orders(_R, "mnist", "block3 / block1", "block3 / block2", "block3 / block4", "block4 / block1", "block4 / block2")),
    Claim("L5", "ResNet-18, Fashion-MNIST: blocks 1, 2 and 4 < block3",
          _orders(_R, "fashion_mnist", "block3 / block1", "block3 / block2", "block3 / block4")),
    Claim("L6", "In general, MNIST below Fashion-MNIST across the groups of ResNet-18 and VGG-19",
          (*_across(_R, "fashion_mnist", "mnist"), *_across(_V, "fashion_mnist", "mnist")), in_general=True),
    Claim("L7", "VGG-19, CIFAR-10: early < late < middle", _orders(_V, "cifar10", "middle / early", "middle / late", "late / early")),
    Claim("L8", "VGG-19: CIFAR-100 above CIFAR-10 in every group", _across(_V, "cifar100", "cifar10")),
    Claim("L9", "VGG-19, CIFAR-100: early < middle and late; late / middle nearer to 1 than on CIFAR-10",
          (*_orders(_V, "cifar100", "middle / early", "late / early"), _farther(_V, "late / middle", "cifar10", "cifar100"))),
    Claim("L10", "VGG-19, MNIST and Fashion-MNIST: late < early < middle",
          tuple(part for dataset in ("mnist", "fashion_mnist") for part in _orders(_V, dataset, "middle / early", "early / late"))),
    Claim("L11", "AlexNet, CIFAR-10: early and late < middle", _orders(_A, "cifar10", "middle / early", "middle / late")),
    Claim("L12", "AlexNet, CIFAR-100: early < middle < late", _orders(_A, "cifar100", "middle / early", "late / middle")),
    Claim("L13", "AlexNet, MNIST and Fashion-MNIST: early < middle < late",
          tuple(part for pair in ("middle / early", "late / middle") for dataset in ("mnist", "fashion_mnist") for part in _orders(_A, dataset, pair))),
    Claim("L14", "Conclusion: in general, late above early across networks and data sets",
          tuple(part for model, groups in GROUPS.items() for dataset in DATASETS for part in _orders(model, dataset, f"{groups[-1]} / {groups[0]}")), in_general=True),
    Claim("L15", "Conclusion: on CIFAR-100 late above early and middle, every network",
          tuple(part for model, groups in GROUPS.items() for lower in groups[:-1] for part in _orders(model, "cifar100", f"{groups[-1]} / {lower}"))),
    Claim("L16", "The twelve test accuracies within 2 points (judged at the published size alone)",
          tuple(level(Cell(model, dataset, "test top-1", "accuracy"), f"{model} {dataset}: test top-1 - published", -2.0, 2.0, unit="points")
                for model, settings in NETWORKS.items() for dataset in settings["top1"]), ("-",), profile="paper"),
    Claim("L17", "Conclusion: on simpler tasks (CIFAR-10, MNIST) late below middle, every network",
          tuple(part for model, groups in GROUPS.items() for dataset in SIMPLER for part in _orders(model, dataset, f"{groups[-2]} / {groups[-1]}"))),
)  # fmt: skip


def values(tables: archive.Tables, metrics: Mapping[str, str] = DEFINITIONS, statistic: str = "median") -> pd.DataFrame:
    """Logarithms of `figures.run_medians`, and accuracies less the published; as `claims.details`."""
    change = figures.run_medians(tables.layers, metrics, statistic)
    change = change.assign(quantity="change", value=np.log(change["value"]))
    last = archive.last_epochs(tables.epochs)
    published = [NETWORKS[row.model]["top1"].get(row.dataset, np.nan) for row in last.itertuples()]
    top1 = last.assign(definition="-", quantity="accuracy", group="test top-1", value=last["test_top1"] - published)
    return pd.concat([change, top1])[claims.VALUES]


STUDY = Study(
    "layerwise", "Layer-wise weight change", "https://arxiv.org/abs/2011.06735", runs, CLAIMS, values,
    accuracies=figures.accuracy_table,
)  # fmt: skip

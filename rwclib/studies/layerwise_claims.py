"""The sixteen claims of study 1, and their scorecard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from rwclib import archive, claims, data
from rwclib.claims import Claim, rising
from rwclib.comparisons import Accuracy, Comparison, Group, Nearer
from rwclib.studies import layerwise, scoring

_EARLY_TO_LATE = {
    "resnet18": ("block1", "block2", "block3", "block4"),
    "vgg19_bn": ("early", "middle", "late"),
    "alexnet": ("early", "middle", "late"),
}


def _above(model: str, dataset: str, higher: str, *lower: str) -> tuple[Comparison, ...]:
    """Group `higher` above each of `lower`."""
    return tuple(Comparison(Group(model, dataset, higher), Group(model, dataset, other)) for other in lower)


CLAIMS = (
    rising("L1", "ResNet-18, CIFAR-10: block1 < block2 < block3", "resnet18", "cifar10", "block1", "block2", "block3"),
    Claim(
        "L2", "ResNet-18, CIFAR-10: block3 and block4 similar (ratio 0.9 to 1.1)",
        (Comparison(Group("resnet18", "cifar10", "block4"), Group("resnet18", "cifar10", "block3"), 0.9, 1.1),),
    ),
    rising("L3", "ResNet-18, CIFAR-100: block1 < block2 < block3 < block4", "resnet18", "cifar100", *_EARLY_TO_LATE["resnet18"]),
    *(
        Claim(
            claim_id, f"ResNet-18, {data.get(dataset).title}: blocks 1, 2 and 4 < block3",
            _above("resnet18", dataset, "block3", "block1", "block2", "block4"),
        )
        for claim_id, dataset in (("L4", "mnist"), ("L5", "fashion_mnist"))
    ),
    Claim(
        "L6", "ResNet-18 and VGG-19: MNIST below Fashion-MNIST in every group",
        tuple(
            Comparison(Group(model, "fashion_mnist", group), Group(model, "mnist", group))
            for model in ("resnet18", "vgg19_bn")
            for group in _EARLY_TO_LATE[model]
        ),
    ),
    Claim("L7", "VGG-19, CIFAR-10: early and late < middle", _above("vgg19_bn", "cifar10", "middle", "early", "late")),
    Claim(
        "L8", "VGG-19: CIFAR-100 above CIFAR-10 in every group",
        tuple(
            Comparison(Group("vgg19_bn", "cifar100", group), Group("vgg19_bn", "cifar10", group))
            for group in _EARLY_TO_LATE["vgg19_bn"]
        ),
    ),
    Claim(
        "L9", "VGG-19, CIFAR-100: early < middle and late; late / middle nearer to 1 than on CIFAR-10",
        (
            *_above("vgg19_bn", "cifar100", "middle", "early"),
            *_above("vgg19_bn", "cifar100", "late", "early"),
            Nearer(*(Group("vgg19_bn", d, g) for d, g in (("cifar100", "late"), ("cifar100", "middle"))),
                   c=Group("vgg19_bn", "cifar10", "late"), d=Group("vgg19_bn", "cifar10", "middle")),
        ),
    ),
    Claim(
        "L10", "VGG-19, MNIST and Fashion-MNIST: late < early < middle",
        tuple(
            comparison
            for dataset in ("mnist", "fashion_mnist")
            for comparison in (*_above("vgg19_bn", dataset, "middle", "early"), *_above("vgg19_bn", dataset, "early", "late"))
        ),
    ),
    Claim("L11", "AlexNet, CIFAR-10: early and late < middle", _above("alexnet", "cifar10", "middle", "early", "late")),
    rising("L12", "AlexNet, CIFAR-100: early < middle < late", "alexnet", "cifar100", "early", "middle", "late"),
    Claim(
        "L13", "AlexNet, MNIST and Fashion-MNIST: early < middle < late",
        tuple(
            comparison
            for dataset in ("mnist", "fashion_mnist")
            for comparison in rising("", "", "alexnet", dataset, "early", "middle", "late").comparisons
        ),
    ),
    Claim(
        "L14", "Conclusion: late above early, every network and data set",
        tuple(
            comparison
            for model, groups in _EARLY_TO_LATE.items()
            for dataset in layerwise.DATASETS
            for comparison in _above(model, dataset, groups[-1], groups[0])
        ),
    ),
    Claim(
        "L15", "Conclusion: on CIFAR-100 late above early and middle, every network",
        tuple(
            comparison
            for model, groups in _EARLY_TO_LATE.items()
            for comparison in _above(model, "cifar100", groups[-1], *groups[:-1])
        ),
    ),
    Claim(
        "L16", "The twelve test accuracies within 2 points (judged at the published size alone)",
        tuple(
            Accuracy(model, dataset, published)
            for model, settings in layerwise.MODELS.items()
            for dataset, published in settings["top1"].items()
        ),
        profile="paper",
    ),
)  # fmt: skip


def details(
    found: archive.Tables,
    models: Sequence[str] = tuple(layerwise.MODELS),
    metrics: Mapping[str, str] = claims.DEFINITIONS,
) -> pd.DataFrame:
    """Every comparison of the claims, as far as they speak of `models` alone; as `scoring.details`."""
    return scoring.details(found, claims.about(CLAIMS, models), metrics)


def verdicts(
    found: archive.Tables,
    models: Sequence[str] = tuple(layerwise.MODELS),
    metrics: Mapping[str, str] = claims.DEFINITIONS,
) -> pd.DataFrame:
    """The scorecard of these tables, as `scoring.verdicts`."""
    return scoring.verdicts(found, claims.about(CLAIMS, models), metrics)


def published_details() -> pd.DataFrame:
    """Every comparison judged by the published figures' medians (elementwise values): claim, comparison, effect, verdict."""
    table = layerwise.published().groupby(["model", "dataset", "group"])["median"].mean()
    medians = {Group(*key): value for key, value in table.items()}
    rows = [
        (claim.id, claim.label(part), *claims.of_medians(part, medians))
        for claim in CLAIMS
        for part in claim.comparisons
    ]
    return pd.DataFrame(rows, columns=["claim", "comparison", "effect", "verdict"])


def scorecard(results: str | Path | None = None, profile: str = "best") -> pd.DataFrame:
    """The claims under both definitions on the archive's runs of one profile, or of the `best` that has all of a claim's."""
    return verdicts(layerwise.tables(results, profile))

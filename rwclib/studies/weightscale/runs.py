"""The runs of study 2.

The text names a ResNet-50, the released code builds a ResNet-34: both are run. What the paper leaves open is as in study 1
(augmentation, normalisation).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from rwclib.errors import ConfigError
from rwclib.runs import data
from rwclib.runs.config import RunConfig, check_profile

Some = Sequence | None  # of models, data sets or seeds: None for the study's own

STUDY = "weightscale"
DATASETS = ("cifar10", "cifar100", "svhn")
SEEDS = (0, 42)
EPOCHS, DEPTHWISE = 25, 32  # published, and in EfficientNet-B4: of width 64, below it the depth is EfficientNet-B0's
RESNETS = ("resnet50", "resnet34")

# Table 2 of the paper: train top-1, train top-5, test top-1, test top-5 (percent).
_RESNET = {
    "cifar10": (96.1, 99.9, 90.0, 99.75), "cifar100": (92.4, 99.8, 62.4, 87.1), "svhn": (98.9, 99.9, 94.5, 99.3)
}  # fmt: skip
NETWORKS = {
    "resnet50": {"title": "ResNet-50", "accuracy": _RESNET, "sizes": {"quick": {"n_train": 1536}}},  # the slowest
    "resnet34": {"title": "ResNet-34", "accuracy": _RESNET},
    "efficientnet_b4": {
        "title": "EfficientNet-B4",
        "accuracy": {
            "cifar10": (97.9, 99.9, 89.1, 99.6), "cifar100": (95.1, 99.9, 62.3, 86.7), "svhn": (98.7, 99.9, 95.3, 99.4)
        },
        "sizes": {"narrow": {"image_size": 224}, "paper": {"image_size": 224}},
        "batch_size": 32,  # as the text says; Table 1 says 128, with which the small profiles hardly learn at all
    },
}  # fmt: skip
SIZES = {
    "smoke": {"width": 8, "n_train": 256, "n_test": 128, "epochs": 2, "seeds": SEEDS[:1]},
    "quick": {"width": 8, "n_train": 2048, "n_test": 256, "epochs": 25, "seeds": SEEDS[:1]},
    "reduced": {"width": 16, "n_train": 10_000, "n_test": 2000, "epochs": 25, "seeds": SEEDS},
    "narrow": {"width": 16, "n_train": None, "n_test": None, "epochs": 25, "seeds": SEEDS, "precision": "bf16"},
    "paper": {"width": 64, "n_train": None, "n_test": None, "epochs": 25, "seeds": SEEDS, "precision": "bf16"},
}
SVHN_IMAGES = 7500  # at `reduced`: the copies at hand are not all of the official set

# EfficientNet on CIFAR-10 at 32 pixels and at a larger size: pixels, epochs.
RESOLUTIONS = {
    "smoke": ((32, 64), 1), "quick": ((32, 64), 6), "reduced": ((32, 64), 25), "narrow": ((32, 224), 25),
    "paper": ((32, 224), 25),
}  # fmt: skip


def run_config(profile: str, model: str, dataset: str, seed: int) -> RunConfig:
    """The run of the paper's hyperparameters at the profile's size; `ConfigError` for unknown names."""
    size = {key: value for key, value in SIZES[check_profile(profile)].items() if key != "seeds"}
    if model not in NETWORKS:
        raise ConfigError(f"unknown model {model!r} in study {STUDY}; known: {', '.join(NETWORKS)}")
    grey = data.get(dataset).in_channels == 1
    size["batch_size"] = NETWORKS[model].get("batch_size", 128)
    size |= NETWORKS[model].get("sizes", {}).get(profile, {})
    if (profile, dataset) == ("reduced", "svhn"):
        size["n_train"] = SVHN_IMAGES
    return RunConfig(
        study=STUDY, model=model, dataset=dataset, seed=seed, optimizer="adam", lr=1e-3, momentum=0.0, weight_decay=0.0,
        crop_padding=0 if grey else 4, normalize="none" if grey else "imagenet", flip=True, **size,
    )  # fmt: skip


def grid(profile: str, *, models: Some = None, datasets: Some = None, seeds: Some = None) -> list[RunConfig]:
    """The runs behind the figures, ordered so that every (model, data set) gets its first seed before any its second."""
    check_profile(profile)
    every = itertools.product(seeds or SIZES[profile]["seeds"], datasets or DATASETS, models or NETWORKS)
    return [run_config(profile, model, dataset, seed) for seed, dataset, model in every]


def resolutions(profile: str, *, models: Some = None, datasets: Some = None, seeds: Some = None) -> list[RunConfig]:
    """EfficientNet on one data set (CIFAR-10 if it is asked for), the first seed, at 32 pixels and at a larger size."""
    if "efficientnet_b4" not in (models or NETWORKS):
        return []
    (sizes, epochs), datasets = RESOLUTIONS[check_profile(profile)], datasets or DATASETS
    dataset = "cifar10" if "cifar10" in datasets else datasets[0]
    config = run_config(profile, "efficientnet_b4", dataset, (seeds or SEEDS)[0])
    return [replace(config, image_size=size, epochs=epochs) for size in sizes]


def runs(profile: str, **which: Some) -> list[RunConfig]:
    """All runs of the study at a profile: `grid` and `resolutions`, for fewer, or other, `models`, `datasets`, `seeds`."""
    return list(dict.fromkeys([*grid(profile, **which), *resolutions(profile, **which)]))

"""The runs of study 1: Table 1 and section 4 of the paper at the profiles' sizes."""

from __future__ import annotations

import itertools

from rwclib.errors import ConfigError
from rwclib.runs import data
from rwclib.runs.config import RunConfig, check_profile
from rwclib.studies import Choice

STUDY = "layerwise"
DATASETS = ("cifar10", "cifar100", "mnist", "fashion_mnist")
SEEDS = (0, 42, 123, 1000, 1234)

_TABLE_1 = {  # title, weight decay; by data set, learning rates and test top-1 (percent; section 4)
    "resnet18": ("ResNet-18", 1e-4, (0.1, 0.1, 0.1, 0.1), (91.0, 64.0, 99.0, 92.0)),
    "vgg19_bn": ("VGG-19-bn", 5e-4, (0.05, 0.05, 0.05, 0.05), (90.5, 63.6, 98.5, 91.6)),
    "alexnet": ("AlexNet", 1e-4, (0.001, 0.01, 0.1, 0.1), (81.0, 53.0, 98.5, 89.5)),
}
NETWORKS = {
    model: {"title": title, "weight_decay": decay, "lr": dict(zip(DATASETS, lr, strict=True)), "top1": dict(zip(DATASETS, top1, strict=True))}
    for model, (title, decay, lr, top1) in _TABLE_1.items()
}  # fmt: skip

# Profile: width, images, epochs and seeds. `None` images is all of them.
SIZES = {
    "smoke": {"width": 8, "n_train": 512, "n_test": 256, "epochs": 2, "seeds": SEEDS[:1]},
    "quick": {"width": 16, "n_train": 2048, "n_test": 256, "epochs": 8, "seeds": SEEDS[:2]},
    "reduced": {"width": 16, "n_train": 10_000, "n_test": 2000, "epochs": 30, "seeds": SEEDS[:3]},
    "narrow": {"width": 16, "n_train": None, "n_test": None, "epochs": 150, "seeds": SEEDS, "precision": "bf16"},
    "paper": {"width": 64, "n_train": None, "n_test": None, "epochs": 150, "seeds": SEEDS, "precision": "bf16"},
}
GREY_EPOCHS = 20  # at `narrow` and `paper` on MNIST and Fashion-MNIST: what the figures show; the text says 150
SLOW = {"width": 32, "epochs": 60}  # AlexNet on the colour sets at `reduced`: it is slow to leave chance


def run_config(profile: str, model: str, dataset: str, seed: int) -> RunConfig:
    """The run of Table 1's hyperparameters (batches of 128: the release's) at the profile's size; `ConfigError` for unknown names."""
    size = {key: value for key, value in SIZES[check_profile(profile)].items() if key != "seeds"}
    if model not in NETWORKS:
        raise ConfigError(f"unknown model {model!r} in study {STUDY}; known: {', '.join(NETWORKS)}")
    settings, grey = NETWORKS[model], data.get(dataset).in_channels == 1  # which the release only flips
    if (model, profile, grey) == ("alexnet", "reduced", False):
        size |= SLOW
    if grey and profile in ("narrow", "paper"):
        size["epochs"] = GREY_EPOCHS
    return RunConfig(
        study=STUDY, model=model, dataset=dataset, seed=seed, batch_size=128, momentum=0.9,
        lr=settings["lr"].get(dataset, settings["lr"]["fashion_mnist"]), weight_decay=settings["weight_decay"],
        crop_padding=0 if grey else 4, normalize="none" if grey else "imagenet", flip=True, **size,
    )  # fmt: skip


def runs(profile: str, *, models: Choice = None, datasets: Choice = None, seeds: Choice = None) -> list[RunConfig]:
    """The study's runs at a profile, ordered so that every (model, data set) gets its first seed before any its second.

    `models`, `datasets` and `seeds` are fewer, or other, than the study's own; data sets any of `rwclib.runs.data.DATASETS`.
    """
    seeds = seeds or SIZES[check_profile(profile)]["seeds"]
    cells = itertools.product(seeds, datasets or DATASETS, models or NETWORKS)
    return [run_config(profile, model, dataset, seed) for seed, dataset, model in cells]

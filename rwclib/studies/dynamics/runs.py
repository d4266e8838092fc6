"""The runs of study 3: 54 trainings, each retrained twice, and controls.

The slides give neither learning rates nor the number of epochs of retraining. Chosen here: SGD with learning rate 0.01 and
momentum 0.9, Adam with 1e-3, batch 128, no weight decay, no augmentation, 20 epochs and as many of retraining (`quick`: 10).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace

from rwclib.errors import ConfigError
from rwclib.runs import data
from rwclib.runs.config import RunConfig, check_profile
from rwclib.studies import Choice

STUDY = "dynamics"
NETWORKS = {"lenet5": "LeNet-5", "resnet18": "ResNet-18", "vgg19": "VGG-19"}
DATASETS = ("cifar10", "mnist", "fashion_mnist")
INITS = ("kaiming_uniform", "kaiming_normal", "pretrained")
OPTIMIZERS = {"sgd": {"lr": 0.01, "momentum": 0.9}, "adam": {"lr": 1e-3, "momentum": 0.0}}
OPTIMIZER_NAMES = {"sgd": "SGD", "adam": "Adam"}
PERTURBATIONS = {"flip_sign": "sign flip", "distort:1e-06": "distortion"}
SEEDS = (0, 42)
SOURCES = {"cifar10": "fashion_mnist", "mnist": "fashion_mnist", "fashion_mnist": "mnist"}  # of our own pretraining
IMAGENET = ("resnet18", "vgg19")
SIZES = {
    "smoke": {"width": 8, "n_train": 128, "n_test": 64, "epochs": 2, "seeds": SEEDS[:1]},
    "quick": {"width": 8, "n_train": 1024, "n_test": 256, "epochs": 20, "seeds": SEEDS[:1]},
    "reduced": {"width": 16, "n_train": 10_000, "n_test": 2000, "epochs": 20, "seeds": SEEDS},
    "narrow": {"width": 16, "n_train": None, "n_test": None, "epochs": 20, "seeds": SEEDS, "precision": "bf16"},
    "paper": {"width": 64, "n_train": None, "n_test": None, "epochs": 20, "seeds": SEEDS, "precision": "bf16"},
}
RETRAINING = {"smoke": 1, "quick": 10, "reduced": 20, "narrow": 20, "paper": 20}  # epochs
SNAPSHOT_EVERY = {"smoke": 1, "quick": 5, "reduced": 5, "narrow": 5, "paper": 5}


def run_config(profile: str, model: str, dataset: str, init: str, optimizer: str, seed: int) -> RunConfig:
    """One of the 54 trainings.

    `pretrained` starts from the run on another data set (`SOURCES`), Kaiming-uniform and with SGD whatever the optimizer; at
    the published size, ResNet-18 and VGG-19 start from torchvision's ImageNet weights. `ConfigError` for unknown names.
    """
    size = {key: value for key, value in SIZES[check_profile(profile)].items() if key != "seeds"}
    settings = (("model", model, NETWORKS), ("initialisation", init, INITS), ("optimizer", optimizer, OPTIMIZERS))
    for name, value, known in settings:
        if value not in known:
            raise ConfigError(f"unknown {name} {value!r} in study {STUDY}; known: {', '.join(known)}")
    if model == "lenet5":
        size["width"] = 64  # 61,706 parameters as they are
    parent = ""
    if init == "pretrained" and not (profile == "paper" and model in IMAGENET):
        source = SOURCES.get(dataset, DATASETS[0])
        parent = run_config(profile, model, source, INITS[0], "sgd", seed).hash
        init = f"pretrained:{source}"
    return RunConfig(
        study=STUDY, model=model, dataset=dataset, init=init, parent=parent, optimizer=optimizer, seed=seed,
        batch_size=128, weight_decay=0.0, normalize="imagenet" if data.get(dataset).in_channels == 3 else "none",
        snapshot_every=SNAPSHOT_EVERY[profile], **OPTIMIZERS[optimizer], **size,
    )  # fmt: skip


def grid(profile: str, *, models: Choice = None, datasets: Choice = None, seeds: Choice = None) -> list[RunConfig]:
    """The trainings behind parts 1 and 2, 54 to a seed; of fewer, or other, models, data sets and seeds.

    `pretrained` is left out where the data set to pretrain on is not among the data sets; LeNet-5, which has one width, from
    `narrow`, where its runs would be those of `paper`.
    """
    seeds, datasets = seeds or SIZES[check_profile(profile)]["seeds"], datasets or DATASETS
    models = [model for model in models or NETWORKS if (profile, model) != ("narrow", "lenet5")]
    cells = itertools.product(seeds, INITS, OPTIMIZERS, datasets, models)
    return [
        run_config(profile, model, dataset, init, optimizer, seed)
        for seed, init, optimizer, dataset, model in cells
        if init != "pretrained" or SOURCES.get(dataset) in datasets
    ]


def _again(profile: str, configs: list[RunConfig], perturbations: Iterable[str]) -> list[RunConfig]:
    """Every run perturbed in each way and trained again."""
    again = {"epochs": RETRAINING[profile]}
    return [replace(c, parent=c.hash, perturbation=kind, **again) for kind in perturbations for c in configs]


def retrainings(profile: str, **which: Choice) -> list[RunConfig]:
    """Every run of `grid` perturbed and trained again, 108 to a seed."""
    return _again(profile, grid(profile, **which), PERTURBATIONS)


CONTROLS = ("distort:0.0", "flip_sign@weights", "flip_sign@state", "add_noise:0.1", "shuffle")


def controls(profile: str, **which: Choice) -> list[RunConfig]:
    """What part 3 lacks, for the MNIST runs with Kaiming-uniform SGD: no perturbation, flips of other tensors, noise, shuffling."""
    chosen = ("mnist", INITS[0], "sgd")
    return _again(profile, [c for c in grid(profile, **which) if (c.dataset, c.init, c.optimizer) == chosen], CONTROLS)


def runs(profile: str, **which: Choice) -> list[RunConfig]:
    """All runs of the study at a profile, each behind the one that it starts from."""
    return [config for kind in (grid, retrainings, controls) for config in kind(profile, **which)]

"""Study 3, dynamics of parameters (slides): its runs, and the tables behind its three parts.

The slides give neither learning rates nor the number of epochs of retraining. Chosen here: SGD with learning rate 0.01 and
momentum 0.9, Adam with 1e-3, batch 128, no weight decay, no augmentation, 20 epochs and as many of retraining.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rwclib import archive, data
from rwclib.config import RunConfig, check_profile
from rwclib.errors import ConfigError
from rwclib.studies import base

STUDY = "dynamics"
MODELS = {"lenet5": "LeNet-5", "resnet18": "ResNet-18", "vgg19": "VGG-19"}
DATASETS = ("cifar10", "mnist", "fashion_mnist")
INITS = ("kaiming_uniform", "kaiming_normal", "pretrained")
OPTIMIZERS = {"sgd": {"lr": 0.01, "momentum": 0.9}, "adam": {"lr": 1e-3, "momentum": 0.0}}
PERTURBATIONS = {"flip_sign": "sign flip", "distort:1e-06": "distortion"}
SEEDS = (0, 42)
SOURCES = {"cifar10": "fashion_mnist", "mnist": "fashion_mnist", "fashion_mnist": "mnist"}  # of our own pretraining

SIZES = {
    "smoke": {"width": 8, "n_train": 256, "n_test": 128, "epochs": 2, "seeds": SEEDS[:1]},
    "quick": {"width": 8, "n_train": 1024, "n_test": 256, "epochs": 20, "seeds": SEEDS[:1]},
    "reduced": {"width": 16, "n_train": 10_000, "n_test": 2000, "epochs": 20, "seeds": SEEDS},
    "paper": {"width": 64, "n_train": None, "n_test": None, "epochs": 20, "seeds": SEEDS, "precision": "bf16"},
}
RETRAINING = {"smoke": 1, "quick": 10, "reduced": 20, "paper": 20}  # epochs
SNAPSHOT_EVERY = {"smoke": 1, "quick": 5, "reduced": 5, "paper": 5}

# Norms of the slides (part 3): perturbation, data set, |w1|, |w2|, |w1 - w2|. They do not say of which network.
PUBLISHED = (
    ("none", "mnist", 120.32, 120.32, 0.0), ("none", "mnist", 209.18, 209.18, 0.0),
    ("none", "cifar10", 174.29, 174.29, 0.0), ("none", "cifar10", 175.84, 175.84, 0.0),
    ("distort:1e-06", "mnist", 120.3, 120.29, 0.27), ("distort:1e-06", "mnist", 23.43, 23.02, 1.3),
    ("distort:1e-06", "mnist", 171.79, 171.78, 1.38), ("flip_sign", "mnist", 120.32, 120.44, 240.67),
    ("flip_sign", "mnist", 171.78, 180.41, 347.66), ("flip_sign", "fashion_mnist", 24.42, 26.06, 49.6),
)  # fmt: skip
CELL = ["model", "dataset", "init", "optimizer"]


def base_config(profile: str, model: str, dataset: str, init: str, optimizer: str, seed: int) -> RunConfig:
    """One of the 54 trainings; `pretrained` starts from the run of the other data set (`SOURCES`) with the same optimizer.

    Raises:
        ConfigError: unknown profile, model, data set, initialisation or optimizer.
    """
    size = {key: value for key, value in SIZES[check_profile(profile)].items() if key != "seeds"}
    for name, known in (("model", MODELS), ("initialisation", INITS), ("optimizer", OPTIMIZERS)):
        value = {"model": model, "initialisation": init, "optimizer": optimizer}[name]
        if value not in known:
            raise ConfigError(f"unknown {name} {value!r} in study {STUDY}; known: {', '.join(known)}")
    if model == "lenet5":
        size["width"] = 64  # 61,706 parameters as they are
    parent = ""
    if init == "pretrained":
        source = SOURCES.get(dataset, DATASETS[0])
        parent = base_config(profile, model, source, INITS[0], optimizer, seed).hash
        init = f"pretrained:{source}"
    return RunConfig(
        study=STUDY, model=model, dataset=dataset, init=init, parent=parent, optimizer=optimizer, seed=seed,
        batch_size=128, weight_decay=0.0, normalize="imagenet" if data.get(dataset).in_channels == 3 else "none",
        snapshot_every=SNAPSHOT_EVERY[profile], **OPTIMIZERS[optimizer], **size,
    )  # fmt: skip


def grid(
    profile: str,
    *,
    models: Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> list[RunConfig]:
    """The trainings behind parts 1 and 2, 54 to a seed; of fewer, or other, models, data sets and seeds.

    `pretrained` is left out where the data set to pretrain on is not among the data sets.
    """
    check_profile(profile)
    on = datasets or DATASETS
    return [
        base_config(profile, model, dataset, init, optimizer, seed)
        for seed in (seeds or SIZES[profile]["seeds"])
        for init in INITS
        for optimizer in OPTIMIZERS
        for dataset in on
        for model in (models or MODELS)
        if init != "pretrained" or SOURCES.get(dataset) in on
    ]


def _retrained(profile: str, config: RunConfig, perturbation: str) -> RunConfig:
    return replace(config, parent=config.hash, perturbation=perturbation, epochs=RETRAINING[profile])


def retrainings(profile: str, **which: Sequence | None) -> list[RunConfig]:
    """Every run of `grid` perturbed and trained again, 108 to a seed."""
    of = grid(profile, **which)
    return [_retrained(profile, config, perturbation) for perturbation in PERTURBATIONS for config in of]


CONTROLS = ("flip_sign@weights", "flip_sign@state", "add_noise:0.1", "shuffle")


def controls(profile: str, **which: Sequence | None) -> list[RunConfig]:
    """What part 3 does not have: sign flips of other tensors, noise and shuffling, of the MNIST runs with Kaiming-uniform SGD."""
    of = [
        config
        for config in grid(profile, **which)
        if (config.dataset, config.init, config.optimizer) == ("mnist", INITS[0], "sgd")
    ]
    return [_retrained(profile, config, perturbation) for perturbation in CONTROLS for config in of]


def runs(profile: str, **which: Sequence | None) -> list[RunConfig]:
    """All runs of the study at a profile, each behind the one that it starts from."""
    return [part for kind in (grid, retrainings, controls) for part in kind(profile, **which)]


def tables(results: str | Path | None = None, profile: str = "best", **which: object) -> archive.Tables:
    """Finished runs of the study, as `base.load`."""
    return base.load(runs, results, profile, **which)


def prepare(profile: str, models: list[str], **rest: object) -> tuple[archive.Tables, list[str]]:
    """What a notebook draws, as `base.prepare`."""
    return base.prepare(runs, profile, models, **rest)

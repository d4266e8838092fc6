"""The sessions of study 4.

A session is one training from scratch for so many iterations, with a seed of its own. The paper gives the batch of 50 and the
lengths; chosen here, as in the TensorFlow tutorials of its time: Adam with learning rate 1e-4, pixels in [0, 1] as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

from rwclib.errors import ConfigError
from rwclib.runs import data
from rwclib.runs.config import RunConfig, check_profile

Some = Sequence | None  # of models, data sets or seeds: None for the study's own

STUDY = "softness"
NETWORKS = {"softness_cnn": "two convolutions, two linear layers"}
DATASETS = ("cifar10",)
DESIGN = {1: 3, 2000: 3, 10_000: 2, 30_000: 2, 50_000: 1}  # the paper's: iterations, sessions

# Sessions by iterations, and images. `reduced` is the paper's own design.
SIZES = {
    "smoke": {"sessions": {1: 2, 20: 2, 60: 2}, "n_train": 500, "n_test": 256},
    "quick": {"sessions": dict.fromkeys((1, 100, 400, 1000, 2000), 3), "n_train": None, "n_test": 1000},
    "reduced": {"sessions": DESIGN, "n_train": None, "n_test": 1000},
    "narrow": {"sessions": {}, "n_train": None, "n_test": None},  # its network has one width
    "paper": {"sessions": dict.fromkeys(DESIGN, 10), "n_train": None, "n_test": None},
}


def run_config(profile: str, iterations: int, seed: int, dataset: str = "cifar10") -> RunConfig:
    """One session; `ConfigError` for an unknown profile or data set."""
    size = {key: value for key, value in SIZES[check_profile(profile)].items() if key != "sessions"}
    data.get(dataset)
    return RunConfig(
        study=STUDY, model="softness_cnn", dataset=dataset, iterations=iterations, seed=seed, optimizer="adam", lr=1e-4,
        momentum=0.0, weight_decay=0.0, batch_size=50, **size,
    )  # fmt: skip


def runs(profile: str, *, models: Some = None, datasets: Some = None, seeds: Some = None) -> list[RunConfig]:
    """The sessions at a profile, each with a seed of its own, counted through; of these, only `seeds` where given."""
    unknown = [model for model in models or () if model not in NETWORKS]
    if unknown:
        raise ConfigError(f"unknown model {unknown[0]!r} in study {STUDY}; known: {', '.join(NETWORKS)}")
    lengths = [length for length, count in SIZES[check_profile(profile)]["sessions"].items() for _ in range(count)]
    sessions = [(seed, length) for seed, length in enumerate(lengths) if not seeds or seed in seeds]
    return [run_config(profile, length, seed, dataset) for dataset in datasets or DATASETS for seed, length in sessions]

"""RunConfig: everything that decides a run's numbers, its canonical JSON and its 12-digit hash; the four profiles."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass

from rwclib.errors import ConfigError

FORMAT = 1  # raise it when the code changes what a run with the same settings computes

PROFILES = {
    "smoke": "seconds, to see that everything runs",
    "quick": "minutes on two CPU cores",
    "reduced": "hours on two CPU cores",
    "paper": "the published settings; needs a GPU",
}

ENGINES = {  # how the steps of a run are executed; no part of a RunConfig
    "eager": "op by op",
    "compile": "torch.compile",
    "graph": "every step one CUDA graph, needs a GPU",
}

PRIORITIES = {  # orders of a sweep's runs
    "seeds": "every model and data set (and length, of runs of so many iterations) gets its first seed before any gets its second",
    "shortest": "the same, and the shortest runs first among equals",
    "longest": "the same, and the longest first: least idle time at the end",
}

INITS = ("default", "kaiming_uniform", "kaiming_normal", "pretrained")

CHOICES = {
    "optimizer": ("sgd", "adam"),
    "normalize": ("none", "imagenet"),
    "precision": ("fp32", "bf16"),
}


def _later(neutral: object) -> object:
    """A field that came after the first runs: at its neutral value, the default, it is no part of the hash."""
    return dataclasses.field(default=neutral, metadata={"neutral": neutral})


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training of one model on one data set with one seed.

    The hash covers every field but `study` (a label: where the run is filed), defaults included, and `FORMAT`. Device,
    number of processes and paths are no part of it.

    A field added later must be made by `_later`, with the value under which older runs were made, so that archived runs
    keep their names.

    Attributes:
        study: the study the run belongs to, for example `layerwise`.
        model: name in `rwclib.models.MODELS`.
        dataset: name in `rwclib.data.DATASETS`.
        width: channels of the first stage, a multiple of 8 (64 is ResNet-18's published width).
        epochs: passes over the training images; 0 trains nothing.
        seed: seeds initialisation, order and augmentation, each with its own generator.
        lr, momentum, weight_decay, batch_size, optimizer: as in `torch.optim`; the learning rate is constant.
        n_train, n_test: images used, a fixed random subset; `None` is all of them.
        image_size: pixels per side; smaller images are resized once, bilinearly.
        crop_padding: zero padding in pixels for the random crop; 0 is no crop.
        flip: random horizontal flip.
        normalize: `imagenet` mean and standard deviation, or `none` (pixels in [0, 1]).
        shuffle: new order of the images in every epoch.
        precision: `fp32`, or `bf16` autocast over fp32 weights.
        init: initial weights. `default`, the network's own; `kaiming_uniform` or `kaiming_normal` (fan in, ReLU; zero
            biases) in every convolution and linear layer; `pretrained`, torchvision's of ImageNet, or
            `pretrained:<dataset>`, the final weights of the run `parent`, both as in `rwclib.models.transfer`.
        parent: hash of the run whose final weights this one starts from; empty for none.
        perturbation: what is done to the parent's weights first, as `rwclib.perturbation.parse` reads it; with one, `init`
            only says how the parent began.
        snapshot_every: epochs between two measurements of how far the weights have come, with penultimate features
            measured at the end; 0 for neither.
        iterations: batches to train in place of `epochs`, which must be 1 then: the last epoch ends with them, and filters and
            test accuracy are recorded on the way (`rwclib.recording`); 0 for epochs.

    Raises:
        ConfigError: a value out of its range.
    """

    model: str
    dataset: str
    study: str = "custom"
    width: int = 64
    epochs: int = 1
    seed: int = 0
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    batch_size: int = 128
    optimizer: str = "sgd"
    n_train: int | None = None
    n_test: int | None = None
    image_size: int = 32
    crop_padding: int = 0
    flip: bool = False
    normalize: str = "none"
    shuffle: bool = True
    precision: str = "fp32"
    init: str = _later("default")
    parent: str = _later("")
    perturbation: str = _later("none")
    snapshot_every: int = _later(0)
    iterations: int = _later(0)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), field.type
            if kind == "float" and type(value) is int and abs(value) < 2**63:
                object.__setattr__(self, field.name, float(value))
                continue
            allowed = {
                "str": (str,),
                "int": (int,),
                "float": (float,),
                "bool": (bool,),
                "int | None": (int, type(None)),
            }
            if type(value) not in allowed[kind]:
                raise ConfigError(f"{field.name} must be {kind}, not {value!r}")
        smallest = {
            "width": 1, "epochs": 0, "seed": 0, "lr": 0, "momentum": 0, "weight_decay": 0, "batch_size": 1,
            "n_train": 1, "n_test": 1, "image_size": 8, "crop_padding": 0, "snapshot_every": 0,
            "iterations": 0,
        }  # fmt: skip
        for name, low in smallest.items():
            value = getattr(self, name)
            if value is not None and not low <= value < 2**63:
                raise ConfigError(
                    f"{name} must be at least {low}{'' if value < low else ' and not so large'}, not {value!r}"
                )
        if self.width % 8:  # torch 2.15's CPU convolutions crash the process at other channel counts
            raise ConfigError(f"width must be a multiple of 8, not {self.width}")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ConfigError(f"unknown {name} {getattr(self, name)!r}; known: {', '.join(known)}")
        for name in ("study", "model", "dataset"):
            value = getattr(self, name)
            if not value.replace("_", "").isalnum() or not value.isascii() or len(value) > 64:  # a folder's name
                raise ConfigError(f"{name} must consist of letters, digits and _, 64 at most, not {value!r}")

        self._check_start()

        if self.iterations and self.epochs != 1:
            raise ConfigError(f"a run of {self.iterations} iterations has no number of epochs; leave epochs at 1")

    def _check_start(self) -> None:
        """What the run starts from must be one thing: initial weights, or a parent's."""
        of_run = self.init.startswith("pretrained:")
        if self.init not in INITS and not of_run:
            raise ConfigError(f"unknown init {self.init!r}; known: {', '.join(INITS)}, pretrained:DATASET")
        if self.parent and not (len(self.parent) == 12 and set(self.parent) <= set("0123456789abcdef")):
            raise ConfigError(f"parent must be the 12-digit hash of a run, not {self.parent!r}")
        if bool(self.parent) != (of_run or self.perturbation != "none"):
            raise ConfigError(
                f"init {self.init!r} and perturbation {self.perturbation!r} {'need no' if self.parent else 'need a'} "
                "parent; give one to pretrained:DATASET or to a perturbation, and to nothing else"
            )

    def to_dict(self) -> dict:
        """Every field with its value, JSON types only."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> RunConfig:
        """The config that `to_dict` gave `values`; `ConfigError` for unknown or missing fields."""
        if not isinstance(values, dict):
            raise ConfigError(f"not the fields of a run but {type(values).__name__}")
        unknown = sorted(repr(name) for name in set(values) - {f.name for f in dataclasses.fields(cls)})
        if unknown or not {"model", "dataset"} <= set(values):
            raise ConfigError(f"not the fields of a run: {', '.join(unknown) or 'model or dataset is missing'}")
        return cls(**values)

    def canonical_json(self) -> str:
        """The text that is hashed: sorted keys, no spaces, every field that changes the numbers."""
        values = {"format": FORMAT}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "study" and not ("neutral" in field.metadata and value == field.metadata["neutral"]):
                values[field.name] = value
        return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)

    def epochs_over(self, images: int) -> int:
        """Epochs over so many training images: `epochs`, or those that `iterations` begin."""
        return -(-self.iterations // -(-images // self.batch_size)) if self.iterations else self.epochs

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 of `canonical_json()`."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """Name of the run directory: readable fields, then the hash."""
        size = f"-n{self.n_train}" if self.n_train else ""
        length = f"i{self.iterations}" if self.iterations else f"e{self.epochs}"
        return f"{self.model}-{self.dataset}-w{self.width}-{length}{size}-s{self.seed}-{self.hash}"


def check_profile(profile: str, *more: str) -> str:
    """`profile` itself, or `ConfigError` naming the known ones: `PROFILES` and `more`."""
    if profile not in (known := (*more, *PROFILES)):
        raise ConfigError(f"unknown profile {profile!r}; known: {', '.join(known)}")
    return profile

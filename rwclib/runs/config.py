"""RunConfig: everything that decides a run's numbers, its canonical JSON and its 12-digit hash; the five profiles."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from rwclib.errors import ConfigError

FORMAT = 1  # raise it when the code changes what a run with the same settings computes

PROFILES = {
    "smoke": "seconds, to see that everything runs",
    "quick": "minutes on two CPU cores",
    "reduced": "hours on two CPU cores",
    "narrow": "the published settings, networks a quarter as wide; a day or more on two CPU cores",
    "paper": "the published settings; needs a GPU",
}

ENGINES = {  # how the steps of a run are executed; no part of a RunConfig
    "eager": "op by op, the results on one machine always the same to the last bit",
    "compile": "torch.compile",
    "graph": "every step one CUDA graph, needs a GPU",
    "auto": "graph on a GPU, else eager: `rwc bench engines` shows what compiling costs and gains",
}

PRIORITIES = {  # orders of a sweep's runs
    "seeds": "every model and data set (and length, of runs of so many iterations) gets its first seed before any gets its second",
    "shortest": "the same, and the shortest runs first among equals",
    "longest": "the same, and the longest first: least idle time at the end",
}

INITS = ("default", "kaiming_uniform", "kaiming_normal", "pretrained")

_KINDS = {"str": (str,), "int": (int,), "float": (float,), "bool": (bool,), "int | None": (int, type(None))}


def _setting(
    text: str,
    default: object = dataclasses.MISSING,
    *,
    least: float | None = None,
    known: tuple[str, ...] = (),
    later: bool = False,
) -> Any:
    """A field with its help text, smallest value and known values.

    `later`: it came after the first runs, and at its default, under which older runs were made, is no part of the hash, so that
    archived runs keep their names.
    """
    return dataclasses.field(default=default, metadata={"help": text, "least": least, "known": known, "later": later})


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training of one model on one data set with one seed; what each field is, its help says (`rwc train --help`).

    The hash covers every field but `study` (a label: where the run is filed), defaults included, and `FORMAT`. Device,
    number of processes and paths are no part of it.

    Raises:
        ConfigError: a value out of its range.
    """

    model: str = _setting("resnet18, resnet34, resnet50, vgg19_bn, alexnet, lenet5, ...; a wrong name lists all")
    dataset: str = _setting("mnist, fashion_mnist, cifar10, cifar100, svhn, fashion_mnist_sample")
    study: str = _setting("where the run is filed", "custom")
    width: int = _setting(
        "channels of the first stage, a multiple of 8; 64 is ResNet-18's published width", 64, least=1
    )
    epochs: int = _setting("passes over the training images; 0 trains nothing", 1, least=0)
    seed: int = _setting("of initialisation, order and augmentation, each with its own generator", 0, least=0)
    lr: float = _setting("learning rate, constant", 0.1, least=0)
    momentum: float = _setting("of SGD", 0.9, least=0)
    weight_decay: float = _setting("L2 penalty, as in torch.optim", 1e-4, least=0)
    batch_size: int = _setting("images per step", 128, least=1)
    optimizer: str = _setting("sgd or adam", "sgd", known=("sgd", "adam"))
    n_train: int | None = _setting("training images used, a fixed random subset [default: all]", None, least=1)
    n_test: int | None = _setting("test images used, a fixed random subset [default: all]", None, least=1)
    image_size: int = _setting("pixels per side; smaller images are resized once, bilinearly", 32, least=8)
    crop_padding: int = _setting("zero padding of the random crop, in pixels; 0: no crop", 0, least=0)
    flip: bool = _setting("random horizontal flip", False)
    normalize: str = _setting(
        "imagenet: its mean and standard deviation; none: [0, 1]", "none", known=("none", "imagenet")
    )
    shuffle: bool = _setting("new order of the images in every epoch", True)
    precision: str = _setting("fp32, or bf16 autocast over fp32 weights", "fp32", known=("fp32", "bf16"))
    init: str = _setting(
        "initial weights. default: the network's own; kaiming_uniform or kaiming_normal (fan in, ReLU; zero biases) in every "
        "convolution and linear layer; pretrained: torchvision's of ImageNet; pretrained:DATASET: the final weights of --parent",
        "default", later=True,
    )  # fmt: skip
    parent: str = _setting("hash of the run whose final weights this one starts from", "", later=True)
    perturbation: str = _setting(
        "done to the parent's weights first: flip_sign, shuffle, distort:SIZE", "none", later=True
    )
    snapshot_every: int = _setting(
        "epochs between two measurements of how far the weights have come, with penultimate features at the end; 0: none",
        0, least=0, later=True,
    )  # fmt: skip
    iterations: int = _setting(
        "batches to train in place of epochs, which must be 1 then; filters and test accuracy are recorded on the way; 0: epochs",
        0, least=0, later=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            self._check(field)
        if self.width % 8:  # torch 2.15's CPU convolutions crash the process at other channel counts
            raise ConfigError(f"width must be a multiple of 8, not {self.width}")
        for name in ("study", "model", "dataset"):
            value = getattr(self, name)
            if not value.replace("_", "").isalnum() or not value.isascii() or len(value) > 64:  # a folder's name
                raise ConfigError(f"{name} must consist of letters, digits and _, 64 at most, not {value!r}")
        self._check_start()
        if self.iterations and self.epochs != 1:
            raise ConfigError(f"a run of {self.iterations} iterations has no number of epochs; leave epochs at 1")

    def _check(self, field: dataclasses.Field) -> None:
        """`ConfigError` for a value of another type, below the smallest, or unknown; a whole number becomes a float."""
        name, value, least, known = (
            field.name,
            getattr(self, field.name),
            field.metadata["least"],
            field.metadata["known"],
        )
        if field.type == "float" and type(value) is int and abs(value) < 2**63:
            value = float(value)
            object.__setattr__(self, name, value)
        if type(value) not in _KINDS[field.type]:
            raise ConfigError(f"{name} must be {field.type}, not {value!r}")
        if least is not None and value is not None and not least <= value < 2**63:
            raise ConfigError(
                f"{name} must be at least {least}{'' if value < least else ' and not so large'}, not {value!r}"
            )
        if known and value not in known:
            raise ConfigError(f"unknown {name} {value!r}; known: {', '.join(known)}")

    def _check_start(self) -> None:
        """What the run starts from must be one thing: initial weights, or a parent's."""
        from_parent = self.init.startswith("pretrained:")
        if self.init not in INITS and not from_parent:
            raise ConfigError(f"unknown init {self.init!r}; known: {', '.join(INITS)}, pretrained:DATASET")
        if self.parent and not (len(self.parent) == 12 and set(self.parent) <= set("0123456789abcdef")):
            raise ConfigError(f"parent must be the 12-digit hash of a run, not {self.parent!r}")
        if bool(self.parent) != (from_parent or self.perturbation != "none"):
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
            if field.name != "study" and not (field.metadata["later"] and value == field.default):
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

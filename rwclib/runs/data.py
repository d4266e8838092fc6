"""Image sets as uint8 arrays, and batches of them augmented on the device.

`load` reads `<folder>/<name>.npz` (keys x_train, x_test uint8 (images, height, width, channels), y_train, y_test
integer (images,), and the strings source and note), or downloads through torchvision, which checks digests, and writes
that file. Nothing else is ever put in a missing set's place.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from rwclib.errors import ConfigError, DataError, one_line

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SAMPLE = "fashion_mnist_sample"
TRAIN_FLAG = ({"train": True}, {"train": False})  # how most classes of torchvision ask for a split
SPLIT_NAMES = ({"split": "train"}, {"split": "test"})


@dataclass(frozen=True)
class Dataset:
    """What is known of a set before it is read.

    torchvision: name of its class there, None for the bundled one; splits: that class's arguments for the training and the
    test images; mirrors: servers with HTTPS in place of torchvision's own.
    """

    title: str
    torchvision: str | None
    num_classes: int
    in_channels: int
    n_train: int
    n_test: int
    splits: tuple[dict, dict] = TRAIN_FLAG
    mirrors: tuple[str, ...] = ()


_MNIST, _FASHION = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://fashion-mnist.s3.eu-central-1.amazonaws.com/",
)
DATASETS = {
    "mnist": Dataset("MNIST", "MNIST", 10, 1, 60_000, 10_000, mirrors=(_MNIST,)),
    "fashion_mnist": Dataset("Fashion-MNIST", "FashionMNIST", 10, 1, 60_000, 10_000, mirrors=(_FASHION,)),
    "cifar10": Dataset("CIFAR-10", "CIFAR10", 10, 3, 50_000, 10_000),
    "cifar100": Dataset("CIFAR-100", "CIFAR100", 100, 3, 50_000, 10_000),
    "svhn": Dataset("SVHN", "SVHN", 10, 3, 73_257, 26_032, SPLIT_NAMES),
    SAMPLE: Dataset("Fashion-MNIST sample (6,000 + 1,000)", None, 10, 1, 6000, 1000),
}


@dataclass(frozen=True)
class ImageSet:
    """Images uint8 (images, height, width, channels) and labels int64 (images,), with where they come from."""

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    source: str
    note: str

    def subset(self, n_train: int | None, n_test: int | None) -> ImageSet:
        """A fixed random subset (the same for every seed of a run), of None all; `ConfigError` if there are fewer images."""
        arrays = {}
        for split, count in (("train", n_train), ("test", n_test)):
            x, y = getattr(self, f"x_{split}"), getattr(self, f"y_{split}")
            if count is None and len(x) < (whole := getattr(get(self.name), f"n_{split}")):
                part = f"this copy of {self.name} has {len(x):,} of {whole:,} {split} images"
                raise ConfigError(f"{part}: give n_{split}, at most {len(x)}")
            if count is not None and count > len(x):
                raise ConfigError(f"n_{split} is {count}, but {self.name} has {len(x)} {split} images; ask for fewer")
            if count is not None:
                chosen = np.sort(np.random.default_rng(0).permutation(len(x))[:count])
                x, y = x[chosen], y[chosen]
            arrays |= {f"x_{split}": x, f"y_{split}": y}
        return ImageSet(self.name, **arrays, source=self.source, note=self.note)

    def digest(self) -> str:
        """First 12 hexadecimal digits of the SHA-256 of all pixels and labels."""
        sha = hashlib.sha256()
        for array in (self.x_train, self.y_train, self.x_test, self.y_test):
            sha.update(np.ascontiguousarray(array).data)
        return sha.hexdigest()[:12]


def folder(data_dir: str | Path | None = None) -> Path:
    """Where image sets are kept: `data_dir`, else `$RWC_DATA_DIR`, else the user's cache folder."""
    chosen = data_dir or os.environ.get("RWC_DATA_DIR")
    if chosen:
        return Path(chosen)
    import platformdirs

    return Path(platformdirs.user_cache_dir("rwclib")) / "data"


def get(name: str) -> Dataset:
    """The set called `name`; `ConfigError` names the known ones."""
    if name not in DATASETS:
        raise ConfigError(f"unknown data set {name!r}; known: {', '.join(DATASETS)}")
    return DATASETS[name]


def path(name: str, data_dir: str | Path | None = None) -> Path:
    """The file that holds, or would hold, the set: in the data folder; beside or in the package for the sample."""
    if get(name).torchvision is None:
        installed = Path(__file__).parents[1] / f"{name}.npz"
        return installed if installed.exists() else Path(__file__).parents[2] / "data" / f"{name}.npz"
    return folder(data_dir) / f"{name}.npz"


def load(name: str, data_dir: str | Path | None = None, *, download: bool = True) -> ImageSet:
    """The image set, from its file or else by download.

    Args:
        name: a name in `DATASETS`.
        data_dir: folder of the `.npz` files; default as in `folder`.
        download: fetch a set that is not there.

    Raises:
        ConfigError: unknown name.
        DataError: the file is not of the format above, or the set is not there and cannot be fetched.
    """
    file = path(name, data_dir)
    if file.exists():
        return _read(name, file)
    if get(name).torchvision is None or not download:
        raise DataError(f"data set {name} not found: expected {file}; fetch it with `rwc data fetch {name}`")
    return fetch(name, data_dir)


def fetch(name: str, data_dir: str | Path | None = None) -> ImageSet:
    """Download the set through torchvision (digests checked) and write its `.npz`; `DataError` if that fails."""
    known, file = get(name), path(name, data_dir)
    if known.torchvision is None or file.exists():
        return load(name, data_dir)
    from torchvision import datasets

    raw, made = file.parent / f".{name}.download", not file.parent.exists()
    try:
        raw.mkdir(parents=True, exist_ok=True)
        make = getattr(datasets, known.torchvision)
        if known.mirrors:
            make = type(known.torchvision, (make,), {"mirrors": known.mirrors})
        (x_train, y_train), (x_test, y_test) = (_arrays(make(raw, download=True, **split)) for split in known.splits)
        part = file.with_suffix(f".part{os.getpid()}")
        with open(part, "wb") as handle:
            np.savez(
                handle, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test,
                source=f"torchvision.datasets.{known.torchvision}", note="pixel-exact, original order",
            )  # fmt: skip
        os.replace(part, file)
        shutil.rmtree(raw)
    except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:  # RuntimeError: digests, mirrors
        with contextlib.suppress(OSError):
            file.with_suffix(f".part{os.getpid()}").unlink()
        with contextlib.suppress(OSError):  # empty folders are nobody's; what has come is kept
            raw.rmdir()
            if made:
                file.parent.rmdir()
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise DataError(
            f"data set {name} could not be fetched ({reason}): expected {file}; put it there (its layout: data/README.md), "
            f"name another folder by --data-dir or RWC_DATA_DIR, or run `rwc data fetch {name}` where there are network and disk"
        ) from error
    return _read(name, file)


def _arrays(dataset: object) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (images, height, width, channels) uint8 and labels uint8 of a torchvision data set."""
    x, y = np.asarray(dataset.data), np.asarray(getattr(dataset, "targets", getattr(dataset, "labels", None)))
    if x.ndim == 3:
        x = x[..., None]
    elif x.shape[1] == 3 and x.shape[-1] != 3:  # SVHN comes channels first
        x = x.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(x, dtype=np.uint8), y.astype(np.uint8)


def _read(name: str, file: Path) -> ImageSet:
    known = get(name)
    try:
        with open(file, "rb") as handle, np.lib.npyio.NpzFile(handle, allow_pickle=False) as stored:
            missing = {"x_train", "y_train", "x_test", "y_test"} - set(stored.files)
            if missing:
                raise DataError(f"{file} lacks the arrays {', '.join(sorted(missing))}; delete it and fetch it again")
            arrays = {key: stored[key] for key in ("x_train", "y_train", "x_test", "y_test")}
            texts = {key: one_line(stored[key]) if key in stored.files else "unknown" for key in ("source", "note")}
    except DataError:
        raise
    except Exception as error:  # zipfile and NumPy raise anything at a damaged file
        raise DataError(
            f"{file} is not a readable .npz of arrays ({one_line(error)}); delete it and fetch it again"
        ) from error
    for split in ("train", "test"):
        x, y = arrays[f"x_{split}"], arrays[f"y_{split}"]
        right = x.dtype == np.uint8 and x.ndim == 4 and x.shape[1] == x.shape[2] and x.shape[3] == known.in_channels
        if not right or y.shape != x.shape[:1] or y.dtype.kind not in "iu" or not len(y):
            raise DataError(
                f"{file}: x_{split} is {x.dtype} {x.shape} with labels {y.dtype} {y.shape}, expected square uint8 images "
                f"(images, height, width, {known.in_channels}) and one integer label each; delete it and fetch it again"
            )
        if y.min() < 0 or y.max() >= known.num_classes:
            raise DataError(
                f"{file}: y_{split} has labels outside 0..{known.num_classes - 1}; delete it and fetch it again"
            )
        arrays[f"y_{split}"] = y.astype(np.int64)
    return ImageSet(name, **arrays, **texts)


@dataclass(frozen=True)
class EpochPlan:
    """The random choices of one epoch, drawn on the CPU so that every device trains on the same images.

    order (images,) int64; top, left (images,) int64 corner of the crop in the padded image; flip (images,) bool.
    """

    order: Tensor
    top: Tensor
    left: Tensor
    flip: Tensor

    def to(self, device: torch.device) -> EpochPlan:
        return EpochPlan(*(t.to(device, non_blocking=True) for t in (self.order, self.top, self.left, self.flip)))


class Batches:
    """One split on the device: uint8 pixels, augmented and normalised batch by batch.

    Args:
        x: uint8 (images, height, width, channels).
        y: int64 (images,).
        image_size: pixels per side; other sizes are resized once, bilinearly with anti-aliasing, and rounded.
        crop_padding: zeros around the image for random crops.
        normalize: `imagenet` or `none`.
        device: where pixels live and batches are made.
    """

    def __init__(
        self,
        x: np.ndarray,
        y: np.ndarray,
        *,
        image_size: int,
        crop_padding: int = 0,
        normalize: str,
        device: torch.device,
    ) -> None:
        pixels = resize(torch.from_numpy(x).to(device), image_size)
        self.size, self.padding, self.device = image_size, crop_padding, device
        self.pixels = functional.pad(pixels, (0, 0, crop_padding, crop_padding, crop_padding, crop_padding))
        self.labels = torch.from_numpy(y).to(device)
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if normalize == "imagenet" else ((0.0,), (1.0,))
        self.scale = 1 / (255 * torch.tensor(std, device=device))
        self.shift = -torch.tensor(mean, device=device) / torch.tensor(std, device=device)

    def __len__(self) -> int:
        return len(self.labels)

    def plan(self, generator: torch.Generator, order: torch.Generator, *, flip: bool, shuffle: bool) -> EpochPlan:
        """Draw one epoch: `order` for the permutation, `generator` for crops and flips (both CPU generators)."""
        n = len(self)
        corners = torch.randint(0, 2 * self.padding + 1, (2, n), generator=generator)
        flips = torch.rand(n, generator=generator) < 0.5
        permutation = torch.randperm(n, generator=order)
        order, flips = permutation if shuffle else torch.arange(n), flips if flip else torch.zeros_like(flips)
        return EpochPlan(order, *corners, flips).to(self.device)

    def epoch(self, plan: EpochPlan, batch_size: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Augmented batches (batch, channels, size, size) float32 and labels (batch,) from the `start`-th on.

        The last may be smaller.
        """
        for rows in plan.order.split(batch_size)[start:]:
            yield self.batch(rows, plan.top[rows], plan.left[rows], plan.flip[rows]), self.labels[rows]

    def in_order(self, batch_size: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches without augmentation, in stored order, from the `start`-th on."""
        centre = torch.full((len(self),), self.padding, device=self.device)
        flip = torch.zeros(len(self), dtype=torch.bool, device=self.device)
        for rows in torch.arange(len(self), device=self.device).split(batch_size)[start:]:
            yield self.batch(rows, centre[rows], centre[rows], flip[rows]), self.labels[rows]

    def batch(self, rows: Tensor, top: Tensor, left: Tensor, flip: Tensor) -> Tensor:
        """Images `rows` cropped at (top, left), flipped where `flip`, normalised.

        Returns (batch, channels, size, size) float32 in channels_last memory format.
        """
        steps = torch.arange(self.size, device=self.device)
        down = top[:, None] + steps
        across = left[:, None] + torch.where(flip[:, None], steps.flip(0), steps)
        pixels = self.pixels[rows[:, None, None], down[:, :, None], across[:, None, :]]
        return pixels.float().mul_(self.scale).add_(self.shift).permute(0, 3, 1, 2)


def resize(pixels: Tensor, size: int) -> Tensor:
    """uint8 (images, height, width, channels) to (images, size, size, channels), as torchvision resizes a tensor."""
    if pixels.shape[1] == size:
        return pixels
    parts = [
        functional.interpolate(part.permute(0, 3, 1, 2).float(), size, mode="bilinear", antialias=True).round_()
        for part in pixels.split(4096)
    ]
    return torch.cat([part.clamp_(0, 255).to(torch.uint8) for part in parts]).permute(0, 2, 3, 1).contiguous()

"""The arrays that the authors of WeightScale released, fetched, checked and read without running anything.

Elementwise changes of one run each, (layers, 25 epochs), from github.com/Manifold-Computing/Relative-Weight-Change.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import pickletools
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from rwclib import archive, data, models
from rwclib.errors import ConfigError, DataError, one_line
from rwclib.studies import weightscale

_URL = "https://raw.githubusercontent.com/Manifold-Computing/Relative-Weight-Change/48eb003d70c7208f38e615e782b1245d1aa134ff/clustering/"
FILES = {  # the released file and its SHA-256; what the release calls ResNet50 is a ResNet-34
    ("resnet34", "cifar10"): (
        "CIFAR-10/ResNet50/0_ResNet50-CIFAR10rmae_dict_25.npy",
        "6e5b02cbf833f304ac162aaa9d7782e65dc503797d19cb62533746e68d79add9",
    ),
    ("resnet34", "cifar100"): (
        "CIFAR-100/ResNet50/0_ResNet50-CIFAR100rmae_dict_25.npy",
        "bedd7277b81267c1cf2439f80a70e1e2041ab94476011b83166acceb26fdc549",
    ),
    ("resnet34", "svhn"): (
        "SVHN/ResNet50/0_ResNet50-SVHNrmae_dict_25.npy",
        "f549e71cb6a93f23745bab8962d7875fe54a94a75523222c262d5be99ba78c89",
    ),
    ("efficientnet_b4", "cifar10"): (
        "CIFAR-10/EfficientNet/0_EfficientNet-B4-CIFAR10rmae_dict_25.npy",
        "191b2f7331166e1d47950fa9f582a4f1131c7f1b79121fc7fa097448d1a8902e",
    ),
    ("efficientnet_b4", "cifar100"): (
        "CIFAR-100/EfficientNet/0_EfficientNet-B4-CIFAR100_rmae_dict.npy",
        "10090a94b2c11cb9ac8cfdb9d25456bbc8942adbd126d20ee6ef6a8a0508891b",
    ),
    ("efficientnet_b4", "svhn"): (
        "SVHN/EfficientNet/0_EfficientNet-B4-SVHN_rmae_dict.npy",
        "92cc64981946d254504b92f5b2443633ed58934f65728bb96889c35279256187",
    ),
}
_ALIASES = {"resnet": "resnet34", "resnet50": "resnet34", "efficientnet": "efficientnet_b4"}  # the release's names
_CORES = ("numpy.core.multiarray", "numpy._core.multiarray")  # NumPy 1 and 2


class _Dtype:
    """Stands for `numpy.dtype`: remembers its name and byte order, whatever else the file wants to set."""

    def __init__(self, name: str, *_: object) -> None:
        self.name, self.order = name, "<"

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]

    def read(self, raw: bytes) -> np.ndarray:
        if self.name not in ("f2", "f4", "f8", "i4", "i8"):
            raise ValueError(f"it holds values of type {self.name}")
        return np.frombuffer(raw, ("<" if self.order in "<|" else ">") + self.name)


class _Array:
    """Stands for `numpy.ndarray`: its numbers in one dimension, or its objects in a list."""

    def __init__(self, *_: object) -> None:
        self.values = []

    def __setstate__(self, state: tuple) -> None:
        _, _, dtype, _, raw = state
        self.values = raw if dtype.name in ("O", "O8") else dtype.read(raw)


class _ArraysOnly(pickle.Unpickler):
    """Reads NumPy arrays and numbers and Python's own containers; anything else could run code and is refused.

    NumPy's own classes are not used either: told a wrong dtype by a file, they read wherever it points.
    """

    def find_class(self, module: str, name: str) -> object:
        known = {("numpy", "ndarray"): _Array, ("numpy", "dtype"): _Dtype}
        known |= {(core, "_reconstruct"): _Array for core in _CORES}
        known |= {(core, "scalar"): lambda dtype, raw: dtype.read(raw)[0] for core in _CORES}
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return known[module, name]


def _check_sizes(content: bytes) -> None:
    """`ValueError` where an opcode would have the unpickler reserve memory for much more than there is."""
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= argument <= len(content):
            raise ValueError("it has too large a memo")


def _numbers(values: object) -> object:
    """What an array holds, or a flat list; lists of lists can be a few bytes that stand for gigabytes."""
    values = values.values if isinstance(values, _Array) else values
    if isinstance(values, list) and not all(isinstance(value, int | float | np.number) for value in values):
        raise ValueError("it holds no numbers")
    return values


def read_pickled(content: bytes) -> pd.DataFrame:
    """A released `.npy` file, a pickled dictionary of layer to changes by epoch: (layers, epochs), epochs from 1.

    Raises:
        DataError: not such a file, or it holds anything but NumPy arrays, containers and numbers.
    """
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        read(stream)
        _check_sizes(content[stream.tell() :])
        (changes,) = _ArraysOnly(stream).load().values
        rows = {str(layer): np.ravel(_numbers(values)).astype(float) for layer, values in changes.items()}
        table = pd.DataFrame.from_dict(rows, orient="index")
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(
            f"not a pickled dictionary of NumPy arrays ({one_line(error)}); nothing of it was used"
        ) from error
    table.columns = range(1, table.shape[1] + 1)
    return table.rename_axis("layer")


def published_rwc(model: str, dataset: str, data_dir: str | Path | None = None) -> pd.DataFrame:
    """A released array: elementwise changes (ratio; may be infinite), a row per layer in order of depth, a column per epoch.

    Read from `<data folder>/published_rwc/rwc_<resnet or efficientnet_b4>_<data set>.csv` (columns layer, epoch_1, ...), or
    downloaded from the release, checked by its SHA-256 and stored there.

    Args:
        model: `resnet34` (also under the release's name, `resnet50`) or `efficientnet_b4`.
        dataset: `cifar10`, `cifar100` or `svhn`.
        data_dir: data folder; default as in `rwclib.data.folder`.

    Raises:
        ConfigError: there is no such array.
        DataError: it is not there and cannot be fetched, or is not what was released.
    """
    key = _ALIASES.get(model, model), dataset
    if key not in FILES:
        raise ConfigError(f"no released array of {model} on {dataset}; known: {', '.join(map(' on '.join, FILES))}")
    file = data.folder(data_dir) / "published_rwc" / f"rwc_{key[0].replace('resnet34', 'resnet')}_{dataset}.csv"
    if file.exists():
        try:
            table = pd.read_csv(file, index_col="layer")
            table.columns = [int(name.removeprefix("epoch_")) for name in table.columns]
            return table.astype(float)
        except (ValueError, OSError, pd.errors.ParserError) as error:
            raise DataError(
                f"{file} is not a table of layers and epochs ({error}); delete it to fetch it again"
            ) from error
    name, digest = FILES[key]
    url = _URL + name
    try:
        with urllib.request.urlopen(url, timeout=20) as response:
            content = response.read(16 * 2**20)
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise DataError(
            f"released array of {key[0]} on {dataset} not found: expected {file}, and {url} cannot be read ({reason})"
        ) from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise DataError(
            f"{url} is not the released file: its SHA-256 is {hashlib.sha256(content).hexdigest()}, not {digest}"
        )
    table = read_pickled(content)
    text = table.rename(columns=lambda epoch: f"epoch_{epoch}").to_csv()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        archive.write_atomically(file, text.encode())
    except OSError as error:
        raise DataError(
            f"{file} cannot be written ({error.strerror}); set RWC_DATA_DIR to a folder that can"
        ) from error
    return table


def tidy(model: str, dataset: str, data_dir: str | Path | None = None) -> pd.DataFrame:
    """A released array as the archive's tables have it: profile `released`, model, dataset, seed, epoch, layer, depth, group,
    rwc_elementwise; errors as `published_rwc`.
    """
    wide = published_rwc(model, dataset, data_dir)
    model = _ALIASES.get(model, model)
    group = {layer: models.get(model).group(layer) for layer in wide.index}
    group |= {wide.index[0]: "stem", wide.index[-1]: "head"}  # whatever the release calls them
    long = wide.rename_axis(columns="epoch").stack().rename("rwc_elementwise").reset_index()
    depth = {layer: i + 1 for i, layer in enumerate(wide.index)}
    return long.assign(
        profile="released", model=model, dataset=dataset, seed=0, depth=long["layer"].map(depth), group=long["layer"].map(group)
    )  # fmt: skip


def available(
    datasets: Sequence[str] = weightscale.DATASETS, data_dir: str | Path | None = None
) -> tuple[pd.DataFrame, dict[str, str]]:
    """The released arrays of these data sets as one `tidy` table; and why the others cannot be had, by `model on dataset`."""
    parts, missing = [], {}
    for model, dataset in FILES:
        if dataset in datasets:
            try:
                parts.append(tidy(model, dataset, data_dir))
            except DataError as error:
                missing[f"{model} on {dataset}"] = str(error)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(), missing

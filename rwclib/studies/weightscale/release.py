"""The arrays that the authors of WeightScale released, fetched, checked and read without running anything.

Elementwise changes of one run each, (layers, 25 epochs), from github.com/Manifold-Computing/Relative-Weight-Change.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from rwclib.errors import ConfigError, DataError
from rwclib.runs import archive, data, models
from rwclib.studies.weightscale.runs import DATASETS

_URL = "https://raw.githubusercontent.com/Manifold-Computing/Relative-Weight-Change/48eb003d70c7208f38e615e782b1245d1aa134ff/clustering/"
FILES = {  # the released file and its SHA-256; what the release calls ResNet50 is a ResNet-34
    ("resnet34", "cifar10"): ("CIFAR-10/ResNet50/0_ResNet50-CIFAR10rmae_dict_25.npy", "6e5b02cbf833f304ac162aaa9d7782e65dc503797d19cb62533746e68d79add9"),
    ("resnet34", "cifar100"): ("CIFAR-100/ResNet50/0_ResNet50-CIFAR100rmae_dict_25.npy", "bedd7277b81267c1cf2439f80a70e1e2041ab94476011b83166acceb26fdc549"),
    ("resnet34", "svhn"): ("SVHN/ResNet50/0_ResNet50-SVHNrmae_dict_25.npy", "f549e71cb6a93f23745bab8962d7875fe54a94a75523222c262d5be99ba78c89"),
    ("efficientnet_b4", "cifar10"): ("CIFAR-10/EfficientNet/0_EfficientNet-B4-CIFAR10rmae_dict_25.npy", "191b2f7331166e1d47950fa9f582a4f1131c7f1b79121fc7fa097448d1a8902e"),
    ("efficientnet_b4", "cifar100"): ("CIFAR-100/EfficientNet/0_EfficientNet-B4-CIFAR100_rmae_dict.npy", "10090a94b2c11cb9ac8cfdb9d25456bbc8942adbd126d20ee6ef6a8a0508891b"),
    ("efficientnet_b4", "svhn"): ("SVHN/EfficientNet/0_EfficientNet-B4-SVHN_rmae_dict.npy", "92cc64981946d254504b92f5b2443633ed58934f65728bb96889c35279256187"),
}  # fmt: skip
_ALIASES = {"resnet": "resnet34", "resnet50": "resnet34", "efficientnet": "efficientnet_b4"}  # the release's names


class _ArraysOnly(pickle.Unpickler):
    """Reads NumPy arrays and numbers and Python's own containers; what else a pickle names is refused."""

    def find_class(self, module: str, name: str) -> object:
        if not module.startswith("numpy") or name not in ("ndarray", "dtype", "_reconstruct", "scalar"):
            raise DataError(f"it is not a file of NumPy arrays: it asks for {module}.{name}")
        return super().find_class(module, name)


def read_pickled(content: bytes, digest: str, source: str) -> pd.DataFrame:
    """A released `.npy` file, a pickled dictionary of layer to changes by epoch: (layers, epochs), epochs from 1.

    Nothing is unpickled before its SHA-256 is `digest`, else `DataError` names the `source`.
    """
    digest_here = hashlib.sha256(content).hexdigest()
    if digest_here != digest:
        raise DataError(f"{source} is not the released file: its SHA-256 is {digest_here}, not {digest}")
    stream = io.BytesIO(content)
    np.lib.format.read_magic(stream)
    np.lib.format.read_array_header_1_0(stream)
    changes = {layer: np.ravel(values) for layer, values in _ArraysOnly(stream).load().item().items()}
    table = pd.DataFrame.from_dict(changes, orient="index").astype(float).rename_axis("layer")
    return table.rename(columns=lambda place: place + 1)


def published_rwc(model: str, dataset: str, data_dir: str | Path | None = None) -> pd.DataFrame:
    """A released array: elementwise changes (ratio; may be infinite), a row per layer in order of depth, a column per epoch.

    Read from `<data folder>/published_rwc/rwc_<resnet or efficientnet_b4>_<data set>.csv` (columns layer, epoch_1, ...), or
    downloaded from the release, checked by its SHA-256 and stored there. The release's `resnet50` is a `resnet34`.

    Raises:
        ConfigError: there is no such array.
        DataError: it is not there and cannot be fetched, or is not what was released.
    """
    model = _ALIASES.get(model, model)
    if (model, dataset) not in FILES:
        raise ConfigError(f"no released array of {model} on {dataset}; known: {', '.join(map(' on '.join, FILES))}")
    file = data.folder(data_dir) / "published_rwc" / f"rwc_{model.replace('resnet34', 'resnet')}_{dataset}.csv"
    if file.exists():
        try:
            table = pd.read_csv(file, index_col="layer").astype(float)
            return table.rename(columns=lambda name: int(name.removeprefix("epoch_")))
        except (ValueError, OSError) as error:
            raise DataError(
                f"{file} is not a table of layers and epochs ({error}); delete it to fetch it again"
            ) from error
    name, digest = FILES[model, dataset]
    try:
        with urllib.request.urlopen(_URL + name, timeout=20) as response:  # noqa: S310 (a constant, https)
            content = response.read()
    except OSError as error:
        reason = f"expected {file}, and {_URL + name} cannot be read ({getattr(error, 'reason', error)})"
        raise DataError(f"released array of {model} on {dataset} not found: {reason}") from error
    table = read_pickled(content, digest, _URL + name)
    archive.write_atomically(file, table.rename(columns="epoch_{}".format).to_csv().encode())
    return table


def released_layers(model: str, dataset: str, data_dir: str | Path | None = None) -> pd.DataFrame:
    """A released array as the archive's tables have it; errors as `published_rwc`.

    Columns: profile (`released`), model, dataset, seed, epoch, layer, depth, group, rwc_elementwise.
    """
    wide = published_rwc(model, dataset, data_dir)
    model, layers = _ALIASES.get(model, model), list(wide.index)
    groups = {layer: models.get(model).group(layer) for layer in layers}
    groups |= {layers[0]: "stem", layers[-1]: "head"}  # whatever the release calls them
    long = wide.rename_axis(columns="epoch").stack().rename("rwc_elementwise").reset_index()
    long = long.assign(profile="released", model=model, dataset=dataset, seed=0)
    return long.assign(depth=1 + long["layer"].map(layers.index), group=long["layer"].map(groups))


def available(
    datasets: Sequence[str] = DATASETS, data_dir: str | Path | None = None
) -> tuple[pd.DataFrame, dict[str, str]]:
    """The released arrays of these data sets as one table (`released_layers`); and by `model on dataset` why others cannot be had."""
    parts, missing = [], {}
    for model, dataset in FILES:
        if dataset in datasets:
            try:
                parts.append(released_layers(model, dataset, data_dir))
            except DataError as error:
                missing[f"{model} on {dataset}"] = str(error)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(), missing

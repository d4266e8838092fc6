"""The arrays that the authors of WeightScale released, and what they show.

Elementwise changes of one run each, (layers, 25 epochs), from github.com/Manifold-Computing/Relative-Weight-Change.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from rwclib import archive, clustering, data, models
from rwclib.errors import ConfigError, DataError
from rwclib.studies import weightscale
from rwclib.tracker import weight_tensors

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
_ALLOWED = {("numpy", "ndarray"), ("numpy", "dtype")} | {
    (f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")
}


class _ArraysOnly(pickle.Unpickler):
    """Reads NumPy arrays and Python's own containers and numbers; anything else could run code and is refused."""

    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


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
        changes = _ArraysOnly(stream).load().item()
        rows = {str(layer): np.asarray(values, dtype=np.float64).ravel() for layer, values in changes.items()}
        table = pd.DataFrame.from_dict(rows, orient="index")
    except (pickle.UnpicklingError, ValueError, AttributeError, EOFError, TypeError, ImportError, IndexError) as error:
        raise DataError(f"not a pickled dictionary of NumPy arrays ({error}); nothing of it was used") from error
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


def published() -> tuple[list[dict], pd.DataFrame]:
    """What the release's notebooks print and its figures show, by panel, and the label of every layer there.

    Panels: model, dataset, group, k, sizes by label; for ResNets the first two epochs of the printed centroids, else the
    inertia of the partition; and scree values recomputed from the arrays. Labels: model, dataset, group, layer, label.
    """
    folder = Path(__file__).parent
    panels = json.loads((folder / "weightscale_published.json").read_text())
    return panels, pd.read_csv(folder / "weightscale_labels.csv")


def recluster(arrays: pd.DataFrame, n_init: int = 10, repeats: int = 100) -> pd.DataFrame:
    """Every published partition beside what k-means finds on the released arrays, one row per panel.

    Args:
        arrays: tidy tables of released arrays.
        n_init: starts of each clustering.
        repeats: seeds tried.

    Returns:
        model, dataset, group, layers, k; `published sizes`; `fixed point`: whether k-means would leave the published
        partition as it is; its inertia, and the least found (`best`), with `best sizes`; adjusted Rand index of the seeds'
        partitions with the published one: least, median, largest.
    """
    from sklearn.metrics import adjusted_rand_score

    panels, labels = published()
    rows = []
    for of in panels:
        curves, known = _panel(arrays, labels, of)
        if curves is None:
            continue
        there = clustering.partition(curves, known)
        tried = [clustering.cluster(curves, of["k"], seed, n_init) for seed in range(repeats)]
        best = min(tried, key=lambda found: found.inertia)
        scores = [adjusted_rand_score(known, found.labels) for found in tried]
        rows.append({
            **{key: of[key] for key in ("model", "dataset", "group")}, "layers": len(known), "k": of["k"],
            "published sizes": sorted(there.sizes), "fixed point": clustering.is_fixed_point(curves, known),
            "inertia": there.inertia, "best": best.inertia, "best sizes": sorted(best.sizes),
            "ARI least": min(scores), "median": float(np.median(scores)), "largest": max(scores),
        })  # fmt: skip
    return pd.DataFrame(rows)


def centroids(arrays: pd.DataFrame) -> pd.DataFrame:
    """The centroids that the release's notebooks print beside those of k-means here: their first two epochs.

    Columns: dataset, cluster, layers, published layers, then for epochs 1 and 2 ours and published.
    """
    rows = []
    for of in published()[0]:
        curves, _ = _panel(arrays, published()[1], of)
        if curves is None or "centroids" not in of:
            continue
        found = clustering.cluster(curves, of["k"], n_init=200)
        ours = sorted(zip(found.centroids[:, :2].tolist(), found.sizes, strict=True))
        theirs = sorted(zip(of["centroids"], of["sizes"], strict=True))
        for (a, size), (b, printed) in zip(ours, theirs, strict=True):
            rows.append({"dataset": of["dataset"], "layers": size, "published layers": printed}
                        | {f"epoch {i + 1}{who}": v[i] for i in (0, 1) for who, v in (("", a), (", published", b))})  # fmt: skip
    return pd.DataFrame(rows)


def scree(arrays: pd.DataFrame) -> pd.DataFrame:
    """`clustering.choose_k` of every released panel: dataset, model, group, k, inertia, share, silhouette, elbow, best,
    published; and the recomputed reference inertia (`reference`)."""
    parts = []
    for of in published()[0]:
        curves, _ = _panel(arrays, published()[1], of)
        if curves is not None:
            table = clustering.choose_k(curves, n_init=50)
            parts.append(table.assign(
                **{key: of[key] for key in ("dataset", "model", "group")}, definition="elementwise",
                share=table["inertia"] / table["inertia"].iloc[0], published=of["k"], reference=of["scree"],
            ))  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def _panel(arrays: pd.DataFrame, labels: pd.DataFrame, of: dict) -> tuple[np.ndarray | None, list[int]]:
    """Cleaned curves (layers, epochs) of one published panel, and its labels; None without its array."""
    rows = arrays[(arrays["model"] == of["model"]) & (arrays["dataset"] == of["dataset"])]
    if rows.empty:
        return None, []
    curves = weightscale.curves(rows, of["group"], "rwc_elementwise")
    keys = ["model", "dataset", "group"]
    known = labels[(labels[keys] == [of[key] for key in keys]).all(axis=1)].set_index("layer")["label"]
    return curves.to_numpy(), known.loc[curves.index].tolist()


def identity(arrays: pd.DataFrame) -> pd.DataFrame:
    """Weight tensors of the released ResNet beside those of ours: number, convolutions per block, shortcuts, same names."""
    released = list(dict.fromkeys(arrays.loc[arrays["model"] == "resnet34", "layer"]))
    ours = {name: list(weight_tensors(models.build(name, num_classes=10))) for name in weightscale.RESNETS}
    rename = {"shortcut.0": "downsample.0", "linear.": "fc."}
    plain = []
    for name in released:
        for old, new in rename.items():
            name = name.replace(old, new)
        plain.append(name)
    rows = []
    for title, names in {"released": plain, **{weightscale.MODELS[m]["title"]: n for m, n in ours.items()}}.items():
        inside = [name for name in names if name.startswith("layer1.0.conv")]
        shortcuts = sum("downsample" in name for name in names)
        same = sorted(n.removesuffix(".weight") for n in names) == sorted(n.removesuffix(".weight") for n in plain)
        rows.append((title, len(names), len(inside), shortcuts, same))
    return pd.DataFrame(
        rows, columns=["network", "weight tensors", "convolutions per block", "shortcuts", "released names"]
    )


def infinities(arrays: pd.DataFrame) -> pd.DataFrame:
    """The infinite values of released arrays: model, dataset, layer, epoch."""
    return arrays.loc[np.isinf(arrays["rwc_elementwise"]), ["model", "dataset", "layer", "epoch"]]


def exact_zeros(model: str = "resnet34", seeds: Sequence[int] = (0, 42, 123, 1000, 1234)) -> pd.DataFrame:
    """Initial weights that are exactly 0, by seed: seed, layers (`-` if none). A zero that moves makes an infinity."""
    rows = []
    for seed in seeds:
        weights = weight_tensors(models.build(model, num_classes=10, seed=seed))
        rows.append((seed, ", ".join(name for name, weight in weights.items() if (weight == 0).any()) or "-"))
    return pd.DataFrame(rows, columns=["seed", "layers"])


def tails(arrays: pd.DataFrame, thresholds: Sequence[float] = (5, 10, 20, 50, 100)) -> pd.DataFrame:
    """How many finite values of each array exceed a threshold, beside what a tail of 1/x predicts from the first count.

    One weight near 0 adds |step| / (|w| n) to its layer's mean of n weights. Where weights have positive density at 0, 1/|w|
    exceeds x with a probability proportional to 1/x: spikes of ten times the size are ten times as rare.
    """
    rows = []
    for (model, dataset), of in arrays.groupby(["model", "dataset"], sort=False):
        values = of["rwc_elementwise"][np.isfinite(of["rwc_elementwise"])]
        counts = {x: int((values > x).sum()) for x in thresholds}
        first = thresholds[0]
        rows += [(model, dataset, x, n, counts[first] * first / x) for x, n in counts.items()]
    return pd.DataFrame(rows, columns=["model", "dataset", "above", "values", "1/x predicts"])


def gradient_fractions(image_size: int, width: int = 64, batch: int = 2) -> pd.Series:
    """Share of each depthwise layer's weights that receive a gradient from images of this size, by layer name.

    From the network itself: one backward pass of random images and labels, and the weights whose gradient is not 0. Where
    the map is smaller than the kernel, its outer taps see nothing but padding and never move.
    """
    network = models.build("efficientnet_b4", num_classes=10, width=width).eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 3, image_size, image_size, generator=generator)
    nn.functional.cross_entropy(network(x), torch.randint(10, (batch,), generator=generator)).backward()
    group = models.get("efficientnet_b4").group
    return pd.Series({
        name: (weight.grad != 0).float().mean().item()
        for name, weight in weight_tensors(network).items() if group(name) == "DW"
    })  # fmt: skip


def depthwise(arrays: pd.DataFrame, dataset: str, image_size: int = 32) -> pd.DataFrame:
    """The released depthwise changes and the share of weights with a gradient, by layer: is one explained by the other?

    Columns: layer, stage, fraction, median (of the cleaned curve), median / fraction.
    """
    rows = arrays[(arrays["model"] == "efficientnet_b4") & (arrays["dataset"] == dataset)]
    median = weightscale.curves(rows, "DW", "rwc_elementwise").median(axis=1)
    share = gradient_fractions(image_size).reindex(median.index)
    return pd.DataFrame({
        "layer": median.index, "stage": median.index.str.split(".").str[1].astype(int), "fraction": share.to_numpy(),
        "median": median.to_numpy(), "median / fraction": (median / share).to_numpy(),
    })  # fmt: skip


def trace(epochs: int = 4, seed: int = 0) -> pd.DataFrame:
    """Which single weight makes a layer's elementwise mean: a small ResNet-34 trained on the bundled images.

    Width 8, Adam at 1e-3, 2,048 images of the Fashion-MNIST sample.

    Returns:
        One row per epoch and layer: epoch, layer, rwc (Eq. 1), rwc_elementwise, `largest share` (of the elementwise sum that
        one weight makes), `weight` (that weight's size over the layer's median size, before the epoch).
    """
    images = data.load(data.SAMPLE).subset(2048, 256)
    batches = data.Batches(images.x_train, images.y_train, image_size=32, normalize="none", device=torch.device("cpu"))
    network = models.build("resnet34", num_classes=10, in_channels=1, width=8, seed=seed)
    optimizer, generator = torch.optim.Adam(network.parameters(), lr=1e-3), torch.Generator().manual_seed(seed)
    rows = []
    for epoch in range(1, epochs + 1):
        before = {name: weight.detach().clone() for name, weight in weight_tensors(network).items()}
        for x, y in batches.epoch(batches.plan(generator, generator, flip=False, shuffle=True), 128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x), y).backward()
            optimizer.step()
        for name, weight in weight_tensors(network).items():
            step, size = (weight.detach() - before[name]).abs().flatten(), before[name].abs().flatten()
            ratio = step / size
            top = int(ratio.argmax())
            rows.append({
                "epoch": epoch, "layer": name, "rwc": float(step.sum() / size.sum()), "rwc_elementwise": float(ratio.mean()),
                "largest share": float(ratio[top] / ratio.sum()), "weight": float(size[top] / size.median()),
            })  # fmt: skip
    return pd.DataFrame(rows)

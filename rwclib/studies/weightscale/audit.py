"""What the released arrays of WeightScale show: their clusters found again, the network, the resolution, the spikes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from rwclib.analysis import claims, clustering
from rwclib.runs import archive, data, models
from rwclib.runs.config import PROFILES
from rwclib.studies import captions
from rwclib.studies import layerwise as first_study
from rwclib.studies.layerwise import two_definitions
from rwclib.studies.stored import stored
from rwclib.studies.weightscale import claims as own_claims
from rwclib.studies.weightscale import figures
from rwclib.studies.weightscale.runs import NETWORKS, RESNETS, resolutions
from rwclib.tracker import weight_tensors


def published() -> tuple[list[dict], pd.DataFrame]:
    """What the release's notebooks print and its figures show, by panel, and the label of every layer there.

    Panels: model, dataset, group, k, sizes by label; for ResNets the first two epochs of the printed centroids, else the
    inertia of the partition; and an independent computation's inertias for k = 1 to 17 (best of 50 starts), of the curves and in
    2-D. Labels: model, dataset, group, layer, label.
    """
    folder = Path(__file__).parent
    panels = json.loads((folder / "published.json").read_text())
    return panels, pd.read_csv(folder / "labels.csv")


def _panels(arrays: pd.DataFrame) -> Iterator[tuple[dict, np.ndarray, list[int]]]:
    """Each panel of `published` whose array is there, its cleaned curves (layers, epochs) and published labels (layers,)."""
    panels, labels = published()
    keys = ["model", "dataset", "group"]
    for panel in panels:
        rows = arrays[(arrays["model"] == panel["model"]) & (arrays["dataset"] == panel["dataset"])]
        if len(rows):
            curves = figures.curves(rows, panel["group"], "rwc_elementwise")
            known = labels[(labels[keys] == [panel[key] for key in keys]).all(axis=1)].set_index("layer")["label"]
            yield panel, curves.to_numpy(), known.loc[curves.index].tolist()


@stored
def recluster(arrays: pd.DataFrame, n_init: int = 10, repeats: int = 20) -> pd.DataFrame:
    """Every published partition beside what k-means finds on the released arrays, one row per panel.

    Args:
        arrays: tables of released arrays (`release.available`).
        n_init: starts of each seed's clustering.
        repeats: seeds tried.

    Returns:
        model, dataset, group, layers, k; `published sizes`; `fixed point`: whether k-means would leave the published
        partition as it is; its inertia, and the least there is (`best`, of `clustering.least`), with `best sizes`; adjusted
        Rand index of the seeds' partitions with the published one: least, median, largest.
    """
    from sklearn.metrics import adjusted_rand_score

    rows = []
    for panel, curves, known in _panels(arrays):
        partition, least = clustering.partition(curves, known), clustering.least(curves, panel["k"])[panel["k"]]
        by_seed = [clustering.cluster(curves, panel["k"], seed, n_init).labels for seed in range(repeats)]
        scores = [adjusted_rand_score(known, labels) for labels in by_seed]
        rows.append({
            **{key: panel[key] for key in ("model", "dataset", "group")}, "layers": len(known), "k": panel["k"],
            "published sizes": sorted(partition.sizes), "fixed point": clustering.is_fixed_point(curves, known),
            "inertia": partition.inertia, "best": least.inertia, "best sizes": sorted(least.sizes),
            "ARI least": min(scores), "median": float(np.median(scores)), "largest": max(scores),
        })  # fmt: skip
    return pd.DataFrame(rows)


def centroids(arrays: pd.DataFrame) -> pd.DataFrame:
    """The centroids that the release's notebooks print beside those of k-means here: their first two epochs.

    Columns: dataset, layers, published layers (numbers in the cluster), then for epochs 1 and 2 ours and published.
    """
    rows = []
    for panel, curves, _ in _panels(arrays):
        if "centroids" not in panel:
            continue
        least = clustering.least(curves, panel["k"])[panel["k"]]
        ours = sorted(zip(least.centroids[:, :2].tolist(), least.sizes, strict=True))
        theirs = sorted(zip(panel["centroids"], panel["sizes"], strict=True))
        for ((first, second), size), ((first_printed, second_printed), printed_size) in zip(ours, theirs, strict=True):
            rows.append({
                "dataset": panel["dataset"], "layers": size, "published layers": printed_size,
                "epoch 1": first, "epoch 1, published": first_printed,
                "epoch 2": second, "epoch 2, published": second_printed,
            })  # fmt: skip
    return pd.DataFrame(rows)


def scree(arrays: pd.DataFrame) -> pd.DataFrame:
    """`figures.scree` of every released panel, with its dataset, model, group, definition and published k."""
    parts = [
        figures.scree(curves).assign(
            dataset=panel["dataset"], model=panel["model"], group=panel["group"], definition="elementwise", published=panel["k"]
        )
        for panel, curves, _ in _panels(arrays)
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def identity(arrays: pd.DataFrame) -> pd.DataFrame:
    """Weight tensors of the released ResNet beside those of ours: number, convolutions per block, shortcuts, same names."""
    plain = [
        name.replace("shortcut.0", "downsample.0").replace("linear.", "fc.")
        for name in dict.fromkeys(arrays.loc[arrays["model"] == "resnet34", "layer"])
    ]
    ours = {
        NETWORKS[name]["title"]: [
            tensor.removesuffix(".weight") for tensor in weight_tensors(models.build(name, num_classes=10))
        ]
        for name in RESNETS
    }
    released = [name.removesuffix(".weight") for name in plain]
    return pd.DataFrame([
        {
            "network": title, "weight tensors": len(names),
            "convolutions per block": sum(name.startswith("layer1.0.conv") for name in names),
            "shortcuts": sum("downsample" in name for name in names), "released names": sorted(names) == sorted(released),
        }
        for title, names in {"released": released, **ours}.items()
    ])  # fmt: skip


def infinities(arrays: pd.DataFrame) -> pd.DataFrame:
    """The infinite values of released arrays: model, dataset, layer, epoch."""
    return arrays.loc[np.isinf(arrays["rwc_elementwise"]), ["model", "dataset", "layer", "epoch"]]


def exact_zeros(seeds: Sequence[int] = first_study.SEEDS) -> pd.DataFrame:
    """Layers of ResNet-34 with an initial weight of exactly 0, by seed (`-` if none). A zero that moves makes an infinity."""
    return two_definitions.exact_zeros(seeds, ["resnet34"])[["seed", "layers"]]


def tails(arrays: pd.DataFrame, thresholds: Sequence[float] = (10, 20, 50, 100)) -> pd.DataFrame:
    """How many finite values of each array exceed a threshold, beside what a tail of 1/x predicts from the first count.

    One weight near 0 adds |step| / (|w| n) to its layer's mean of n weights. Where weights have positive density at 0, 1/|w|
    exceeds x with a probability proportional to 1/x: spikes of ten times the size are about ten times as rare. Smaller
    thresholds reach into the bulk of the values.
    """
    rows = []
    for (model, dataset), array in arrays.groupby(["model", "dataset"], sort=False):
        values = array["rwc_elementwise"][np.isfinite(array["rwc_elementwise"])]
        counts = {x: int((values > x).sum()) for x in thresholds}
        first = thresholds[0]
        rows += [(model, dataset, x, n, counts[first] * first / x) for x, n in counts.items()]
    return pd.DataFrame(rows, columns=["model", "dataset", "above", "values", "1/x predicts"])


@stored
def gradient_fractions(image_size: int, width: int = 64) -> pd.DataFrame:
    """Share of each depthwise layer's weights that receive a gradient from images of this size: layer, stage, fraction.

    From the network itself: one backward pass of a random image and label, and the weights whose gradient is not 0. Where
    the map is smaller than the kernel, its outer taps see nothing but padding and never move.
    """
    network = models.build("efficientnet_b4", num_classes=10, width=width).eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, image_size, image_size, generator=generator)
    nn.functional.cross_entropy(network(x), torch.randint(10, (1,), generator=generator)).backward()
    group = models.get("efficientnet_b4").group
    return pd.DataFrame([
        {"layer": name, "stage": int(name.split(".")[1]), "fraction": (weight.grad != 0).float().mean().item()}
        for name, weight in weight_tensors(network).items() if group(name) == "DW"
    ])  # fmt: skip


def depthwise(arrays: pd.DataFrame, dataset: str, image_size: int = 32) -> pd.DataFrame:
    """The released depthwise changes and the share of weights with a gradient, by layer: is one explained by the other?

    Columns: layer, stage, fraction, median (of the cleaned curve), median / fraction.
    """
    rows = arrays[(arrays["model"] == "efficientnet_b4") & (arrays["dataset"] == dataset)]
    median = figures.curves(rows, "DW", "rwc_elementwise").median(axis=1)
    table = gradient_fractions(image_size).set_index("layer").loc[median.index].assign(median=median).reset_index()
    return table.assign(**{"median / fraction": table["median"] / table["fraction"]})


def prepare_pair(profile: str, **rest: object) -> archive.Tables:
    """The `resolutions` as `prepare` gives them."""
    return replace(own_claims.STUDY, grid=resolutions).prepare(
        profile, ["efficientnet_b4"], datasets=["cifar10"], **rest
    )[0]


def resolution_table(pair: archive.Tables) -> pd.DataFrame:
    """Depthwise change at 32 pixels beside a larger size, one row per layer, of the most telling pair of runs.

    Args:
        pair: as `prepare_pair` gives them.

    Returns:
        profile, layer, stage, then per size `<size> px` (median Eq. 1 over the epochs after the first). Empty if no profile
        has both runs.
    """
    rows = pair.layers[(pair.layers["epoch"] > 1) & (pair.layers["group"] == "DW")]
    whole = rows.groupby("profile")["hash"].nunique() == 2
    profiles = [name for name in PROFILES if whole.get(name, False)]
    if not profiles:
        return pd.DataFrame()
    rows = rows[rows["profile"] == profiles[-1]]
    size = rows["hash"].map(pair.runs.drop_duplicates("hash").set_index("hash")["image_size"])
    wide = rows.assign(size=size).pivot_table("rwc", ["profile", "depth", "layer"], "size", "median").droplevel("depth")
    wide = wide.rename(columns="{} px".format).reset_index()
    wide.insert(2, "stage", wide["layer"].str.split(".").str[1].astype(int))
    return wide.rename_axis(columns=None)


def resolution_caption(pair: archive.Tables, table: pd.DataFrame) -> str:
    """What `resolution_table` shows, the size of its two runs beside the published, and how far they have learned."""
    profile = table["profile"].iloc[0]
    runs, layers, last = (
        rows[rows["profile"] == profile]
        for rows in (pair.runs.sort_values("image_size"), pair.layers, archive.last_epochs(pair.epochs))
    )
    run, tops = runs.iloc[0], last.set_index("hash")["train_top1"]
    words = ", ".join(f"{tops[row.hash]:.0f}% ({row.image_size} px)" for row in runs.itertuples())
    return (
        f"{data.get(run['dataset']).title}, EfficientNet-B4{figures.depth_words(layers)}, profile {run['profile']}: {captions.size(runs)}, "
        f"{figures.length_words(run['epochs'])}, {run['precision']}, seed {run['seed']}; medians over the epochs after the first; "
        f"{captions.progress(last, words)}\ndata copy: {run['data_note']}"
    )


def trace(epochs: int = 3, seed: int = 0) -> pd.DataFrame:
    """Which single weight makes a layer's elementwise mean: a small ResNet-34 trained on the bundled images.

    Width 8, Adam at 1e-3, 1,024 images of the Fashion-MNIST sample.

    Returns:
        One row per epoch and layer: epoch, layer, rwc (Eq. 1), rwc_elementwise, `largest share` (of the elementwise sum that
        one weight makes), `weight` (that weight's size over the layer's median size, before the epoch).
    """
    images = data.load(data.SAMPLE).subset(1024, 256)
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


def released(layers: pd.DataFrame) -> pd.DataFrame:
    """The claims judged on released arrays (`release.released_layers`), exactly: the paper's sentences are about these very runs.

    Columns: claim, comparison, effect, verdict.
    """
    here = set(layers[["model", "dataset"]].itertuples(index=False, name=None))
    about = own_claims.STUDY.about(["resnet34", "efficientnet_b4"], {"": "elementwise"})
    table = own_claims.values(archive.Tables(pd.DataFrame(), layers, pd.DataFrame()))
    about = [claim for claim in about if claim.profile is None and claim.runs <= here]
    return claims.details(table, about, ["released"], claims.NO_SPREAD)[["claim", "comparison", "effect", "verdict"]]

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
from rwclib.studies.stored import stored
from rwclib.studies.weightscale import claims as own_claims
from rwclib.studies.weightscale import figures
from rwclib.studies.weightscale.runs import NETWORKS, RESNETS, resolutions
from rwclib.tracker import weight_tensors


def published() -> list[dict]:
    """What the release's notebooks print and its figures show, a dictionary per panel.

    Keys: model, dataset, group, k, sizes by label, labels of the layers in order of depth; for ResNets the first two epochs of
    the printed centroids, else the inertia of the partition; and an independent computation's inertias for k = 1 to 17 (best
    of 50 starts), of the curves (`scree`) and in 2-D (`scree_2d`).
    """
    return json.loads(Path(__file__).with_name("published.json").read_text())


def panels(arrays: pd.DataFrame) -> Iterator[tuple[dict, figures.Panel]]:
    """Each panel of `published` whose array is there, and its curves as the paper prepares them."""
    for panel in published():
        rows = arrays[(arrays["model"] == panel["model"]) & (arrays["dataset"] == panel["dataset"])]
        if len(rows):
            yield panel, figures.panel(rows, panel["dataset"], panel["group"], "rwc_elementwise")


@stored
def recluster(arrays: pd.DataFrame, n_init: int = 10, repeats: int = 20) -> pd.DataFrame:
    """Every published partition beside what k-means finds on the released arrays from `repeats` seeds with `n_init` starts each.

    Returns:
        One row per panel: model, dataset, group, layers, k, `published sizes`, `fixed point` (whether k-means would leave the
        published partition as it is), its inertia, and the least there is (`best`) with `best sizes`; and the adjusted Rand
        index of the seeds' partitions with the published one: least, median, largest.
    """
    from sklearn.metrics import adjusted_rand_score

    rows = []
    for panel, ours in panels(arrays):
        curves, known, k = ours.curves.to_numpy(), panel["labels"], panel["k"]
        partition, least = clustering.partition(curves, known), clustering.least(curves, k)[k]
        by_seed = [clustering.cluster(curves, k, seed, n_init).labels for seed in range(repeats)]
        scores = [adjusted_rand_score(known, labels) for labels in by_seed]
        rows.append({
            "model": ours.model, "dataset": ours.dataset, "group": ours.group, "layers": len(known), "k": k,
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
    for panel, ours in panels(arrays):
        if "centroids" in panel:
            least = clustering.least(ours.curves.to_numpy(), panel["k"])[panel["k"]]
            here = sorted(zip(least.centroids[:, :2].tolist(), least.sizes, strict=True))
            printed = sorted(zip(panel["centroids"], panel["sizes"], strict=True))
            for (epochs, size), (printed_epochs, printed_size) in zip(here, printed, strict=True):
                rows.append((panel["dataset"], size, printed_size, *np.ravel([epochs, printed_epochs], "F")))
    columns = ["epoch 1", "epoch 1, published", "epoch 2", "epoch 2, published"]
    return pd.DataFrame(rows, columns=["dataset", "layers", "published layers", *columns])


def scree(arrays: pd.DataFrame) -> pd.DataFrame:
    """`figures.scree` of every released panel, as `figures.join_panels`."""
    return figures.join_panels(
        [panel for _, panel in panels(arrays)], lambda panel: figures.scree(panel.curves.to_numpy())
    )


def identity(arrays: pd.DataFrame) -> pd.DataFrame:
    """Weight tensors of the released ResNet beside those of ours: number, convolutions per block, shortcuts, same names."""
    released = arrays.loc[arrays["model"] == "resnet34", "layer"].unique()
    networks = {"released": [name.replace("shortcut.0", "downsample.0").replace("linear.", "fc.") for name in released]}
    networks |= {NETWORKS[name]["title"]: list(weight_tensors(models.build(name, num_classes=10))) for name in RESNETS}
    return pd.DataFrame([
        {
            "network": title, "weight tensors": len(names),
            "convolutions per block": sum(name.startswith("layer1.0.conv") for name in names),
            "shortcuts": sum("downsample" in name for name in names),
            "released names": sorted(names) == sorted(networks["released"]),
        }
        for title, names in networks.items()
    ])  # fmt: skip


def infinities(arrays: pd.DataFrame) -> pd.DataFrame:
    """The infinite values of released arrays: model, dataset, layer, epoch."""
    return arrays.loc[np.isinf(arrays["rwc_elementwise"]), ["model", "dataset", "layer", "epoch"]]


def tails(arrays: pd.DataFrame, thresholds: Sequence[float] = (10, 20, 50, 100)) -> pd.DataFrame:
    """How many finite values of each array exceed a threshold, beside what a tail of 1/x predicts from the first count.

    One weight near 0 adds |step| / (|w| n) to its layer's mean of n weights. Where weights have positive density at 0, 1/|w|
    exceeds x with a probability proportional to 1/x: spikes of ten times the size are about ten times as rare. Smaller
    thresholds reach into the bulk of the values.
    """
    rows = []
    for (model, dataset), values in arrays.groupby(["model", "dataset"], sort=False)["rwc_elementwise"]:
        counts = [int((values[np.isfinite(values)] > x).sum()) for x in thresholds]
        rows += [(model, dataset, x, n, counts[0] * thresholds[0] / x) for x, n in zip(thresholds, counts, strict=True)]
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


def depthwise(arrays: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """The released depthwise changes and the share of weights with a gradient, by layer: is one explained by the other?

    Columns: layer, stage, fraction, median (of the cleaned curve), median / fraction.
    """
    rows = arrays[(arrays["model"] == "efficientnet_b4") & (arrays["dataset"] == dataset)]
    median = figures.curves(rows, "DW", "rwc_elementwise").median(axis=1)
    table = gradient_fractions(32).set_index("layer").loc[median.index].assign(median=median).reset_index()
    return table.assign(**{"median / fraction": table["median"] / table["fraction"]})


def prepare_pair(profile: str, **rest: object) -> archive.Tables:
    """The `resolutions` as `prepare` gives them."""
    return replace(own_claims.STUDY, grid=resolutions).prepare(
        profile, ["efficientnet_b4"], datasets=["cifar10"], **rest
    )[0]


def resolution_table(pair: archive.Tables) -> pd.DataFrame:
    """Depthwise change at 32 pixels beside a larger size, one row per layer, of the most telling pair of runs (`prepare_pair`).

    Columns: profile, layer, stage, then per size `<size> px` (median Eq. 1 after the first epoch). Empty without such a pair.
    """
    rows = pair.layers[(pair.layers["epoch"] > 1) & (pair.layers["group"] == "DW")]
    rows = rows.merge(pair.runs[["hash", "image_size"]].drop_duplicates())
    whole = set(rows["profile"][rows.groupby("profile")["hash"].transform("nunique") == 2])
    if not whole:
        return pd.DataFrame()
    rows = rows[rows["profile"] == max(whole, key=list(PROFILES).index)]
    wide = rows.pivot_table("rwc", ["profile", "depth", "layer"], "image_size", "median").droplevel("depth")
    wide = wide.rename(columns="{} px".format).reset_index().rename_axis(columns=None)
    wide.insert(2, "stage", wide["layer"].str.split(".").str[1].astype(int))
    return wide


def resolution_caption(pair: archive.Tables, table: pd.DataFrame) -> str:
    """What `resolution_table` shows, the size of its two runs beside the published, and how far they have learned."""
    runs, layers, last = (
        rows[rows["profile"] == table["profile"].iloc[0]]
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
    """Which single weight makes a layer's elementwise mean: a ResNet-34 of width 8 on 1,024 images of the bundled sample, Adam at 1e-3.

    Columns: epoch, layer, rwc (Eq. 1), rwc_elementwise, `largest share` (of the elementwise sum that one weight makes),
    `weight` (that weight's size over the layer's median size, before the epoch).
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
            ratio, top = step / size, int((step / size).argmax())
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

"""Study 2, WeightScale (IJERTV11IS090108, arXiv 2107.07005): its runs, clustered curves, figures' tables and accuracies.

The text names a ResNet-50, the released code builds a ResNet-34: both are run. What the paper leaves open is as in study 1
(augmentation, normalisation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from rwclib import archive, claims, clustering, data, plotting
from rwclib import models as networks
from rwclib.config import RunConfig, check_profile
from rwclib.errors import ConfigError
from rwclib.studies import base
from rwclib.studies.base import best

STUDY = "weightscale"
DATASETS = ("cifar10", "cifar100", "svhn")
SEEDS = (0, 42)
EPOCHS, DEPTHWISE = 25, 32  # published, and in EfficientNet-B4: of width 64, below it the depth is EfficientNet-B0's
RESNETS = ("resnet50", "resnet34")

# Table 2 of the paper: train top-1, train top-5, test top-1, test top-5 (percent).
_RESNET = {
    "cifar10": (96.1, 99.9, 90.0, 99.75), "cifar100": (92.4, 99.8, 62.4, 87.1), "svhn": (98.9, 99.9, 94.5, 99.3)
}  # fmt: skip
MODELS = {
    "resnet50": {"title": "ResNet-50", "accuracy": _RESNET, "sizes": {"quick": {"n_train": 1536}}},  # the slowest
    "resnet34": {"title": "ResNet-34", "accuracy": _RESNET},
    "efficientnet_b4": {
        "title": "EfficientNet-B4",
        "accuracy": {
            "cifar10": (97.9, 99.9, 89.1, 99.6), "cifar100": (95.1, 99.9, 62.3, 86.7), "svhn": (98.7, 99.9, 95.3, 99.4)
        },
        "sizes": {"paper": {"image_size": 224}},
        "batch_size": 32,  # as the text says; Table 1 says 128, with which the small profiles hardly learn at all
    },
}  # fmt: skip

# Number of clusters of each panel, read off the published figures.
K = {
    "cifar10": {"all": 4, "DW": 5, "PW": 5, "PWL": 4, "SE": 4},
    "cifar100": {"all": 4, "DW": 3, "PW": 3, "PWL": 4, "SE": 4},
    "svhn": {"all": 3, "DW": 3, "PW": 3, "PWL": 4, "SE": 3},
}

# Figures of clustered curves. 1 and 5 are the scree plots of the ResNet and of EfficientNet.
FIGURES = {
    2: ("resnet", "cifar10", "all"), 3: ("resnet", "cifar100", "all"), 4: ("resnet", "svhn", "all"),
    6: ("efficientnet_b4", "cifar10", "DW"), 7: ("efficientnet_b4", "cifar100", "PW"),
    8: ("efficientnet_b4", "svhn", "DW"),
}  # fmt: skip

SIZES = {
    "smoke": {"width": 8, "n_train": 256, "n_test": 128, "epochs": 2, "seeds": SEEDS[:1]},
    "quick": {"width": 8, "n_train": 2048, "n_test": 256, "epochs": 25, "seeds": SEEDS[:1]},
    "reduced": {"width": 16, "n_train": 10_000, "n_test": 2000, "epochs": 25, "seeds": SEEDS},
    "paper": {"width": 64, "n_train": None, "n_test": None, "epochs": 25, "seeds": SEEDS, "precision": "bf16"},
}

# EfficientNet on CIFAR-10 at 32 pixels and at a larger size: pixels, epochs.
RESOLUTIONS = {
    "smoke": ((32, 64), 1), "quick": ((32, 64), 6), "reduced": ((32, 64), 25), "paper": ((32, 224), 25)
}  # fmt: skip


def run_config(profile: str, model: str, dataset: str, seed: int) -> RunConfig:
    """The run of the paper's hyperparameters at the profile's size; `ConfigError` for unknown names."""
    size = {key: value for key, value in SIZES[check_profile(profile)].items() if key != "seeds"}
    if model not in MODELS:
        raise ConfigError(f"unknown model {model!r} in study {STUDY}; known: {', '.join(MODELS)}")
    grey = data.get(dataset).in_channels == 1
    size["batch_size"] = MODELS[model].get("batch_size", 128)
    size |= MODELS[model].get("sizes", {}).get(profile, {})
    return RunConfig(
        study=STUDY, model=model, dataset=dataset, seed=seed, optimizer="adam", lr=1e-3, momentum=0.0, weight_decay=0.0,
        crop_padding=0 if grey else 4, normalize="none" if grey else "imagenet", flip=True, **size,
    )  # fmt: skip


def grid(
    profile: str,
    *,
    models: Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> list[RunConfig]:
    """The runs behind the figures, ordered so that every (model, data set) gets its first seed before any its second."""
    check_profile(profile)
    return [
        run_config(profile, model, dataset, seed)
        for seed in (seeds or SIZES[profile]["seeds"])
        for dataset in (datasets or DATASETS)
        for model in (models or MODELS)
    ]


def resolutions(
    profile: str,
    *,
    models: Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> list[RunConfig]:
    """EfficientNet on one data set (CIFAR-10 if it is asked for), the first seed, at 32 pixels and at a larger size."""
    if "efficientnet_b4" not in (models or MODELS):
        return []
    (sizes, epochs), datasets = RESOLUTIONS[check_profile(profile)], datasets or DATASETS
    on = "cifar10" if "cifar10" in datasets else datasets[0]
    config = run_config(profile, "efficientnet_b4", on, (seeds or SEEDS)[0]).to_dict()
    return [RunConfig(**config | {"image_size": s, "epochs": epochs}) for s in sizes]


def runs(profile: str, **which: Sequence | None) -> list[RunConfig]:
    """All runs of the study at a profile: `grid` and `resolutions`, for fewer, or other, `models`, `datasets`, `seeds`."""
    return list(dict.fromkeys([*grid(profile, **which), *resolutions(profile, **which)]))


def tables(results: str | Path | None = None, profile: str = "best", **which: object) -> archive.Tables:
    """Finished runs of the `grid`, as `base.load`."""
    return base.load(grid, results, profile, **which)


def prepare(profile: str, models: list[str], **rest: object) -> tuple[archive.Tables, list[str]]:
    """What a notebook draws, as `base.prepare`."""
    return base.prepare(grid, profile, models, **rest)


def groups(model: str) -> tuple[str, ...]:
    """The sets of layers that are clustered each on their own: EfficientNet's primitives, a ResNet's layers together."""
    return tuple(networks.PRIMITIVES) if model == "efficientnet_b4" else ("all",)


@dataclass(frozen=True)
class Panel:
    """The curves of one network, data set, group of layers and definition, to be clustered.

    curves: cleaned, one row per layer in order of depth, a column per epoch. k: the published number of clusters, or that of
    distinct layers if there are fewer.
    """

    model: str
    dataset: str
    group: str
    definition: str
    curves: pd.DataFrame
    k: int

    @cached_property
    def labels(self) -> np.ndarray:
        """(layers,) int, from the cluster that moves least; of least inertia, which one random start in fifty may find."""
        found = clustering.least(self.curves.to_numpy(), self.k)[self.k]
        return np.argsort(np.argsort(found.centroids.mean(1)))[found.labels]

    @property
    def title(self) -> str:
        name = MODELS[self.model]["title"] + (f", {self.group}" if self.group != "all" else "")
        return f"{name}, {self.definition}"


def curves(layers: pd.DataFrame, group: str, metric: str) -> pd.DataFrame:
    """One run's curves as the paper prepares them: (layers, epochs), infinities filled and outliers replaced.

    Args:
        layers: tidy table of one run.
        group: a primitive, or `all` layers but the first and the last.
        metric: column of `layers`.
    """
    wide = layers.pivot(index=["depth", "layer"], columns="epoch", values=metric).droplevel("depth")
    of = layers.drop_duplicates("layer").set_index("layer")["group"].loc[wide.index]
    wide = (wide.iloc[1:-1] if group == "all" else wide[of == group]).dropna()  # NaN: a layer whose weights were all 0
    return pd.DataFrame(clustering.clean(wide.to_numpy()), wide.index, wide.columns)


def panel(layers: pd.DataFrame, dataset: str, group: str, metric: str) -> Panel:
    """One run's layers under one definition; arguments as for `curves`."""
    clean = curves(layers, group, metric)
    k = min(K.get(dataset, K["cifar10"])[group], len(np.unique(clean, axis=0)))
    return Panel(layers["model"].iloc[0], dataset, group, claims.DEFINITIONS[metric], clean, k)


def panels(found: archive.Tables, model: str, dataset: str) -> list[Panel]:
    """The panels of a model and data set on its best profile's first seed: each group under both definitions."""
    rows = best(found.layers, model, dataset)
    if rows.empty:
        return []
    rows = rows[rows["seed"] == rows["seed"].min()]
    return [panel(rows, dataset, group, metric) for group in groups(model) for metric in claims.DEFINITIONS]


def figure_table(drawn: Sequence[Panel]) -> pd.DataFrame:
    """The numbers behind clustered curves, one row per panel and cluster.

    Columns: model, group, definition, cluster, layers (number), depth (first and last of the layers clustered), mean and
    peak of the cleaned changes, names (of at most two layers).
    """
    rows = []
    for of in drawn:
        for label in range(of.k):
            inside = np.flatnonzero(of.labels == label)
            values = of.curves.iloc[inside]
            rows.append({
                "model": of.model, "group": of.group, "definition": of.definition, "cluster": label,
                "layers": len(inside), "depth": f"{inside[0] + 1}-{inside[-1] + 1}", "mean": values.to_numpy().mean(),
                "peak": values.to_numpy().max(),
                "names": ", ".join(name.removesuffix(".weight") for name in values.index) if len(inside) < 3 else "",
            })  # fmt: skip
    return pd.DataFrame(rows)


def draw(
    found: archive.Tables, models: Sequence[str], dataset: str, folder: str | Path, prefix: str
) -> tuple[plotting.Figure, pd.DataFrame] | None:
    """Draw and save one data set's clustered curves, a row of panels per network and group, a column per definition.

    Args:
        found: as `tables` gives them.
        models: ResNets, or `efficientnet_b4`.
        dataset: name.
        folder, prefix: files are `<folder>/<prefix>_<figNN_><data set>_clusters.png` and `.pdf`.

    Returns:
        The figure and its numbers; None if no run is there.
    """
    drawn = [of for model in models for of in panels(found, model, dataset)]
    if not drawn:
        return None
    paper = "resnet" if models[0].startswith("resnet") else models[0]
    numbers = {group: number for number, (of, on, group) in FIGURES.items() if (of, on) == (paper, dataset)}
    titles = [f"{of.title} (figure {numbers[of.group]})" if of.group in numbers else of.title for of in drawn]
    figure = plotting.cluster_lines(
        [(title, of.curves, of.labels) for title, of in zip(titles, drawn, strict=True)],
        title=f"{data.get(dataset).title}: layers clustered by their relative weight change",
        caption=caption(found, list(dict.fromkeys(of.model for of in drawn)), dataset),
    )
    number = "".join(f"fig{number:02d}_" for number in numbers.values())
    plotting.save(figure, folder, f"{prefix}_{number}{dataset}_clusters")
    return figure, figure_table(drawn)


def caption(found: archive.Tables, models: Sequence[str], dataset: str) -> str:
    """The captions of several networks on one data set."""
    lines = [
        "cleaned as in the paper (infinities filled, outliers replaced by the layer's mean); clusters of the first seed"
    ]
    for model in models:
        epochs = best(found.runs, model, dataset)["epochs"].max()
        size, learned, copy = base.caption(found, model, dataset, length_words(epochs)).split("\n")
        depth, learned = (
            depth_words(best(found.layers, model, dataset)),
            learned.removesuffix("; band: range over seeds"),
        )
        lines.append(f"{MODELS[model]['title']}{depth}, {size}; {learned}")
    return "\n".join([*lines, copy])


def length_words(epochs: float) -> str:
    return f"{epochs:.0f} epoch{'s' if epochs > 1 else ''} (published: {EPOCHS})"


def depth_words(layers: pd.DataFrame) -> str:
    """In words, that an EfficientNet is not as deep as the published."""
    count = layers.loc[layers["group"] == "DW", "layer"].nunique()
    return f", half as deep ({count} of {DEPTHWISE} depthwise layers)" if 0 < count < DEPTHWISE else ""


def scree_table(found: archive.Tables, models: Sequence[str], datasets: Sequence[str]) -> pd.DataFrame:
    """Inertia and silhouette over k for every panel that has a run, as `scree`."""
    parts = [
        scree(of.curves.to_numpy()).assign(dataset=dataset, model=model, group=of.group, definition=of.definition,
                                                    published=K.get(dataset, K["cifar10"])[of.group])
        for dataset in datasets for model in models for of in panels(found, model, dataset)
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def scree(curves: np.ndarray) -> pd.DataFrame:
    """`clustering.choose_k` on curves and, as the paper's scree plots do it, on their first two principal components.

    Least inertias, not those of a few random starts: these hang on the seed, and the elbow on them.

    Columns: space (`epochs`, `2-D`), k, inertia, share (of the inertia of one cluster), silhouette, elbow, best.
    """
    spaces = {"epochs": curves, "2-D": clustering.project(curves)}
    tables = {space: clustering.choose_k(points, n_init=None) for space, points in spaces.items()}
    return pd.concat(
        [
            table.assign(space=space, share=table["inertia"] / table["inertia"].iloc[0])
            for space, table in tables.items()
        ],
        ignore_index=True,
    )


def choices(scree: pd.DataFrame) -> pd.DataFrame:
    """The numbers of clusters that `scree_table` suggests beside the published: one row per panel and space."""
    keys = ["dataset", "model", "group", "definition", "space"]
    rows = [
        dict(zip(keys, key, strict=True))
        | {kind: str(next(iter(of.loc[of[kind], "k"]), "-")) for kind in ("elbow", "best")}
        | {"best silhouette": of["silhouette"].max(), "published": of["published"].iloc[0]}
        for key, of in scree.groupby(keys, sort=False)
    ]
    return pd.DataFrame(rows)


def stabilities(found: archive.Tables, models: Sequence[str], datasets: Sequence[str]) -> pd.DataFrame:
    """How far a partition survives another random start or other epochs, by scale and method: `clustering.stability`.

    Returns:
        One row per panel, scale and method: median adjusted Rand index over starts (`seeds`) and over bootstraps of the
        epochs (`epochs`).
    """
    rows = []
    for dataset in datasets:
        for model in models:
            for of in panels(found, model, dataset):
                for scale in clustering.SCALES:
                    scaled = clustering.scale(of.curves.to_numpy(), scale)
                    for method in clustering.METHODS:
                        score = clustering.stability(scaled, of.k, method, repeats=4).set_index("over")["median"]
                        rows.append({
                            "dataset": dataset, "model": model, "group": of.group, "definition": of.definition,
                            "scale": scale, "method": method, **score.to_dict(),
                        })  # fmt: skip
    return pd.DataFrame(rows)


def trends(layers: pd.DataFrame, metrics: dict[str, str] = claims.DEFINITIONS) -> pd.DataFrame:
    """Spearman's rank correlation of depth and mean change over the layers of each group: +1 if later layers move more.

    Args:
        layers: tidy table; the means are those of the cleaned curves, averaged over seeds.
        metrics: columns of it and what to call them.
    """
    rows = []
    for model, dataset in layers[["model", "dataset"]].drop_duplicates().itertuples(index=False):
        seeds = [run for _, run in best(layers, model, dataset).groupby("seed")]
        for group in groups(model):
            row = {"model": model, "dataset": dataset, "group": group}
            for metric, name in metrics.items():
                means = pd.concat([curves(run, group, metric).mean(axis=1) for run in seeds], axis=1).mean(axis=1)
                row |= {"layers": len(means), name: means.corr(pd.Series(range(len(means)), means.index), "spearman")}
            rows.append(row)
    return pd.DataFrame(rows)


OUTLIERS = 1 / 8  # of the layers, at most, in an outlier cluster


def spiking(run: pd.DataFrame, dataset: str) -> dict[str, list[str]]:
    """The layers of a run's outlier clusters that move more than the average layer (`spiking`), and the `other` ones.

    Clusters are those of the elementwise curves at the published k.
    """
    of = panel(run, dataset, "all", "rwc_elementwise")
    means, small = of.curves.mean(axis=1).to_numpy(), np.bincount(of.labels) <= OUTLIERS * len(of.labels)
    spikes = small[of.labels] & (means > means.mean())
    return {"spiking": list(of.curves.index[spikes]), "other": list(of.curves.index[~spikes])}


def accuracy_table(epochs: pd.DataFrame, models: Sequence[str] | None = None) -> pd.DataFrame:
    """The four accuracies (percent), each ours over published: one row per model, data set and profile."""
    published = {
        (model, on): dict(zip(base.ACCURACIES, values, strict=True))
        for model in models or MODELS
        for on, values in MODELS[model]["accuracy"].items()
    }
    table = base.accuracies(epochs, published)
    pairs = list(zip(table["model"], table["dataset"], strict=True))
    for kind in base.ACCURACIES:
        ours = [f"{value:.1f}" if value == value else "-" for value in table[kind]]
        table[kind] = [f"{value} ({published[pair][kind]})" for value, pair in zip(ours, pairs, strict=True)]
    return table

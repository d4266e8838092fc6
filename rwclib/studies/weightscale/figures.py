"""The clustered curves and tables behind study 2's figures, and how they are drawn."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from rwclib.analysis import clustering, plotting, plotting_runs
from rwclib.analysis.claims import DEFINITIONS
from rwclib.runs import archive, data, models
from rwclib.studies import captions
from rwclib.studies.captions import ACCURACIES, at_largest_profile
from rwclib.studies.stored import stored
from rwclib.studies.weightscale.runs import DEPTHWISE, EPOCHS, NETWORKS

# Number of clusters of each panel, read off the published figures.
K = {
    "cifar10": {"all": 4, "DW": 5, "PW": 5, "PWL": 4, "SE": 4},
    "cifar100": {"all": 4, "DW": 3, "PW": 3, "PWL": 4, "SE": 4},
    "svhn": {"all": 3, "DW": 3, "PW": 3, "PWL": 4, "SE": 3},
}

# Figures of clustered curves. 1 and 5 are the scree plots of the ResNet and of EfficientNet.
FIGURES = {
    ("ResNet", "cifar10", "all"): 2, ("ResNet", "cifar100", "all"): 3, ("ResNet", "svhn", "all"): 4,
    ("EfficientNet", "cifar10", "DW"): 6, ("EfficientNet", "cifar100", "PW"): 7, ("EfficientNet", "svhn", "DW"): 8,
}  # fmt: skip
OUTLIERS = 1 / 8  # of the layers, at most, in an outlier cluster


def groups(model: str) -> tuple[str, ...]:
    """The sets of layers that are clustered each on their own: EfficientNet's primitives, a ResNet's layers together."""
    return tuple(models.PRIMITIVES) if model == "efficientnet_b4" else ("all",)


@dataclass(frozen=True)
class Panel:
    """The cleaned curves (layers in order of depth, epochs) of one network, data set, group of layers and definition."""

    model: str
    dataset: str
    group: str
    definition: str
    curves: pd.DataFrame

    @cached_property
    def labels(self) -> np.ndarray:
        """(layers,) int, from the cluster that moves least; of least inertia, which one random start in fifty may find."""
        least = clustering.least(self.curves.to_numpy(), self.k)[self.k]
        return np.argsort(np.argsort(least.centroids.mean(1)))[least.labels]

    @property
    def published(self) -> int:
        """The published number of clusters; on other data sets that of CIFAR-10."""
        return K.get(self.dataset, K["cifar10"])[self.group]

    @cached_property
    def k(self) -> int:
        """The published number of clusters, or that of distinct layers if there are fewer."""
        return min(self.published, len(np.unique(self.curves, axis=0)))

    @property
    def number(self) -> int | None:
        """That of the published figure, if there is one."""
        return FIGURES.get((NETWORKS[self.model]["title"].split("-")[0], self.dataset, self.group))

    @property
    def title(self) -> str:
        """The network, the primitive, the definition and the published figure."""
        parts = (NETWORKS[self.model]["title"], self.group.replace("all", ""), self.definition)
        return ", ".join(filter(None, parts)) + (f" (figure {self.number})" if self.number else "")


def curves(layers: pd.DataFrame, group: str, metric: str) -> pd.DataFrame:
    """One run's `metric` as the paper prepares it: (layers, epochs), infinities filled and outliers replaced.

    `group` is a primitive, or `all` layers but the first and the last.
    """
    wide = layers.pivot(index=["depth", "layer", "group"], columns="epoch", values=metric)
    wide = wide.iloc[1:-1] if group == "all" else wide[wide.index.get_level_values("group") == group]
    wide = wide.droplevel(["depth", "group"]).dropna()  # NaN: a layer whose weights were all 0
    return pd.DataFrame(clustering.clean(wide.to_numpy()), wide.index, wide.columns)


def panel(layers: pd.DataFrame, dataset: str, group: str, metric: str) -> Panel:
    """One run's layers under one definition; arguments as for `curves`."""
    return Panel(layers["model"].iloc[0], dataset, group, DEFINITIONS[metric], curves(layers, group, metric))


def panels(tables: archive.Tables, models: Sequence[str], datasets: Sequence[str]) -> list[Panel]:
    """Of each model and data set the panels at its largest profile and first seed: each group under both definitions."""
    drawn = []
    for dataset, model in itertools.product(datasets, models):
        rows = at_largest_profile(tables.layers, model, dataset)
        rows = rows[rows["seed"] == rows["seed"].min()]
        drawn += [panel(rows, dataset, group, metric) for group in groups(model) for metric in DEFINITIONS if len(rows)]
    return drawn


def figure_table(drawn: Sequence[Panel]) -> pd.DataFrame:
    """The numbers behind clustered curves, one row per panel and cluster.

    Columns: model, group, definition, cluster, layers (number), depth (first and last of the layers clustered), mean and
    peak of the cleaned changes, names (of at most two layers).
    """
    rows = []
    for panel in drawn:
        for label in range(panel.k):
            members = np.flatnonzero(panel.labels == label)
            names = panel.curves.index[members].str.removesuffix(".weight")
            values = panel.curves.iloc[members].to_numpy()
            rows.append({
                "model": panel.model, "group": panel.group, "definition": panel.definition, "cluster": label,
                "layers": len(members), "depth": f"{members[0] + 1}-{members[-1] + 1}", "mean": values.mean(),
                "peak": values.max(), "names": ", ".join(names) if len(members) < 3 else "",
            })  # fmt: skip
    return pd.DataFrame(rows)


def draw(
    tables: archive.Tables, models: Sequence[str], dataset: str, folder: str | Path, prefix: str
) -> tuple[plotting.Figure, pd.DataFrame] | None:
    """Draw and save one data set's clustered curves, a row of panels per network and group, a column per definition.

    Files are `<folder>/<prefix>_<figNN_><data set>_clusters.png` and `.pdf`. Returns the figure and its numbers; None without runs.
    """
    drawn = panels(tables, models, [dataset])
    if not drawn:
        return None
    figure = plotting_runs.cluster_lines(
        [(panel.title, panel.curves, panel.labels) for panel in drawn],
        title=f"{data.get(dataset).title}: layers clustered by their relative weight change",
        caption=caption(tables, list(dict.fromkeys(panel.model for panel in drawn)), dataset),
    )
    numbers = "".join(f"fig{number:02d}_" for number in sorted({panel.number for panel in drawn} - {None}))
    plotting.save(figure, folder, f"{prefix}_{numbers}{dataset}_clusters")
    return figure, figure_table(drawn)


def caption(tables: archive.Tables, models: Sequence[str], dataset: str) -> str:
    """The captions of several networks on one data set."""
    cleaned = "cleaned as in the paper (infinities filled, outliers replaced by the layer's mean)"
    lines = [f"{cleaned}; clusters of the first seed"]
    for model in models:
        epochs = at_largest_profile(tables.runs, model, dataset)["epochs"].max()
        size, learned, copy = captions.caption(tables, model, dataset, length_words(epochs)).split("\n")
        depth = depth_words(at_largest_profile(tables.layers, model, dataset))
        lines.append(f"{NETWORKS[model]['title']}{depth}, {size}; {learned.removesuffix('; band: range over seeds')}")
    return "\n".join([*lines, copy])


def length_words(epochs: float) -> str:
    """The number of epochs beside the published."""
    return f"{epochs:.0f} epoch{'s' if epochs > 1 else ''} (published: {EPOCHS})"


def depth_words(layers: pd.DataFrame) -> str:
    """In words, that an EfficientNet is not as deep as the published."""
    count = layers.loc[layers["group"] == "DW", "layer"].nunique()
    return f", half as deep ({count} of {DEPTHWISE} depthwise layers)" if 0 < count < DEPTHWISE else ""


def scree_table(tables: archive.Tables, models: Sequence[str], datasets: Sequence[str]) -> pd.DataFrame:
    """`scree` of every panel that has a run, as `join_panels`."""
    return join_panels(panels(tables, models, datasets), lambda panel: scree(panel.curves.to_numpy()))


def stabilities(tables: archive.Tables, models: Sequence[str], datasets: Sequence[str]) -> pd.DataFrame:
    """`stability` of every panel that has a run, as `join_panels`."""
    return join_panels(panels(tables, models, datasets), lambda panel: stability(panel.curves.to_numpy(), panel.k))


def join_panels(panels: Sequence[Panel], measure: Callable[[Panel], pd.DataFrame]) -> pd.DataFrame:
    """Tables of panels below each other, with dataset, model, group, definition and published k."""
    names = ("dataset", "model", "group", "definition", "published")
    parts = [measure(panel).assign(**{name: getattr(panel, name) for name in names}) for panel in panels]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


@stored
def scree(curves: np.ndarray) -> pd.DataFrame:
    """`clustering.choose_k` on curves and, as the paper's scree plots do it, on their first two principal components.

    Least inertias, not those of a few random starts: these hang on the seed, and the elbow on them.

    Columns: space (`epochs`, `2-D`), k, inertia, share (of the inertia of one cluster), silhouette, elbow, best.
    """
    parts = []
    for space, points in (("epochs", curves), ("2-D", clustering.project(curves))):
        table = clustering.choose_k(points, n_init=None)
        parts.append(table.assign(space=space, share=table["inertia"] / table["inertia"].iloc[0]))
    return pd.concat(parts, ignore_index=True)


def choices(scree: pd.DataFrame) -> pd.DataFrame:
    """The numbers of clusters that `scree_table` suggests beside the published: one row per panel and space."""
    keys, rows = ["dataset", "model", "group", "definition", "space"], []
    for key, table in scree.groupby(keys, sort=False):
        elbow, best = (str(next(iter(table.loc[table[kind], "k"]), "-")) for kind in ("elbow", "best"))
        rows.append((*key, elbow, best, table["silhouette"].max(), table["published"].iloc[0]))
    return pd.DataFrame(rows, columns=[*keys, "elbow", "best", "best silhouette", "published"])


@stored
def stability(curves: np.ndarray, k: int) -> pd.DataFrame:
    """How far a partition into k clusters survives another random start or other epochs, by scale and method.

    Columns: scale, method, and of `clustering.stability` the median over starts (`seeds`) and over bootstraps of the `epochs`.
    """
    rows = []
    for scale, method in itertools.product(clustering.SCALES, clustering.METHODS):
        agreement = clustering.stability(clustering.scale(curves, scale), k, method, repeats=4)
        rows.append({"scale": scale, "method": method, **agreement.set_index("over")["median"].to_dict()})
    return pd.DataFrame(rows)


def trends(layers: pd.DataFrame, metrics: dict[str, str] = DEFINITIONS) -> pd.DataFrame:
    """Spearman's rank correlation of depth and mean change over the layers of each group: +1 if later layers move more.

    The means are those of the cleaned curves, averaged over seeds; `metrics` are columns and what to call them.
    """
    rows = []
    for model, dataset in layers[["model", "dataset"]].drop_duplicates().itertuples(index=False):
        seeds = [run for _, run in at_largest_profile(layers, model, dataset).groupby("seed")]
        for group in groups(model):
            row = {"model": model, "dataset": dataset, "group": group}
            for metric, name in metrics.items():
                means = pd.concat([curves(run, group, metric).mean(axis=1) for run in seeds], axis=1).mean(axis=1)
                row |= {"layers": len(means), name: spearmanr(range(len(means)), means).statistic}
            rows.append(row)
    return pd.DataFrame(rows)


def spiking(run: pd.DataFrame, dataset: str) -> dict[str, list[str]]:
    """The layers of a run's outlier clusters that move more than the average layer (`spiking`), and the `other` ones.

    Clusters are those of the elementwise curves at the published k.
    """
    clusters = panel(run, dataset, "all", "rwc_elementwise")
    means = clusters.curves.mean(axis=1)
    small = np.bincount(clusters.labels) <= OUTLIERS * len(means)
    spikes = small[clusters.labels] & (means > means.mean())
    return {"spiking": list(means.index[spikes]), "other": list(means.index[~spikes])}


def accuracy_table(epochs: pd.DataFrame, models: Sequence[str] | None = None) -> pd.DataFrame:
    """The four accuracies (percent), each ours over published: one row per model, data set and profile."""
    published = {
        (model, dataset): dict(zip(ACCURACIES, values, strict=True))
        for model in models or NETWORKS
        for dataset, values in NETWORKS[model]["accuracy"].items()
    }
    table = captions.accuracies(epochs, published)
    for kind in ACCURACIES:
        ours = table[kind].map("{:.1f}".format).replace("nan", "-")
        theirs = [str(published[pair][kind]) for pair in zip(table["model"], table["dataset"], strict=True)]
        table[kind] = ours + " (" + theirs + ")"
    return table

"""Drawing of figures about layers, from tidy tables only; `plotting_runs` has those about whole runs."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import figure as mpl_figure

from rwclib.metrics import METRICS

LABELS = {
    "rwc": "relative weight change, Eq. 1 (ratio)",
    "rwc_elementwise": "elementwise mean change (ratio)",
    "rwc_median": "elementwise median change (ratio)",
    "l2_ratio": "L2 relative change (ratio)",
    "cosine": "cosine to the step before",
    "l1_norm": "L1 norm",
    "l2_norm": "L2 norm",
}
STYLE = {"axes.grid": True, "grid.alpha": 0.25, "axes.spines.top": False, "axes.spines.right": False, "font.size": 9}
# Seaborn's palette `colorblind`; seaborn itself is imported where it draws, since that takes seconds.
COLORS = (
    "#0173B2", "#DE8F05", "#029E73", "#D55E00", "#CC78BC", "#CA9161", "#FBAFE4", "#949494", "#ECE133", "#56B4E9",
)  # fmt: skip


class Figure(mpl_figure.Figure):
    """A matplotlib figure that shows itself in a notebook without pyplot, with an alternative text for screen readers."""

    alt = "figure"
    saved: bytes | None = None  # as `save` wrote it: drawing takes a second

    def _repr_png_(self) -> tuple[bytes, dict]:
        if self.saved is None:
            buffer = io.BytesIO()
            self.savefig(buffer, dpi=110, metadata={"Software": None}, pil_kwargs={"optimize": True})
            return buffer.getvalue(), {"alt": self.alt}
        return self.saved, {"alt": self.alt}

    def legend_above(self, columns: int, title: str = "", first: mpl.axes.Axes | None = None) -> None:
        """One legend for all panels, each label once; those of the panel `first` before the others."""
        panels = [axes.get_legend_handles_labels() for axes in ([first] if first else []) + self.axes]
        entries = {label: line for panel in panels for line, label in zip(*panel, strict=True)}
        looks = {"loc": "outside upper center", "frameon": False, "fontsize": 8}
        self.legend(entries.values(), entries.keys(), ncols=columns, title=title, **looks)

    def caption_below(self, text: str) -> None:
        """Small words below the panels; lines longer than the figure is wide are broken."""
        self.supxlabel(text, fontsize=7, color="0.35", wrap=True)


def write_out(axis: mpl.axis.Axis) -> None:
    """Plain numbers on a logarithmic axis: 1, 2 and 5 of every decade where it has few."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(mpl.ticker.NullFormatter())


def layer_lines(table: pd.DataFrame, metric: str = "rwc") -> Figure:
    """One line per layer, `metric` against the step, coloured from the first layer to the last; logarithmic over a decade or more.

    Args:
        table: columns step, layer, depth and `metric`, as `RWCTracker.table()` gives it.
    """
    import seaborn as sns

    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; known: {', '.join(METRICS)}")
    layers = list(dict.fromkeys(table["layer"]))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7, 3.8), layout="constrained")
        axes = figure.subplots()
        colors = sns.color_palette("viridis", len(layers)) if layers else []
        for layer, color in zip(layers, colors, strict=True):
            rows = table[table["layer"] == layer]
            axes.plot(
                rows["step"], rows[metric].where(np.isfinite(rows[metric])), color=color, lw=1.3, marker="o", ms=2.5
            )
        if 0 < len(layers) <= 12:
            axes.legend(layers, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        elif layers:
            scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(1, len(layers)), "viridis")
            bar = figure.colorbar(scale, ax=axes)
            bar.set_label("depth of the layer (1 = nearest the input)")
        figure.alt = f"{LABELS[metric]} of {len(layers)} layers against the step"
        axes.set(xlabel="step", ylabel=LABELS[metric])
        finite = table[metric][np.isfinite(table[metric])]
        if len(finite) and 0 < 10 * finite.min() <= finite.max():
            axes.set_yscale("log")
            write_out(axes.yaxis)
        axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    return figure


def group_lines(
    layers: pd.DataFrame,
    groups: Sequence[str],
    *,
    title: str,
    caption: str,
    order: Sequence[str] = (),
    published: Mapping[str, float] | None = None,
    metrics: Sequence[str] = ("rwc", "rwc_elementwise"),
) -> Figure:
    """A panel per definition, logarithmic: a thin line per layer, each group's median over its layers, published medians.

    Over seeds the lines are means of the logarithms; the band is the range of the groups' medians.

    Args:
        layers: tidy table of one model and data set with columns epoch, seed, group, layer and `metrics`.
        groups: the layer groups to draw.
        title, caption: above and below the panels.
        order: all groups of the network, each of which has its own colour in all figures; `groups` if empty.
        published: the published figure's median by group; drawn where the axis shows what the paper's code computed.
        metrics: one panel each.
    """
    import seaborn as sns

    rows = layers[layers["group"].isin(groups)]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4), layout="constrained")
        for axes, metric in zip(np.atleast_1d(figure.subplots(1, len(metrics))), metrics, strict=True):
            axes.set_yscale("log")
            for group in groups:
                color = COLORS[list(order or groups).index(group)]
                of_group = rows[rows["group"] == group]
                for _, line in of_group.groupby("layer", sort=False):
                    logs = np.log(line[metric].where(line[metric].between(0, np.inf, "neither")))
                    mean = np.exp(logs.groupby(line["epoch"]).mean())
                    axes.plot(mean.index, mean, color=color, lw=0.6, alpha=0.55)
                seeds = of_group.groupby(["seed", "epoch"])[metric].median().reset_index(name="value")
                sns.lineplot(
                    seeds[seeds["value"].between(0, np.inf, "neither")], x="epoch", y="value", ax=axes, color=color, lw=2.2,
                    errorbar=("pi", 100), label=f"{group} median",
                )  # fmt: skip
                if metric == "rwc_elementwise" and published and group in published:
                    axes.axhline(published[group], color=color, ls="--", lw=1.1, label=f"{group} published median")
            axes.set(xlabel="epoch", ylabel=LABELS[metric])
            write_out(axes.yaxis)
            axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
            axes.get_legend().remove()  # seaborn's
        figure.legend_above(len(groups), title, first=axes)  # with the published medians
        figure.alt = f"{title}: relative weight change by epoch, a line per layer, under both definitions"
        figure.caption_below(caption)
    return figure


def group_medians(medians: pd.DataFrame, *, title: str, caption: str) -> Figure:
    """Median RWC by group, one panel per data set: both definitions, and the published; over seeds means of the logarithms.

    Args:
        medians: columns dataset, panel (its title), group, source (`Eq. 1`, `elementwise`, `published`), value; several rows per seed.
    """
    import seaborn as sns

    panels = medians.loc[medians["source"] != "published", ["panel", "dataset"]].drop_duplicates()
    looks = {"Eq. 1": (COLORS[0], "-", "o"), "elementwise": (COLORS[1], "-", "s"), "published": ("0.35", "--", "D")}
    labels = {
        "Eq. 1": "ours, Eq. 1 (median)",
        "elementwise": "ours, elementwise (median)",
        "published": "published figures, elementwise (median)",
    }
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.9 * len(panels) + 1, 4), layout="constrained")
        row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, panel, dataset in zip(row, panels["panel"], panels["dataset"], strict=True):
            axes.set_yscale("log")
            for source, (color, line, marker) in looks.items():
                rows = medians[(medians["dataset"] == dataset) & (medians["source"] == source)]
                sns.lineplot(
                    rows[rows["value"].between(0, np.inf, "neither")], x="group", y="value", ax=axes, color=color, linestyle=line, marker=marker, markersize=6,
                    errorbar=("pi", 100), err_style="bars", label=labels[source], legend=False,
                )  # fmt: skip
            axes.set_title(panel, fontsize=8)
            axes.set(xlabel="", ylabel="relative weight change (ratio)")
            axes.tick_params(axis="x", rotation=40)
        for axes in row:
            write_out(axes.yaxis)
        figure.legend_above(3, title)
        figure.alt = f"{title}, both definitions and the published medians"
        figure.caption_below(caption)
    return figure


def measures_by_size(table: pd.DataFrame, *, caption: str) -> Figure:
    """Each measure of simulated change against the number of weights, both axes logarithmic, bands from p10 to p90.

    Args:
        table: columns size, measure, median, p10, p90.
        caption: below the panel.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6, 3.6), layout="constrained")
        axes = figure.subplots()
        looks = zip(COLORS, ("-", "-", ":"), "os.", strict=False)  # Eq. 1 and the median lie on one another
        for (color, line, marker), (measure, rows) in zip(looks, table.groupby("measure", sort=False), strict=False):
            axes.plot(rows["size"], rows["median"], line, color=color, marker=marker, ms=5, lw=2, label=measure)
            axes.fill_between(rows["size"], rows["p10"], rows["p90"], color=color, alpha=0.2, lw=0)
        axes.set(xscale="log", yscale="log", xlabel="weights in the layer", ylabel="relative change (ratio)")
        write_out(axes.yaxis)
        axes.legend(frameon=False, fontsize=8)
        figure.alt = (
            "Eq. 1, the elementwise mean and the elementwise median of simulated change against the layer's size"
        )
        figure.caption_below(caption)
    return figure


def definitions_by_layer(medians: pd.DataFrame, *, titles: Mapping[str, str], caption: str) -> Figure:
    """Elementwise mean against Eq. 1, a point per layer, a panel per data set; both axes logarithmic.

    Args:
        medians: columns model, dataset, `Eq. 1`, `elementwise`.
        titles: of the models and data sets.
        caption: below the panels.
    """
    datasets = list(dict.fromkeys(medians["dataset"]))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.2 * len(datasets) + 0.6, 3.4), layout="constrained")
        row = figure.subplots(1, len(datasets), sharex=True, sharey=True, squeeze=False)[0]
        for axes, dataset in zip(row, datasets, strict=True):
            for color, marker, (model, rows) in zip(
                COLORS, "os^", medians[medians["dataset"] == dataset].groupby("model", sort=False), strict=False
            ):
                axes.plot(
                    rows["Eq. 1"], rows["elementwise"], marker, color=color, ms=4, mec="none", label=titles[model]
                )  # fmt: skip
            ends = np.array([medians["Eq. 1"].min(), medians["Eq. 1"].max()])
            axes.plot(ends, ends, color="0.5", lw=0.8, ls=":", label="equal")
            axes.set(xscale="log", yscale="log", title=titles[dataset], xlabel="Eq. 1 (ratio)")
            axes.title.set_fontsize(9)
            write_out(axes.xaxis)
            write_out(axes.yaxis)
        row[0].set_ylabel("elementwise mean (ratio)")
        figure.legend_above(4)
        figure.alt = "Each layer's change, the elementwise mean against Eq. 1, with the line of equality"
        figure.caption_below(caption)
    return figure


def cluster_lines(
    panels: Sequence[tuple[str, pd.DataFrame, np.ndarray]], *, title: str, caption: str, columns: int = 2
) -> Figure:
    """A panel per clustering: a line per layer in its cluster's colour, the cluster's mean as a thick line.

    Args:
        panels: title, curves (layers, epochs) and labels (layers,) int of each; filled row by row.
        title, caption: above and below the panels.
        columns: panels in a row.
    """
    rows = -(-len(panels) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.7 * columns, 2.3 * rows + 0.9), layout="constrained")
        for axes, (name, curves, labels) in zip(
            figure.subplots(rows, columns, squeeze=False).flat, panels, strict=False
        ):
            top = 1.5 * np.quantile(curves.to_numpy(), 0.99)
            for label in np.unique(labels):
                inside, color = curves[labels == label], COLORS[label % len(COLORS)]
                axes.plot(curves.columns, inside.T, color=color, lw=0.6, alpha=0.55)
                axes.plot(curves.columns, inside.mean(), color=color, lw=2, label=f"{len(inside)}")
                top = max(top, 1.05 * inside.mean().max() if len(inside) > 2 else 0)
            cut = int((curves.to_numpy() > 1.2 * top).sum())
            axes.set_ylim(0, 1.2 * min(top, curves.to_numpy().max()))  # room for the legend
            axes.set_title(name + (f"\n{cut} value{'s' * (cut > 1)} beyond the axis" if cut else ""), fontsize=8)
            looks = {"frameon": True, "framealpha": 0.8, "edgecolor": "none", "handlelength": 1.2}
            axes.legend(
                fontsize=7, ncols=5, loc="upper right", title="layers in each cluster", title_fontsize=7, **looks
            )
            axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        for axes in figure.axes[-columns:]:
            axes.set_xlabel("epoch")
        figure.supylabel("relative weight change (ratio)", fontsize=9)
        figure.suptitle(title, fontsize=10)
        figure.alt = f"{title}: a line per layer, coloured by cluster"
        figure.caption_below(caption)
    return figure


def scree_lines(table: pd.DataFrame, *, title: str, caption: str, columns: int) -> Figure:
    """Inertia over the number of clusters as a share of that of one cluster; circles at the elbows, a line at the published k.

    Args:
        table: columns panel, line, k, share, elbow (bool), published.
        title, caption: above and below the panels.
        columns: panels in a row.
    """
    names, lines = table["panel"].unique(), list(table["line"].unique())
    rows = -(-len(names) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.4 * columns + 0.4, 2.1 * rows + 1.1), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axes, name in zip(grid.flat, names, strict=False):
            of = table[table["panel"] == name]
            for line, part in of.groupby("line", sort=False):
                color = COLORS[lines.index(line)]
                axes.plot(part["k"], part["share"], color=color, lw=1.3, marker=".", ms=4, label=line)
                elbow = part[part["elbow"]]
                axes.plot(elbow["k"], elbow["share"], "o", mfc="none", mec=color, ms=9, label="_")
            axes.axvline(of["published"].iloc[0], color="0.5", ls=":", lw=1, label="published k")
            axes.set_title(name, fontsize=8)
        for axes in list(grid.flat)[len(names) :]:
            axes.set_visible(False)
        figure.legend_above(3, title)
        figure.supylabel("inertia / inertia of one cluster", fontsize=9)
        figure.caption_below(f"number of clusters k\n{caption}")
        figure.alt = f"{title}: inertia over the number of clusters"
    return figure


def by_depth(table: pd.DataFrame, *, caption: str, ylabel: str) -> Figure:
    """A line per column of `table` against the layers in order of depth, logarithmic; the caption below."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.subplots()
        for color, marker, name in zip(COLORS, "os^D", table.columns, strict=False):
            axes.plot(range(1, len(table) + 1), table[name], color=color, marker=marker, ms=4, lw=1.3, label=name)
        axes.set(yscale="log", xlabel="layer, in order of depth", ylabel=ylabel)
        write_out(axes.yaxis)
        axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        axes.legend(frameon=False, fontsize=8)
        figure.alt = f"{ylabel} by depth: {', '.join(table.columns)}"
        figure.caption_below(caption)
    return figure


def save(figure: Figure, folder: str | Path, name: str) -> Path:
    """Write `<folder>/<name>.png` and `.pdf`, without dates, so that the same numbers give the same files."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None})
    path = folder / f"{name}.png"
    figure.saved = None
    figure.saved = figure._repr_png_()[0]
    path.write_bytes(figure.saved)
    return path

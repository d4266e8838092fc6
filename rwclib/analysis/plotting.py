"""Drawing of figures about layers, from tidy tables only; `plotting_runs` has those about runs, clusters, features and filters."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import figure as mpl_figure

from rwclib import _places
from rwclib.errors import ConfigError
from rwclib.metrics import METRICS

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

    def show(self, warn: bool = True) -> None:
        """Open a window, as pyplot's figures do: for scripts; in a notebook the figure as a cell's last line is enough."""
        import matplotlib.pyplot as plt

        window = plt.figure(FigureClass=mpl_figure.Figure).canvas.manager
        window.canvas.figure = self
        self.set_canvas(window.canvas)
        plt.show()

    def legend_above(self, columns: int, title: str = "", first: mpl.axes.Axes | None = None) -> None:
        """One legend for all panels, each label once; those of the panel `first` before the others."""
        panels = [axes.get_legend_handles_labels() for axes in ([first] if first else []) + self.axes]
        entries = {label: line for panel in panels for line, label in zip(*panel, strict=True)}
        looks = {"loc": "outside upper center", "frameon": False, "fontsize": 8}
        self.legend(entries.values(), entries.keys(), ncols=columns, title=title, **looks)


@contextmanager
def frame(
    rows: int = 1,
    columns: int = 1,
    *,
    size: tuple[float, float],
    alt: str,
    caption: str = "",
    title: str = "",
    grid: bool = True,
    **shared: object,
) -> Iterator[tuple[Figure, np.ndarray]]:
    """A figure in the house style and its panels (rows, columns); panels in which nothing was drawn are hidden at the end.

    Args:
        size: width and height in inches.
        alt: what the figure shows, for screen readers.
        caption: small words below the panels; lines longer than the figure is wide are broken.
        title: above the panels. A figure with a legend there gives its title to `Figure.legend_above` instead.
        grid: whether the panels have grid lines.
        shared: `sharex` and `sharey`, as matplotlib's `subplots` takes them.
    """
    with mpl.rc_context({**STYLE, "axes.grid": grid}):
        figure = Figure(figsize=size, layout="constrained")
        figure.alt = alt
        panels = figure.subplots(rows, columns, squeeze=False, **shared)
        yield figure, panels
        for axes in panels.flat:
            axes.set_visible(axes.has_data())
        if title:
            figure.suptitle(title, fontsize=10)
        if caption:
            figure.supxlabel(caption, fontsize=7, color="0.35", wrap=True)


def unique(column: pd.Series) -> list:
    """The column's values in the order of their first rows."""
    return list(dict.fromkeys(column))


def whole_numbers(axis: mpl.axis.Axis) -> None:
    """Ticks at whole numbers alone."""
    axis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))


def write_out(axis: mpl.axis.Axis) -> None:
    """Plain numbers on a logarithmic axis: 1, 2 and 5 of every decade where it has few."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(mpl.ticker.NullFormatter())


def layer_lines(table: pd.DataFrame, metric: str = "rwc", expected: pd.DataFrame | None = None) -> Figure:
    """One line per layer, `metric` against the step, coloured from the first layer to the last; logarithmic over a decade or more.

    Args:
        table: columns step, layer, depth and `metric`, as `RWCTracker.table()` gives it.
        expected: drawn dashed: columns layer and `metric`, as `RWCTracker.expected()` gives it.
    """
    import seaborn as sns

    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; known: {', '.join(METRICS)}")
    if isinstance(expected, pd.DataFrame) and metric not in expected:
        raise ConfigError(f"the theory expects rwc and l2_ratio, not {metric}; plot those, or without expected")
    layers = unique(table["layer"])
    finite = table[metric].where(np.isfinite(table[metric]))
    with frame(size=(7, 3.8), alt=f"{METRICS[metric].axis} of {len(layers)} layers against the step") as (
        figure,
        panels,
    ):
        axes = panels[0, 0]
        colors = sns.color_palette("viridis", len(layers)) if layers else []
        curves = table.assign(value=finite).groupby("layer", sort=False)
        for (_, rows), color in zip(curves, colors, strict=True):
            axes.plot(rows["step"], rows["value"], color=color, lw=1.3, marker="o", ms=2.5)
        if 0 < len(layers) <= 12:
            axes.legend(layers, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        elif layers:
            scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(1, len(layers)), "viridis")
            figure.colorbar(scale, ax=axes).set_label("depth of the layer (1 = nearest the input)")
        if isinstance(expected, pd.DataFrame):  # after the legend, which has one entry per line so far
            values = expected.set_index("layer")[metric].reindex(layers)
            for value, color in zip(values, colors, strict=True):
                axes.axhline(value, color=color, ls="--", lw=1)
        axes.set(xlabel="step", ylabel=METRICS[metric].axis)
        if 0 < 10 * finite.min() <= finite.max():
            axes.set_yscale("log")
            write_out(axes.yaxis)
        whole_numbers(axes.xaxis)
    axes.set_visible(True)  # without layers too
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

    alt = f"{title}: {' and '.join(METRICS[metric].axis for metric in metrics)} by epoch, a line per layer"
    with frame(1, len(metrics), size=(7.2, 4), alt=alt, caption=caption) as (figure, panels):
        for axes, metric in zip(panels[0], metrics, strict=True):
            axes.set_yscale("log")
            drawable = layers.assign(value=layers[metric].where(_positive(layers[metric])))
            for group in groups:
                color = COLORS[list(order or groups).index(group)]
                rows = drawable[drawable["group"] == group]
                for _, line in rows.groupby("layer", sort=False):
                    mean = np.exp(np.log(line["value"]).groupby(line["epoch"]).mean())
                    axes.plot(mean.index, mean, color=color, lw=0.6, alpha=0.55)
                medians = rows.groupby(["seed", "epoch"])[metric].median().reset_index(name="value")
                looks = {"color": color, "lw": 2.2, "errorbar": ("pi", 100), "label": f"{group} median"}
                sns.lineplot(medians[_positive(medians["value"])], x="epoch", y="value", ax=axes, **looks)
                if metric == "rwc_elementwise" and published and group in published:
                    axes.axhline(published[group], color=color, ls="--", lw=1.1, label=f"{group} published median")
            axes.set(xlabel="epoch", ylabel=METRICS[metric].axis)
            write_out(axes.yaxis)
            whole_numbers(axes.xaxis)
            axes.get_legend().remove()  # seaborn's
        figure.legend_above(len(groups), title, first=axes)  # with the published medians
    return figure


def _positive(values: pd.Series) -> pd.Series:
    return values.between(0, np.inf, "neither")


def group_medians(
    medians: pd.DataFrame, *, title: str, caption: str, expected: Mapping[str, float] | None = None
) -> Figure:
    """Median RWC by group, one panel per data set: both definitions, and the published; over seeds means of the logarithms.

    Args:
        medians: columns dataset, panel (its title), group, source (`Eq. 1`, `elementwise`, `published`), value; several rows per seed.
        expected: under Eq. 1, by data set; drawn dashed.
    """
    import seaborn as sns

    titles = medians.loc[medians["source"] != "published", ["panel", "dataset"]].drop_duplicates()
    looks = {
        "Eq. 1": {"color": COLORS[0], "marker": "o", "label": "ours, Eq. 1 (median)"},
        "elementwise": {"color": COLORS[1], "marker": "s", "label": "ours, elementwise (median)"},
        "published": {"color": "0.35", "marker": "D", "label": "published figures, elementwise (median)", "ls": "--"},
    }
    bars = {"markersize": 6, "errorbar": ("pi", 100), "err_style": "bars", "legend": False}
    size, alt = (1.9 * len(titles) + 1, 4), f"{title}, both definitions and the published medians"
    with frame(1, len(titles), size=size, alt=alt, caption=caption, sharey=True) as (figure, panels):
        for axes, name, dataset in zip(panels[0], titles["panel"], titles["dataset"], strict=True):
            axes.set_yscale("log")
            for source, look in looks.items():
                rows = medians[(medians["dataset"] == dataset) & (medians["source"] == source)]
                sns.lineplot(rows[_positive(rows["value"])], x="group", y="value", ax=axes, **look, **bars)
            if expected and dataset in expected:
                looks_expected = {"color": COLORS[0], "ls": "--", "lw": 1.1, "label": "equilibrium, Eq. 1"}
                axes.axhline(expected[dataset], **looks_expected)
            axes.set_title(name, fontsize=8)
            axes.set(xlabel="", ylabel="relative weight change (ratio)")
            axes.tick_params(axis="x", rotation=40)
        for axes in panels[0]:
            write_out(axes.yaxis)
        figure.legend_above(4 if expected else 3, title)
    return figure


def measures_by_size(table: pd.DataFrame, *, caption: str) -> Figure:
    """Each measure of simulated change against the number of weights, both axes logarithmic, bands from p10 to p90.

    Args:
        table: columns size, measure, median, p10, p90.
        caption: below the panel.
    """
    alt = "Eq. 1, the elementwise mean and the elementwise median of simulated change against the layer's size"
    with frame(size=(6, 3.6), alt=alt, caption=caption) as (figure, panels):
        axes = panels[0, 0]
        looks = zip(COLORS, ("-", "-", ":"), "os.", strict=False)  # Eq. 1 and the median lie on one another
        for (color, line, marker), (measure, rows) in zip(looks, table.groupby("measure", sort=False), strict=False):
            axes.plot(rows["size"], rows["median"], line, color=color, marker=marker, ms=5, lw=2, label=measure)
            axes.fill_between(rows["size"], rows["p10"], rows["p90"], color=color, alpha=0.2, lw=0)
        axes.set(xscale="log", yscale="log", xlabel="weights in the layer", ylabel="relative change (ratio)")
        write_out(axes.yaxis)
        axes.legend(frameon=False, fontsize=8)
    return figure


def definitions_by_layer(medians: pd.DataFrame, *, titles: Mapping[str, str], caption: str) -> Figure:
    """Elementwise mean against Eq. 1, a point per layer, a panel per data set; both axes logarithmic.

    Args:
        medians: columns model, dataset, `Eq. 1`, `elementwise`.
        titles: of the models and data sets.
        caption: below the panels.
    """
    datasets = unique(medians["dataset"])
    ends = medians["Eq. 1"].agg(["min", "max"])
    alt = "Each layer's change, the elementwise mean against Eq. 1, with the line of equality"
    size = (2.2 * len(datasets) + 0.6, 3.4)
    with frame(1, len(datasets), size=size, alt=alt, caption=caption, sharex=True, sharey=True) as (figure, panels):
        for axes, dataset in zip(panels[0], datasets, strict=True):
            by_model = medians[medians["dataset"] == dataset].groupby("model", sort=False)
            for color, marker, (model, rows) in zip(COLORS, "os^", by_model, strict=False):
                looks = {"color": color, "ms": 4, "mec": "none", "label": titles[model]}
                axes.plot(rows["Eq. 1"], rows["elementwise"], marker, **looks)
            axes.plot(ends, ends, color="0.5", lw=0.8, ls=":", label="equal")
            axes.set(xscale="log", yscale="log", xlabel="Eq. 1 (ratio)")
            axes.set_title(titles[dataset], fontsize=9)
            write_out(axes.xaxis)
            write_out(axes.yaxis)
        panels[0, 0].set_ylabel("elementwise mean (ratio)")
        figure.legend_above(4)
    return figure


def by_depth(table: pd.DataFrame, *, caption: str, ylabel: str) -> Figure:
    """A line per column of `table` against the layers in order of depth, logarithmic; the caption below."""
    alt = f"{ylabel} by depth: {', '.join(table.columns)}"
    with frame(size=(6.4, 3.6), alt=alt, caption=caption) as (figure, panels):
        axes = panels[0, 0]
        for color, marker, name in zip(COLORS, "os^D", table.columns, strict=False):
            axes.plot(range(1, len(table) + 1), table[name], color=color, marker=marker, ms=4, lw=1.3, label=name)
        axes.set(yscale="log", xlabel="layer, in order of depth", ylabel=ylabel)
        write_out(axes.yaxis)
        whole_numbers(axes.xaxis)
        axes.legend(frameon=False, fontsize=8)
    return figure


def save(figure: Figure, folder: str | Path, name: str) -> Path:
    """Write `<folder>/<name>.png` and `.pdf`, without dates, so that the same numbers give the same files.

    An empty `folder` means the repository's `figures`.
    """
    folder = Path(folder or _places.figures())
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None})
    path = folder / f"{name}.png"
    figure.saved = None
    figure.saved = figure._repr_png_()[0]
    path.write_bytes(figure.saved)
    return path

"""Drawing of figures about runs, clusters of layers, features and filters, from tidy tables and arrays only."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import pandas as pd

from rwclib.analysis.plotting import COLORS, Figure, frame, unique, whole_numbers, write_out


def points(
    table: pd.DataFrame,
    *,
    x: str,
    y: str,
    hue: str,
    panel: str,
    ylabel: str,
    caption: str,
    title: str = "",
    marks: Mapping[str, Sequence[float]] | None = None,
    mark_label: str = "published",
    log: bool = False,
) -> Figure:
    """A point per row, side by side by colour, a panel per value of `panel` sharing one axis; dashed lines at published values.

    Args:
        table: columns `x` (categories), `y`, `hue` (categories), `panel`, all in the order to draw them; and, if there is one,
            `learned` (bool): the others are hollow.
        ylabel, title, caption: of the axis, above and below the panels.
        marks: values of `y` to mark, by panel; `mark_label` says what they are.
        log: logarithmic axis.
    """
    import seaborn as sns

    names, table = unique(table[panel]), table if "learned" in table else table.assign(learned=True)
    looks = {"x": x, "y": y, "hue": hue, "hue_order": unique(table[hue]), "order": unique(table[x]), "dodge": True, "jitter": 0.12,
             "size": 5, "alpha": 0.75, "palette": COLORS[: table[hue].nunique()], "legend": "brief"}  # fmt: skip
    size, alt = (2.5 * len(names) + 0.8, 3.8), f"{title}: {ylabel}, a panel per {panel}"
    with frame(1, len(names), size=size, alt=alt, caption=caption, sharey=True) as (figure, panels), _same_jitter():
        for axes, name in zip(panels[0], names, strict=True):
            for learned, rows in table[table[panel] == name].groupby("learned"):
                before = len(axes.collections)
                sns.stripplot(rows, ax=axes, **looks)
                for dots in [] if learned else axes.collections[before:]:
                    dots.set(edgecolor=dots.get_facecolor(), facecolor="none", linewidth=1.2)
            if not table["learned"].all():
                axes.plot([], [], "o", mfc="none", mec="0.35", ms=5, label="has hardly learned, not judged")
            for value in (marks or {}).get(name, ()):
                axes.axhline(value, color="0.35", ls="--", lw=1, label=mark_label)
            axes.set_title(name, fontsize=9)
            axes.set(xlabel="", ylabel=ylabel)
            axes.tick_params(axis="x", rotation=30)
            if log:
                axes.set_yscale("log")
                write_out(axes.yaxis)
        for axes in panels[0]:
            if axes.get_legend():
                axes.get_legend().remove()
        figure.legend_above(4, title)
    return figure


@contextmanager
def _same_jitter() -> Iterator[None]:
    """Seaborn draws its jitter from NumPy's global generator: seeded for a while, the same numbers give the same files."""
    before = np.random.get_state()
    np.random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(before)


def step_lines(
    table: pd.DataFrame, *, y: str, panels: tuple[str, str], hue: str, style: str, ylabel: str, title: str, caption: str
) -> Figure:
    """`y` against the epochs of each step, a panel per value of the two columns `panels` (rows, columns), logarithmic.

    Args:
        table: columns `step` (text, in order), `y`, `hue`, `style` and the two `panels`; several rows per point are averaged.
        title, caption: above and below the panels.
    """
    rows, columns, steps, hues, styles = (unique(table[name]) for name in (*panels, "step", hue, style))
    size, alt = (2.5 * len(columns) + 0.6, 1.9 * len(rows) + 1.1), f"{title}: {ylabel} by step of epochs"
    shared = {"sharex": True, "sharey": "row"}
    with frame(len(rows), len(columns), size=size, alt=alt, caption=f"epochs\n{caption}", **shared) as (figure, grid):
        for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
            axes, inside = grid[i, j], table[(table[panels[0]] == row) & (table[panels[1]] == column)]
            for (name, kind), line in inside.groupby([hue, style], sort=False):
                means = line.groupby("step", sort=False)[y].mean().reindex(steps)
                place = styles.index(kind) % 3
                axes.plot(steps, means, color=COLORS[hues.index(name)], ls=("-", "--", ":")[place], marker="os^"[place],
                          ms=3.5, lw=1.3, label=f"{name}, {kind}")  # fmt: skip
            axes.set_yscale("log")
            write_out(axes.yaxis)
            axes.set_title(f"{row}, {column}", fontsize=8)
        figure.legend_above(len(styles), title)
        figure.supylabel(ylabel, fontsize=9)
    return figure


def cluster_lines(
    clusterings: Sequence[tuple[str, pd.DataFrame, np.ndarray]], *, title: str, caption: str, columns: int = 2
) -> Figure:
    """A panel per clustering: a line per layer in its cluster's colour, the cluster's mean as a thick line.

    Args:
        clusterings: title, curves (layers, epochs) and labels (layers,) int of each; filled row by row.
        title, caption: above and below the panels.
        columns: panels in a row.
    """
    rows, alt = -(-len(clusterings) // columns), f"{title}: a line per layer, coloured by cluster"
    size = (3.7 * columns, 2.3 * rows + 0.9)
    with frame(rows, columns, size=size, alt=alt, title=title, caption=caption) as (figure, panels):
        for axes, (name, curves, labels) in zip(panels.flat, clusterings, strict=False):
            top = 1.5 * np.quantile(curves.to_numpy(), 0.99)
            for label in np.unique(labels):
                inside, color = curves[labels == label], COLORS[label % len(COLORS)]
                axes.plot(curves.columns, inside.T, color=color, lw=0.6, alpha=0.55)
                axes.plot(curves.columns, inside.mean(), color=color, lw=2, label=f"{len(inside)}")
                top = max(top, 1.05 * inside.mean().max() if len(inside) > 2 else 0)
            cut = int((curves.to_numpy() > 1.2 * top).sum())
            axes.set_ylim(0, 1.2 * min(top, curves.to_numpy().max()))  # room for the legend
            axes.set_title(name + (f"\n{cut} value{'s' if cut > 1 else ''} beyond the axis" if cut else ""), fontsize=8)
            axes.legend(fontsize=7, ncols=5, loc="upper right", title="layers in each cluster", title_fontsize=7, frameon=True,
                        framealpha=0.8, edgecolor="none", handlelength=1.2)  # fmt: skip
            whole_numbers(axes.xaxis)
        for axes in panels.flat[-columns:]:
            axes.set_xlabel("epoch")
        figure.supylabel("relative weight change (ratio)", fontsize=9)
    return figure


def scree_lines(table: pd.DataFrame, *, title: str, caption: str, columns: int) -> Figure:
    """Inertia over the number of clusters as a share of that of one cluster; circles at the elbows, a line at the published k.

    Args:
        table: columns panel, line, k, share, elbow (bool), published.
        title, caption: above and below the panels.
        columns: panels in a row.
    """
    names, lines = unique(table["panel"]), unique(table["line"])
    rows, alt = -(-len(names) // columns), f"{title}: inertia over the number of clusters"
    size, caption = (2.4 * columns + 0.4, 2.1 * rows + 1.1), f"number of clusters k\n{caption}"
    with frame(rows, columns, size=size, alt=alt, caption=caption, sharex=True, sharey=True) as (figure, panels):
        for axes, name in zip(panels.flat, names, strict=False):
            inside = table[table["panel"] == name]
            for line, part in inside.groupby("line", sort=False):
                color = COLORS[lines.index(line)]
                axes.plot(part["k"], part["share"], color=color, lw=1.3, marker=".", ms=4, label=line)
                elbow = part[part["elbow"]]
                axes.plot(elbow["k"], elbow["share"], "o", mfc="none", mec=color, ms=9, label="_")
            axes.axvline(inside["published"].iloc[0], color="0.5", ls=":", lw=1, label="published k")
            axes.set_title(name, fontsize=8)
        figure.legend_above(3, title)
        figure.supylabel("inertia / inertia of one cluster", fontsize=9)
    return figure


def heat_maps(matrices: Sequence[tuple[str, np.ndarray]], *, title: str, caption: str, columns: int) -> Figure:
    """Correlation matrices side by side on one scale from -1 to 1.

    Args:
        matrices: title and matrix (features, features) of each, ordered as they are to be drawn; filled row by row.
        title, caption: above and below the panels.
        columns: panels in a row.
    """
    rows, size = -(-len(matrices) // columns), (max(7.2, 2.1 * columns + 0.9), 2.2 * -(-len(matrices) // columns) + 0.9)
    alt = f"{title}: correlation matrices of {', '.join(' '.join(name.splitlines()) for name, _ in matrices)}"
    with frame(rows, columns, size=size, alt=alt, title=title, caption=caption, grid=False) as (figure, panels):
        for axes, (name, matrix) in zip(panels.flat, matrices, strict=False):
            image = axes.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
            axes.set_title(name, fontsize=8)
            axes.set(xticks=[], yticks=[])
        figure.colorbar(image, ax=panels, shrink=0.8, label="correlation")
    return figure


def image_grid(
    images: np.ndarray,
    *,
    title: str,
    caption: str,
    framed: Sequence[bool] = (),
    diverging: bool = False,
    columns: int = 8,
) -> Figure:
    """Small pictures in rows, for example filters or what they make of an image.

    Args:
        images: (pictures, height, width).
        framed: which to frame in red.
        diverging: blue for negative, red for positive values on one scale; else each picture in grey on its own.
        columns: pictures in a row.
    """
    rows, top = -(-len(images) // columns), np.abs(images).max()
    looks = {"cmap": "RdBu_r", "vmin": -top, "vmax": top} if diverging else {"cmap": "gray"}
    alt = f"{title}: {len(images)} small pictures{f', {sum(framed)} of them framed' if len(framed) else ''}"
    size = (7.2, 7.2 / columns * rows + 0.9)
    with frame(rows, columns, size=size, alt=alt, title=title, caption=caption, grid=False) as (figure, panels):
        for place, (axes, image) in enumerate(zip(panels.flat, images, strict=False)):
            axes.set(xticks=[], yticks=[])
            red = len(framed) > 0 and framed[place]
            for spine in axes.spines.values():
                spine.set(visible=True, color="#D62728" if red else "0.7", linewidth=2.5 if red else 0.5)
            axes.imshow(image, interpolation="nearest", **looks)
    return figure


def accuracy_line(table: pd.DataFrame, *, title: str, caption: str) -> Figure:
    """Test accuracy against the iteration with the straight line of least squares through it.

    Args:
        table: columns iteration, test_top1 (percent).
    """
    x, y = table["iteration"], table["test_top1"]
    slope, intercept = np.polyfit(x, y, 1)
    alt = f"{title}: accuracy against iteration, with a straight line"
    with frame(size=(6.4, 3.4), alt=alt, caption=caption) as (figure, panels):
        axes = panels[0, 0]
        axes.plot(x, y, color=COLORS[0], lw=0.4, alpha=0.8, label="every 10 iterations")
        axes.plot(x, intercept + slope * x, color=COLORS[3], lw=1.5, label="least squares")
        axes.set(xlabel="iteration", ylabel="test top-1 (percent)")
        axes.set_title(title, fontsize=10)
        axes.legend(frameon=False, fontsize=8)
    return figure


def fit_bars(table: pd.DataFrame, *, title: str, caption: str, published: Mapping[str, float]) -> Figure:
    """R^2 by `panel`, `model` and `image` (colour): bars of the printed pictures, a dot per picture, diamonds the published.

    Args:
        table: columns panel, model, image, picture (in the order of the dots), printed (one picture of each image), r2.
        published: R^2 by `panel model image`.
    """
    names, models, images = (unique(table[name]) for name in ("panel", "model", "image"))
    dots = {"color": "0.1", "ms": 3, "mec": "white", "mew": 0.4, "label": "all pictures"}
    diamonds = {"color": "0.1", "ms": 6, "mfc": "white", "zorder": 5, "label": "published"}
    size, alt = (2.6 * len(names) + 0.6, 3.6), f"{title}: bars of R squared for each layer, model and image"
    with frame(1, len(names), size=size, alt=alt, caption=caption, sharey=True) as (figure, panels):
        for axes, name in zip(panels[0], names, strict=True):
            for (place, model), (i, image) in itertools.product(enumerate(models), enumerate(images)):
                fits = table[(table["panel"] == name) & (table["model"] == model) & (table["image"] == image)]
                x = place + (i - (len(images) - 1) / 2) * 0.38
                axes.bar(x, fits.loc[fits["printed"], "r2"], 0.36, color=COLORS[i], label=image)
                axes.plot(x + np.linspace(-0.15, 0.15, len(fits)), fits.sort_values("picture")["r2"], "o", **dots)
                key = f"{name} {model} {image}"
                if key in published:
                    axes.plot(x, published[key], "D", **diamonds)
            axes.set(xticks=range(len(models)), ylim=(0, 1.02))
            axes.set_title(name, fontsize=9)
            axes.set_xticklabels(models, rotation=30)
        figure.legend_above(4, title)
        figure.supylabel("R²", fontsize=9)
    return figure


def score_curves(table: pd.DataFrame, *, title: str, caption: str) -> Figure:
    """Score against the iteration (logarithmic), a thin line per session and a dot at its end; a panel per layer, row per image.

    Args:
        table: columns seed, iterations (of the session), iteration, panel, image, score.
    """
    names, images = unique(table["panel"]), unique(table["image"])
    size, alt = (
        (2.6 * len(names) + 0.6, 2.1 * len(images) + 0.8),
        f"{title}: score against iteration, a line per session",
    )
    shape, caption = (len(images), len(names)), f"iteration\n{caption}"
    with frame(*shape, size=size, alt=alt, title=title, caption=caption, sharex=True) as (figure, panels):
        for (i, image), (j, name) in itertools.product(enumerate(images), enumerate(names)):
            axes, scores = panels[i, j], table[(table["panel"] == name) & (table["image"] == image)]
            for _, session in scores.groupby("seed"):
                axes.plot(session["iteration"], session["score"], color=COLORS[i], lw=0.8, alpha=0.6)
            ends = scores[scores["iteration"] == scores["iterations"]]
            axes.plot(ends["iterations"], ends["score"], "o", color=COLORS[i], ms=4)
            axes.set_xscale("log")
            axes.set_title(f"{name}: {image}", fontsize=9)
        figure.supylabel("score", fontsize=9)
    return figure


def residuals(fits: Sequence[tuple[str, np.ndarray, np.ndarray]], *, title: str, xlabel: str, caption: str) -> Figure:
    """Residuals against x, a panel each.

    Args:
        fits: title, x (n,) and residuals (n,) of each panel.
    """
    size, alt = (3.4 * len(fits) + 0.4, 3), f"{title}: residuals of {', '.join(name for name, _, _ in fits)}"
    with frame(1, len(fits), size=size, alt=alt, title=title, caption=caption) as (figure, panels):
        for axes, (name, x, y) in zip(panels[0], fits, strict=True):
            axes.axhline(0, color="0.5", lw=0.8)
            axes.plot(x, y, "o", color=COLORS[0], ms=4.5, alpha=0.8)
            axes.set(xlabel=xlabel, ylabel="residual")
            axes.set_title(name, fontsize=9)
    return figure

"""Drawing of figures about whole runs, from tidy tables only: points by setting, steps of epochs, correlation matrices."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import matplotlib as mpl
import numpy as np
import pandas as pd

from rwclib.plotting import COLORS, STYLE, Figure, write_out


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

    names, table = list(dict.fromkeys(table[panel])), table if "learned" in table else table.assign(learned=True)
    with mpl.rc_context(STYLE), _same_jitter():
        figure = Figure(figsize=(2.5 * len(names) + 0.8, 3.8), layout="constrained")
        row = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
        for axes, name in zip(row, names, strict=True):
            of = table[table[panel] == name]
            colors = COLORS[: table[hue].nunique()]
            for learned, part in of.groupby("learned"):
                before = len(axes.collections)
                sns.stripplot(part, x=x, y=y, hue=hue, hue_order=list(dict.fromkeys(table[hue])), order=list(dict.fromkeys(table[x])),
                              dodge=True, jitter=0.12, size=5, alpha=0.75, palette=colors, ax=axes, legend="brief")  # fmt: skip
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
        for axes in row:
            if axes.get_legend():
                axes.get_legend().remove()
        figure.legend_above(4, title)
        figure.alt = f"{title}: {ylabel}, a panel per {panel}"
        figure.caption_below(caption)
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
    rows, columns = (list(dict.fromkeys(table[name])) for name in panels)
    steps, hues, styles = (list(dict.fromkeys(table[name])) for name in ("step", hue, style))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.5 * len(columns) + 0.6, 1.9 * len(rows) + 1.1), layout="constrained")
        grid = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey="row")
        for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
            axes, of = grid[i, j], table[(table[panels[0]] == row) & (table[panels[1]] == column)]
            for (name, kind), line in of.groupby([hue, style], sort=False):
                means = line.groupby("step", sort=False)[y].mean().reindex(steps)
                axes.plot(steps, means, color=COLORS[hues.index(name)], ls=("-", "--", ":")[styles.index(kind) % 3],
                          marker="os^"[styles.index(kind) % 3], ms=3.5, lw=1.3, label=f"{name}, {kind}")  # fmt: skip
            axes.set_yscale("log")
            write_out(axes.yaxis)
            axes.set_title(f"{row}, {column}", fontsize=8)
        figure.legend_above(len(styles), title)
        figure.supylabel(ylabel, fontsize=9)
        figure.alt = f"{title}: {ylabel} by step of epochs"
        figure.caption_below(f"epochs\n{caption}")
    return figure


def heat_maps(panels: Sequence[tuple[str, np.ndarray]], *, title: str, caption: str, columns: int) -> Figure:
    """Correlation matrices side by side on one scale from -1 to 1.

    Args:
        panels: title and matrix (features, features) of each, ordered as they are to be drawn; filled row by row.
        title, caption: above and below the panels.
        columns: panels in a row.
    """
    rows = -(-len(panels) // columns)
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(max(7.2, 2.1 * columns + 0.9), 2.2 * rows + 0.9), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, (name, matrix) in zip(grid.flat, panels, strict=False):
            image = axes.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
            axes.set_title(name, fontsize=8)
            axes.set(xticks=[], yticks=[])
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_visible(False)
        figure.colorbar(image, ax=grid, shrink=0.8, label="correlation")
        figure.suptitle(title, fontsize=10)
        figure.alt = f"{title}: correlation matrices of {', '.join(name.replace(chr(10), ' ') for name, _ in panels)}"
        figure.caption_below(caption)
    return figure

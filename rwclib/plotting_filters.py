"""Drawing of figures about filters: grids of filters and of images, accuracy by iteration, fits and their residuals."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd

from rwclib.plotting import COLORS, STYLE, Figure


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
    rows = -(-len(images) // columns)
    top = np.abs(images).max()
    looks = {"cmap": "RdBu_r", "vmin": -top, "vmax": top} if diverging else {"cmap": "gray"}
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(7.2, 7.2 / columns * rows + 0.9), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for place, axes in enumerate(grid.flat):
            axes.set(xticks=[], yticks=[])
            red = place < len(framed) and framed[place]
            for spine in axes.spines.values():
                spine.set(visible=place < len(images), color="#D62728" if red else "0.7", linewidth=2.5 if red else 0.5)
            if place < len(images):
                axes.imshow(images[place], interpolation="nearest", **looks)
        figure.suptitle(title, fontsize=10)
        figure.alt = f"{title}: {len(images)} small pictures" + (
            f", {sum(framed)} of them framed" if len(framed) else ""
        )
        figure.caption_below(caption)
    return figure


def accuracy_line(table: pd.DataFrame, *, title: str, caption: str) -> Figure:
    """Test accuracy against the iteration with the straight line of least squares through it.

    Args:
        table: columns iteration, test_top1 (percent).
    """
    slope, intercept = np.polyfit(table["iteration"], table["test_top1"], 1)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        axes = figure.subplots()
        axes.plot(
            table["iteration"], table["test_top1"], color=COLORS[0], lw=0.4, alpha=0.8, label="every 10 iterations"
        )
        axes.plot(
            table["iteration"], intercept + slope * table["iteration"], color=COLORS[3], lw=1.5, label="least squares"
        )
        axes.set(xlabel="iteration", ylabel="test top-1 (percent)", title=title)
        axes.title.set_fontsize(10)
        axes.legend(frameon=False, fontsize=8)
        figure.alt = f"{title}: accuracy against iteration, with a straight line"
        figure.caption_below(caption)
    return figure


def fit_bars(table: pd.DataFrame, *, title: str, caption: str, published: Mapping[str, float]) -> Figure:
    """R^2 by `panel`, `model` and `image` (colour): bars of the printed pictures, a dot per picture, diamonds the published.

    Args:
        table: columns panel, model, image, picture (in the order of the dots), printed (one picture of each image), r2.
        published: R^2 by `panel model image`.
    """
    panels, models, images = (list(dict.fromkeys(table[name])) for name in ("panel", "model", "image"))
    dots = {"color": "0.1", "ms": 3, "mec": "white", "mew": 0.4, "label": "all pictures"}
    diamonds = {"color": "0.1", "ms": 6, "mfc": "white", "zorder": 5, "label": "published"}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.6 * len(panels) + 0.6, 3.6), layout="constrained")
        for axes, panel in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
            for (place, model), (i, image) in itertools.product(enumerate(models), enumerate(images)):
                of = table[(table["panel"] == panel) & (table["model"] == model) & (table["image"] == image)]
                x = place + (i - (len(images) - 1) / 2) * 0.38
                axes.bar(x, of.loc[of["printed"], "r2"], 0.36, color=COLORS[i], label=image)
                axes.plot(x + np.linspace(-0.15, 0.15, len(of)), of.sort_values("picture")["r2"], "o", **dots)
                if (key := f"{panel} {model} {image}") in published:
                    axes.plot(x, published[key], "D", **diamonds)
            axes.set(xticks=range(len(models)), ylim=(0, 1.02), title=panel)
            axes.set_xticklabels(models, rotation=30)
            axes.title.set_fontsize(9)
        figure.legend_above(4, title)
        figure.supylabel("R²", fontsize=9)
        figure.alt = f"{title}: bars of R squared for each layer, model and image"
        figure.caption_below(caption)
    return figure


def score_curves(table: pd.DataFrame, *, title: str, caption: str) -> Figure:
    """Score against the iteration (logarithmic), a thin line per session and a dot at its end; a panel per layer, row per image.

    Args:
        table: columns seed, iterations (of the session), iteration, panel, image, score.
    """
    panels, images = (list(dict.fromkeys(table[name])) for name in ("panel", "image"))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.6 * len(panels) + 0.6, 2.1 * len(images) + 0.8), layout="constrained")
        grid = figure.subplots(len(images), len(panels), sharex=True, squeeze=False)
        for i, image in enumerate(images):
            for j, panel in enumerate(panels):
                axes, of = grid[i, j], table[(table["panel"] == panel) & (table["image"] == image)]
                for _, session in of.groupby("seed"):
                    axes.plot(session["iteration"], session["score"], color=COLORS[i], lw=0.8, alpha=0.6)
                ends = of[of["iteration"] == of["iterations"]]
                axes.plot(ends["iterations"], ends["score"], "o", color=COLORS[i], ms=4)
                axes.set(xscale="log", title=f"{panel}: {image}")
                axes.title.set_fontsize(9)
        figure.suptitle(title, fontsize=10)
        figure.supylabel("score", fontsize=9)
        figure.alt = f"{title}: score against iteration, a line per session"
        figure.caption_below(f"iteration\n{caption}")
    return figure


def residuals(points: Sequence[tuple[str, np.ndarray, np.ndarray]], *, title: str, xlabel: str, caption: str) -> Figure:
    """Residuals against x, a panel each.

    Args:
        points: title, x (n,) and residuals (n,) of each panel.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.4 * len(points) + 0.4, 3), layout="constrained")
        for axes, (name, x, y) in zip(figure.subplots(1, len(points), squeeze=False)[0], points, strict=True):
            axes.axhline(0, color="0.5", lw=0.8)
            axes.plot(x, y, "o", color=COLORS[0], ms=4.5, alpha=0.8)
            axes.set(title=name, xlabel=xlabel, ylabel="residual")
            axes.title.set_fontsize(9)
        figure.suptitle(title, fontsize=10)
        figure.alt = f"{title}: residuals of {', '.join(name for name, _, _ in points)}"
        figure.caption_below(caption)
    return figure

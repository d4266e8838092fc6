"""Drawing of measured values against what theory predicts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from rwclib.analysis.plotting import COLORS, Figure, frame, unique, write_out


def against(
    table: pd.DataFrame,
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    xlabel: str,
    ylabel: str,
    caption: str,
    linear: bool = False,
    joined: bool = False,
) -> Figure:
    """Measured values against x, a colour per label and a panel per title, with the same theoretical curves in each panel.

    Args:
        table: columns panel, label, x, y; `low` and `high` where points have intervals. Label `AlexNet` is grey.
        curves: by label, x and y, drawn as dark lines: solid, dashed, dotted.
        xlabel, ylabel, caption: of every panel, of the left one, below them.
        linear: y on a linear axis.
        joined: the points of a label by lines.
    """
    names, colors = unique(table["panel"]), {"AlexNet": "0.65"}
    labels = [label for label in unique(table["label"]) if label not in colors]
    colors |= dict(zip(labels, COLORS, strict=False))
    alt = f"{ylabel} against {xlabel}, measured in {', '.join(unique(table['label']))}, and {', '.join(curves)}"
    size = (max(6, 2.9 * len(names) + 0.8), 4)
    with frame(1, len(names), size=size, alt=alt, caption=caption) as (figure, panels):
        for axes, name in zip(panels[0], names, strict=True):
            of = table[table["panel"] == name]
            for label, rows in of.groupby("label", sort=False):
                looks = {
                    "color": colors[label],
                    "ls": "-" if joined else "none",
                    "label": label,
                    "marker": "o",
                    "mec": "none",
                    "lw": 1.3,
                }
                looks |= {"ms": 2.5, "alpha": 0.4} if len(of) > 200 else {"ms": 4.5}
                bars = [rows["y"] - rows["low"], rows["high"] - rows["y"]] if "low" in rows else None
                axes.errorbar(rows["x"], rows["y"], yerr=bars, elinewidth=1, **looks)
            axes.set(xscale="log", yscale="linear" if linear else "log", xlabel=xlabel)
            limits = axes.get_xlim(), axes.get_ylim()
            for style, (label, (x, y)) in zip(("-", "--", ":"), curves.items(), strict=False):
                axes.plot(x, y, color="0.2", lw=1.1, ls=style, label=label, zorder=3)
            if len(names) > 1:  # curves end where the points do
                axes.set(xlim=limits[0], ylim=limits[1])
            axes.set_title(name, fontsize=9)
            for axis in [axes.xaxis] if linear else [axes.xaxis, axes.yaxis]:
                write_out(axis)
        panels[0, 0].set_ylabel(ylabel)
        figure.legend_above(3 if len(names) == 1 else 5)
    return figure

"""Drawing of measured values against what theory predicts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from rwclib.analysis.plotting import COLORS, Figure, frame, unique, write_out


def against(
    table: pd.DataFrame, curves: Mapping[str, tuple[np.ndarray, np.ndarray]], *, xlabel: str, ylabel: str, caption: str, linear: bool = False
) -> Figure:  # fmt: skip
    """Measured values against x, a colour per label and a panel per title, with the same theoretical curves in each panel.

    Args:
        table: columns panel, label, x, y; `low` and `high` where points have intervals; label `AlexNet` is drawn grey.
        curves: by label, x and y, drawn as grey lines: solid, dashed, dotted.
        xlabel, ylabel, caption: of every panel, of the left one, below them.
        linear: y on a linear axis.
    """
    names, labels = unique(table["panel"]), [label for label in unique(table["label"]) if label != "AlexNet"]
    colors = dict(zip(labels, COLORS, strict=False)) | {"AlexNet": "0.65"}
    alt = f"{ylabel} against {xlabel}, measured in {', '.join(colors)}, and {', '.join(curves)}"
    small = len(table) > 60 * len(names)
    looks = {"ls": "none", "ms": 2 if small else 5, "alpha": 0.35 if small else 0.9, "mec": "none"}
    size = (2.7 * len(names) + 1.8, 3.9)
    with frame(1, len(names), size=size, alt=alt, caption=caption, sharex=True, sharey=True) as (figure, panels):
        for axes, name in zip(panels[0], names, strict=True):
            for label, rows in table[table["panel"] == name].groupby("label", sort=False):
                points = {"color": colors[label], "marker": "o", "label": label, **looks}
                if "low" in rows:
                    bars = [rows["y"] - rows["low"], rows["high"] - rows["y"]]
                    axes.errorbar(rows["x"], rows["y"], yerr=bars, elinewidth=1, **points)
                else:
                    axes.plot(rows["x"], rows["y"], **points)
            for style, (label, (x, y)) in zip(("-", "--", ":"), curves.items(), strict=False):
                axes.plot(x, y, color="0.25", lw=1.1, ls=style, label=label, zorder=3)
            axes.set(xscale="log", yscale="linear" if linear else "log", xlabel=xlabel)
            axes.set_title(name, fontsize=9)
        for axes in panels[0]:
            for axis in (axes.xaxis, axes.yaxis)[: 1 if linear else 2]:
                write_out(axis)
        panels[0, 0].set_ylabel(ylabel)
        figure.legend_above(min(4, len(colors) + len(curves)))
        for handle in figure.legends[0].legend_handles:
            handle.set_alpha(1)
    return figure

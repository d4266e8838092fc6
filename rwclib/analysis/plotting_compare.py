"""Drawing of the difference between two checkpoints, from the table that `rwclib.compare` gives."""

from __future__ import annotations

import numpy as np
import pandas as pd

from rwclib.analysis.plotting import COLORS, Figure, frame, write_out
from rwclib.metrics import METRICS

MOST = 60


def differences(table: pd.DataFrame, metric: str = "rwc", *, title: str = "") -> Figure:
    """A point per layer or block, from the first at the top to the last; logarithmic where they span a decade or more.

    Of more than 60 rows the 60 largest are drawn, which the words below say, as they do how many have no finite value.

    Args:
        table: columns layer and `metric`, a row per layer or block, as `rwclib.compare` gives it.
        metric: a name of `METRICS`, or a column of shares such as `changed`.
        title: above the panel.
    """
    finite = table[np.isfinite(table[metric])]
    log = metric != "cosine" and 0 < 10 * finite.loc[finite[metric] > 0, metric].min() <= finite[metric].max()
    zero = finite[metric].eq(0).sum() if log else 0
    shown = finite[finite[metric] > 0] if log else finite
    largest = shown.loc[shown[metric].nlargest(MOST).index.sort_values()]
    kinds = [(len(shown) - len(largest), "smaller"), (zero, "0"), (len(table) - len(finite), "without a finite value")]
    caption = ", ".join(f"{count} {what}" for count, what in kinds if count)
    label = METRICS[metric].axis if metric in METRICS else f"{metric} (share of weights)"
    alt = f"{label} of {len(largest)} layers or blocks of two checkpoints"
    size = (7, 1.2 + 0.19 * max(4, len(largest)))
    with frame(size=size, alt=alt, title=title, caption=f"not drawn: {caption}" if caption else "") as (figure, panels):
        axes, rows = panels[0, 0], range(len(largest))
        if log:
            axes.set_xscale("log")
        low = largest[metric].min() / 1.3 if log else min(0, largest[metric].min()) if len(largest) else 0
        axes.hlines(rows, low, largest[metric], color=COLORS[0], lw=1, alpha=0.35)
        axes.plot(largest[metric], rows, "o", color=COLORS[0], ms=5)
        axes.set_yticks(rows, largest["layer"], fontsize=7)
        axes.set(xlabel=label, ylim=(len(largest) - 0.4, -0.6))
        axes.set_xlim(left=low)
        axes.grid(False, axis="y")
        if log:
            write_out(axes.xaxis)
    axes.set_visible(True)  # without rows too
    return figure

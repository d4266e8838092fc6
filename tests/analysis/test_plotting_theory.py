"""Measured against expected, as drawn."""

import numpy as np
import pandas as pd
from matplotlib.colors import to_hex

from rwclib.analysis import plotting_theory


def drawn(labels, panels=("p",), joined=False, **columns):
    rows = [(p, label, x, 2.0 * x) for p in panels for label in labels for x in np.geomspace(1, 5, 3)]
    table = pd.DataFrame(rows, columns=["panel", "label", "x", "y"]).assign(**columns)
    curves = {"equal": (np.array([0.01, 100]), np.array([0.01, 100]))}
    return plotting_theory.against(table, curves, xlabel="x", ylabel="y", caption="c", joined=joined)


def test_labels_have_their_colours_alexnet_is_grey_and_every_curve_is_named():
    axes = drawn(["AlexNet", "block1", "block2"]).axes[0]
    lines = {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}
    colors = {container.get_label(): to_hex(container[0].get_color()) for container in axes.containers}
    assert colors == {"AlexNet": "#a6a6a6", "block1": "#0173b2", "block2": "#de8f05"}
    assert list(lines) == ["equal"]
    assert [text.get_text() for text in axes.figure.legends[0].get_texts()] == ["equal", "AlexNet", "block1", "block2"]


def test_curves_do_not_stretch_panels_and_points_are_joined_if_asked():
    for axes in drawn(["a"], panels=["p", "q"]).axes:
        assert axes.get_xlim()[1] < 10
    assert drawn(["a"]).axes[0].get_xlim()[1] > 50
    assert drawn(["a"], joined=True).axes[0].containers[0][0].get_linestyle() == "-"
    assert drawn(["a"]).axes[0].containers[0][0].get_linestyle() == "None"


def test_intervals_are_drawn_where_there_are_any():
    (bars,) = drawn(["a"], low=0.5, high=20.0).axes[0].containers[0][2]
    assert next(segment[:, 1].tolist() for segment in bars.get_segments()) == [0.5, 20.0]

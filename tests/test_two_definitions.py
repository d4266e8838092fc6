"""Simulated weights against theory and an independent computation; tables of the archive under every measure."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from rwclib import plotting
from rwclib.studies import layerwise, layerwise_claims, two_definitions


@pytest.fixture(scope="module")
def simulated():
    table = two_definitions.simulate()  # as in notebook 04
    return table.pivot(index="size", columns="measure", values="median")


@pytest.fixture(scope="module")
def found():
    return layerwise.tables(profile="quick")


def test_eq_1_is_constant_in_the_layers_size_to_one_percent_and_the_elementwise_mean_is_not(simulated):
    np.testing.assert_allclose(simulated["Eq. 1"], 0.1, rtol=0.01)
    np.testing.assert_allclose(simulated["median"], 0.1, rtol=0.03)  # of 4,096 weights
    assert simulated["elementwise"].is_monotonic_increasing
    assert simulated["elementwise"].iloc[-1] > 2 * simulated["elementwise"].iloc[0]
    assert list(simulated.index) == [10**k for k in range(2, 8)]


def test_an_independent_computation_agrees(simulated):
    """Three lines of NumPy on other random numbers; the elementwise mean's median over draws is noisy, so 10%."""
    rng = np.random.default_rng(99)
    for size, draws in ((100, 4000), (10_000, 1000), (1_000_000, 9)):
        w, change = rng.standard_normal((draws, size)), abs(0.1 * rng.standard_normal((draws, size)))
        assert simulated.loc[size, "Eq. 1"] == pytest.approx(np.median(change.sum(1) / abs(w).sum(1)), rel=0.01)
        assert simulated.loc[size, "elementwise"] == pytest.approx(
            np.median((change / abs(w)).mean(1)), rel=0.1 if draws > 100 else 0.3
        )


def test_the_elementwise_mean_grows_with_the_logarithm_of_the_size_as_theory_says(simulated):
    """E|N(0, s)| times the integral of 2 phi(w) / w from about 1/n: a slope of 2 s / pi per unit of log n."""
    slope = (simulated.loc[100_000, "elementwise"] - simulated.loc[100, "elementwise"]) / np.log(1000)
    assert slope == pytest.approx(2 * 0.1 / np.pi, rel=0.25)


def test_exact_zeros_are_those_of_the_release():
    zeros = two_definitions.exact_zeros(seeds=[0, 1000])
    assert zeros[zeros["zeros"] > 0][["model", "seed"]].to_numpy().tolist() == [["resnet18", 1000], ["vgg19_bn", 1000]]


def test_layer_means_are_those_of_the_archived_tables(found):
    means = two_definitions.layer_means(found)
    assert len(means) == 4 * (21 + 17 + 8)
    row = means.query("model == 'alexnet' and dataset == 'mnist' and layer == 'features.0.weight'").iloc[0]
    values = found.layers.query(
        "model == 'alexnet' and dataset == 'mnist' and layer == 'features.0.weight' and epoch > 1"
    )
    assert row["Eq. 1"] == pytest.approx(values["rwc"].mean())
    assert row["median"] == pytest.approx(values["rwc_median"].mean())


def test_agreement_is_a_rank_correlation_over_layers():
    rows = [("m", "d", "quick", "g", f"l{i}", i, 10, float(i), 10.0 * i, 9.0 - i) for i in range(1, 6)]
    columns = ["model", "dataset", "profile", "group", "layer", "depth", "size", *two_definitions.MEASURES.values()]
    row = two_definitions.agreement(pd.DataFrame(rows, columns=columns)).iloc[0]
    assert row["Eq. 1 ~ mean"] == pytest.approx(1)
    assert row["Eq. 1 ~ median"] == pytest.approx(-1)
    assert row["mean / Eq. 1"] == pytest.approx(10)


def test_infinities_are_counted_by_run(found):
    layers = found.layers.copy()
    one = (
        (layers["model"] == "alexnet")
        & (layers["dataset"] == "mnist")
        & (layers["seed"] == 42)
        & (layers["epoch"] == 1)
    )
    layers.loc[one & (layers["layer"] == "features.3.weight"), "rwc_elementwise"] = np.inf
    table = two_definitions.infinities(replace(found, layers=layers)).set_index(["model", "dataset", "seed"])
    assert table.loc[("alexnet", "mnist", 42), ["infinite", "first_epoch", "layers"]].tolist() == [1, 1, 1]


def test_every_comparison_stands_beside_the_published_one_under_every_measure(found):
    table = two_definitions.effects(found)
    assert list(table)[2:] == ["Eq. 1", "elementwise", "median", "published"]
    judged = layerwise_claims.details(found).query("definition == 'Eq. 1' and verdict != 'not run'")
    assert len(table) == len(judged) > 20
    row = table.set_index(["claim", "comparison"]).loc[("L7", "middle / early")]
    means = two_definitions.layer_means(found).query("model == 'vgg19_bn' and dataset == 'cifar10'")
    assert row["Eq. 1"] == pytest.approx(
        means.query("group == 'middle'")["Eq. 1"].mean() / means.query("group == 'early'")["Eq. 1"].mean(), rel=0.05
    )
    assert row["published"] == pytest.approx(2.585 / 1.912)


def test_verdicts_of_every_measure_and_of_the_published_figures(found):
    table = two_definitions.verdicts(found)
    assert table["claim"].tolist() == [f"L{i}" for i in range(1, 16)]
    card = layerwise_claims.verdicts(found).query("definition == 'elementwise'")
    assert table["elementwise"].tolist() == card["verdict"].tolist()
    assert table.set_index("claim").loc[["L14", "L15"], "published"].tolist() == ["fails", "fails"]


def test_the_tie_breaker_looks_only_at_claims_on_which_the_definitions_differ():
    rows = [("A", "holds", "holds", "fails"), ("B", "holds", "fails", "holds"), ("C", "unclear", "fails", "fails"),
            ("D", "holds", "fails", "unclear")]  # fmt: skip
    table = two_definitions.tie_breaker(pd.DataFrame(rows, columns=["claim", *two_definitions.MEASURES.values()]))
    assert table[["claim", "median sides with"]].to_numpy().tolist() == [
        ["B", "Eq. 1"], ["C", "elementwise"], ["D", "neither"]
    ]  # fmt: skip


def test_an_empty_archive_gives_empty_tables(tmp_path):
    found = layerwise.tables(tmp_path)
    means = two_definitions.layer_means(found)
    assert means.empty
    assert two_definitions.agreement(means).empty
    assert two_definitions.infinities(found).empty
    assert set(two_definitions.verdicts(found)["Eq. 1"]) == {"not run"}
    assert two_definitions.tie_breaker(two_definitions.verdicts(found)).empty
    assert two_definitions.effects(found)[["Eq. 1", "elementwise"]].isna().all(axis=None)


def test_figures_show_the_tables(found):
    table = two_definitions.simulate(sizes=[100, 1000])
    axes = plotting.measures_by_size(table, caption="c").axes[0]
    assert [line.get_label() for line in axes.lines] == list(two_definitions.MEASURES.values())
    np.testing.assert_allclose(axes.lines[0].get_ydata(), table.loc[table["measure"] == "Eq. 1", "median"])
    means = two_definitions.layer_means(found)
    titles = {name: name for name in [*means["model"], *means["dataset"]]}
    figure = plotting.definitions_by_layer(means, titles=titles, caption="c")
    assert len(figure.axes) == 4
    points = means.query("dataset == 'cifar10' and model == 'resnet18'")
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), points["elementwise"])

"""Simulated weights against theory and an independent computation; tables of the archive under every measure."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from rwclib import plotting
from rwclib.studies import layerwise
from rwclib.studies.layerwise import two_definitions


@pytest.fixture(scope="module")
def simulated():
    table = two_definitions.simulate()  # as in notebook 04
    return table.pivot(index="size", columns="measure", values="median")


@pytest.fixture(scope="module")
def found():
    return layerwise.STUDY.tables(profile="quick")


@pytest.fixture(scope="module")
def effects(found):
    return two_definitions.effects(found)


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


def test_layer_medians_are_over_seeds_and_drawn_epochs_infinities_in_the_ranks(found):
    medians = two_definitions.layer_medians(found)
    assert len(medians) == 4 * (21 + 17 + 8)
    layer = (found.layers["layer"] == "features.0.weight") & (found.layers["epoch"] > 1)
    rows = found.layers[layer & (found.layers["model"] == "alexnet") & (found.layers["dataset"] == "mnist")]
    row = medians.query("model == 'alexnet' and dataset == 'mnist' and layer == 'features.0.weight'").iloc[0]
    assert row["Eq. 1"] == pytest.approx(rows["rwc"].median())
    assert row["median"] == pytest.approx(rows["rwc_median"].median())
    spiking = found.layers.copy()
    spiking.loc[rows.index[:3], "rwc_elementwise"] = np.inf
    beyond = spiking.loc[rows.index].assign(epoch=21, rwc_elementwise=np.inf)  # MNIST's figures end at 20
    late = pd.concat([spiking, beyond])
    table = two_definitions.layer_medians(replace(found, layers=late))
    again = table.query("model == 'alexnet' and dataset == 'mnist' and layer == 'features.0.weight'").iloc[0]
    assert again["elementwise"] == pytest.approx(spiking.loc[rows.index, "rwc_elementwise"].median())
    assert np.isfinite(again["elementwise"])


def test_agreement_is_a_rank_correlation_over_layers():
    rows = [("m", "d", "quick", "g", f"l{i}", i, 10, float(i), 10.0 * i, 9.0 - i) for i in range(1, 6)]
    columns = ["model", "dataset", "profile", "group", "layer", "depth", "size", *two_definitions.MEASURES.values()]
    row = two_definitions.agreement(pd.DataFrame(rows, columns=columns)).iloc[0]
    assert row["Eq. 1 ~ elementwise"] == pytest.approx(1)
    assert row["Eq. 1 ~ median"] == pytest.approx(-1)
    assert row["elementwise / Eq. 1"] == pytest.approx(10)


def test_infinities_are_counted_by_run(found):
    layers = found.layers.copy()
    one = "model == 'alexnet' and dataset == 'mnist' and seed == 42 and epoch == 1 and layer == 'features.3.weight'"
    layers.loc[layers.query(one).index, "rwc_elementwise"] = np.inf
    table = two_definitions.infinities(replace(found, layers=layers)).set_index(["model", "dataset", "seed"])
    assert table.loc[("alexnet", "mnist", 42), ["infinite", "first_epoch", "layers"]].tolist() == [1, 1, 1]


def test_every_comparison_stands_beside_the_published_one_under_every_measure(found, effects):
    columns = ["claim", "comparison", "profile", "Eq. 1", "elementwise", "median", "elementwise, means", "published"]
    assert list(effects) == columns
    judged = layerwise.STUDY.details(found).query("definition == 'Eq. 1' and verdict != 'not run'")
    assert len(effects) == len(judged) > 20
    row = effects.set_index(["claim", "comparison"]).loc[("L7", "vgg19_bn cifar10: middle / early")]
    rows = found.layers.query("model == 'vgg19_bn' and dataset == 'cifar10' and epoch > 1")
    assert row["profile"] == "quick"
    for name, column, statistic in (
        ("Eq. 1", "rwc", "median"), ("elementwise", "rwc_elementwise", "median"), ("elementwise, means", "rwc_elementwise", "mean"),
        ("median", "rwc_median", "median"),
    ):  # fmt: skip
        of = rows.groupby(["group", "seed"])[column].agg(statistic)
        assert row[name] == pytest.approx(np.exp(np.log(of["middle"]).mean() - np.log(of["early"]).mean())), name
    assert row["published"] == pytest.approx(2.585 / 1.912)


def test_spikes_lift_the_effects_of_means_and_not_those_of_medians(found, effects):
    """One layer of a hundredfold change in one epoch."""
    layers = found.layers.copy()
    group = (layers["model"] == "vgg19_bn") & (layers["dataset"] == "cifar10") & (layers["group"] == "middle")
    spikes = layers[group & (layers["epoch"] == 5)].groupby("seed").head(1).index
    layers.loc[spikes, "rwc_elementwise"] *= 100
    label = ("L7", "vgg19_bn cifar10: middle / early")
    before, after = (of.set_index(["claim", "comparison"]).loc[label] for of in (effects, two_definitions.effects(replace(found, layers=layers))))  # fmt: skip
    assert after["elementwise, means"] > 1.5 * before["elementwise, means"]
    assert after["elementwise"] == pytest.approx(before["elementwise"], rel=0.05)
    assert after["Eq. 1"] == before["Eq. 1"]


def test_verdicts_of_every_measure_and_of_the_published_figures(found):
    table = two_definitions.verdicts(found).set_index("claim")
    assert list(table) == ["profile", "Eq. 1", "elementwise", "median", "published"]
    assert table.index.tolist() == [f"L{i}" for i in (*range(1, 16), 17)]
    card = layerwise.STUDY.verdicts(found)
    for name in ("Eq. 1", "elementwise"):
        assert table[name].tolist() == card.query("definition == @name and claim != 'L16'")["verdict"].tolist()
    assert set(table["published"]) == {"holds", "unclear", "fails"}
    assert table.loc[["L14", "L15"], "published"].tolist() == ["holds", "fails"]


def test_the_tie_breaker_looks_only_at_claims_on_which_the_definitions_differ():
    rows = [("A", "holds", "holds", "fails"), ("B", "holds", "fails", "holds"), ("C", "unclear", "fails", "fails"),
            ("D", "holds", "fails", "unclear")]  # fmt: skip
    table = two_definitions.tie_breaker(pd.DataFrame(rows, columns=["claim", *two_definitions.MEASURES.values()]))
    assert table[["claim", "median sides with"]].to_numpy().tolist() == [
        ["B", "Eq. 1"], ["C", "elementwise"], ["D", "neither"]
    ]  # fmt: skip


def test_an_empty_archive_gives_empty_tables(tmp_path):
    found = layerwise.STUDY.tables(tmp_path)
    medians = two_definitions.layer_medians(found)
    assert medians.empty
    assert two_definitions.agreement(medians).empty
    assert two_definitions.infinities(found).empty
    assert set(two_definitions.verdicts(found)["Eq. 1"]) == {"not run"}
    assert two_definitions.tie_breaker(two_definitions.verdicts(found)).empty
    assert two_definitions.effects(found).empty


def test_figures_show_the_tables(found):
    table = two_definitions.simulate(sizes=[100, 1000])
    axes = plotting.measures_by_size(table, caption="c").axes[0]
    assert [line.get_label() for line in axes.lines] == list(two_definitions.MEASURES.values())
    np.testing.assert_allclose(axes.lines[0].get_ydata(), table.loc[table["measure"] == "Eq. 1", "median"])
    medians = two_definitions.layer_medians(found)
    titles = {name: name for name in [*medians["model"], *medians["dataset"]]}
    figure = plotting.definitions_by_layer(medians, titles=titles, caption="c")
    assert len(figure.axes) == 4
    points = medians.query("dataset == 'cifar10' and model == 'resnet18'")
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), points["elementwise"])

"""Clustering of curves: the paper's rules on known answers, choices and stability on planted clusters, odd inputs."""

import itertools

import numpy as np
import pytest

from rwclib import RWCTracker, clustering, models
from rwclib.errors import ConfigError

RNG = np.random.default_rng(0)


def planted(sizes=(12, 8, 5), epochs=20, noise=0.02, gap=1.0):
    """Layers around flat curves at 1, 1 + gap, ..., in this order, and their true labels."""
    labels = np.repeat(range(len(sizes)), sizes)
    rng = np.random.default_rng(1)
    return 1 + gap * labels[:, None] + noise * rng.standard_normal((len(labels), epochs)), labels


def same(a, b):
    """Whether two labellings are one partition."""
    pairs = set(zip(a.tolist(), b.tolist(), strict=True))
    return len(pairs) == len(set(a.tolist())) == len(set(b.tolist()))


def test_an_infinity_becomes_the_finite_sum_over_the_number_of_all_epochs():
    found = clustering.fill_infinite(np.array([[np.inf, 1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 1.0]]))
    assert found.tolist() == [[1.5, 1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 1.0]]
    assert clustering.fill_infinite(np.full((1, 3), np.inf)).tolist() == [[0.0, 0.0, 0.0]]


def test_an_outlier_becomes_the_mean_that_includes_it_in_one_pass():
    curve = np.array([[1.0] * 9 + [11.0]])  # mean 2, standard deviation 3: the last is three deviations away
    assert clustering.replace_outliers(curve).tolist() == [[1.0] * 9 + [2.0]]
    assert clustering.replace_outliers(curve, n_std=3.0).tolist() == curve.tolist()
    two = np.array([[1.0] * 8 + [11.0, 5.0]])
    once = clustering.replace_outliers(two)
    assert once[0, 9] == 5.0  # hidden by the larger one, and there is no second pass
    assert once[0, 8] == pytest.approx(2.4)


def test_planted_clusters_are_found_by_every_method_and_scale():
    curves, labels = planted()
    found = clustering.cluster(curves, 3)
    assert same(found.labels, labels)
    assert sorted(found.sizes) == [5, 8, 12]
    assert found.inertia == pytest.approx(
        sum(((curves[labels == k] - curves[labels == k].mean(0)) ** 2).sum() for k in range(3))
    )
    for method in clustering.METHODS:
        assert same(clustering.labels(curves, 3, method), labels), method
        assert same(clustering.labels(clustering.scale(curves, "log"), 3, method), labels), method


def test_shape_ignores_how_much_a_layer_changes_and_sees_when():
    when = np.vstack([np.linspace(2, 0, 10)] * 4 + [np.linspace(0, 2, 10)] * 4)
    curves = when * RNG.uniform(1, 100, (8, 1))
    found = clustering.cluster(clustering.scale(curves, "shape"), 2)
    assert same(found.labels, np.repeat([0, 1], 4))
    assert clustering.scale(np.zeros((2, 3)), "shape").tolist() == [[0.0] * 3] * 2


def test_a_partition_knows_its_inertia_and_whether_k_means_would_keep_it():
    curves, labels = planted()
    right, wrong = ["abc"[k] for k in labels], labels.copy()
    wrong[0] = 2
    assert clustering.partition(curves, right).inertia == pytest.approx(clustering.cluster(curves, 3).inertia)
    assert clustering.partition(curves, right).sizes == [12, 8, 5]
    assert clustering.is_fixed_point(curves, right)
    assert not clustering.is_fixed_point(curves, wrong)
    with pytest.raises(ConfigError, match="2 labels for 25 layers"):
        clustering.partition(curves, [0, 1])


def test_the_search_finds_the_least_inertia_whatever_the_order_and_the_rounding():
    rng = np.random.default_rng(2)
    curves = rng.standard_normal((9, 2))
    found = clustering.least(curves, 3)
    ways = np.array(list(itertools.product(range(3), repeat=8)))
    all_ways = [clustering.partition(curves, [0, *way]).inertia for way in ways]
    assert found[3].inertia == pytest.approx(min(all_ways))

    curves, labels = planted(noise=1.0)
    found, order = clustering.least(curves), rng.permutation(len(curves))
    assert list(found) == list(range(1, 18))
    assert same(clustering.least(planted()[0], 3)[3].labels, labels)
    again = clustering.least((curves * (1 + 1e-13 * rng.standard_normal(curves.shape)))[order])
    for k, of in found.items():
        assert len(of.centroids) == k
        assert of.inertia <= clustering.cluster(curves, k, n_init=20).inertia * (1 + 1e-9)
        assert same(of.labels[order], again[k].labels)
    assert list(clustering.least(np.ones((4, 5)))) == [1]
    assert clustering.least(np.ones((1, 5)))[1].labels.tolist() == [0]
    assert clustering.least(np.eye(4)[[0, 0, 1, 2]])[3].inertia == 0


def test_rounding_does_not_decide_where_k_means_starts():
    """Without weights that break ties, a sixth of these end elsewhere."""
    rng = np.random.default_rng(3)
    pairs = np.repeat(10 * rng.standard_normal((12, 25)), 2, axis=0)
    curves = rng.permutation(pairs + rng.standard_normal(pairs.shape))
    for seed in range(60):
        noisy = curves * (1 + 1e-15 * rng.standard_normal(curves.shape))
        first, again = (clustering.cluster(of, 16, seed, n_init=1) for of in (curves, noisy))
        assert again.labels.tolist() == first.labels.tolist(), seed
    assert clustering.cluster(curves, 24).inertia == 0


def test_k_is_chosen_where_the_clusters_are():
    table = clustering.choose_k(planted(gap=3.0)[0])
    assert table.loc[table["elbow"], "k"].tolist() == [3]
    assert table.loc[table["best"], "k"].tolist() == [3]
    assert (table["inertia"].diff().dropna() < 0).all()
    assert table["k"].tolist() == list(range(1, 18))
    assert clustering.scree(planted()[0], ks=[2, 4])["k"].tolist() == [2, 4]


def test_projection_is_onto_the_directions_of_largest_variance():
    line = np.outer(np.arange(6.0), np.ones(9))
    found = clustering.project(line)
    assert found.shape == (6, 2)
    assert np.abs(np.diff(found[:, 0])) == pytest.approx(3.0)
    assert found[:, 1] == pytest.approx(0.0, abs=1e-9)
    assert clustering.project(np.ones((1, 5))).tolist() == [[0.0, 0.0]]
    assert clustering.project(np.arange(4.0)[:, None])[:, 1].tolist() == [0.0] * 4


def test_stability_tells_clusters_from_noise():
    clear = clustering.stability(planted()[0], 3).set_index("over")
    assert clear.loc[["seeds", "epochs"], "median"].tolist() == [1.0, 1.0]
    nothing = clustering.stability(np.eye(30), 3, "hdbscan")
    assert nothing["median"].isna().all()  # not 1 because nothing is found every time
    noise = clustering.stability(RNG.standard_normal((40, 20)), 5).set_index("over")
    assert (noise["median"] < 0.6).all()
    assert (noise["low"] <= noise["median"]).all()
    assert (noise["median"] <= noise["high"]).all()


def test_odd_inputs_give_results_or_one_sentence():
    constant = np.ones((6, 5))
    assert clustering.cluster(constant, 1).inertia == 0
    assert clustering.choose_k(constant)[["k", "elbow", "best"]].values.tolist() == [[1, False, False]]
    assert clustering.clean(constant).tolist() == constant.tolist()
    single = np.ones((1, 5))
    assert clustering.cluster(single, 1).labels.tolist() == [0]
    assert {method: clustering.labels(single, 1, method).tolist() for method in clustering.METHODS} == {
        key: [0] for key in clustering.METHODS
    }
    for bad, message in [
        (np.array([[1.0, np.nan]]), "layer 0 has a change of NaN .*; leave such layers out"),
        (np.array([[1.0, np.inf]]), "layer 0 has an infinite change; use `fill_infinite` first"),
        (np.ones(4), "expected an array"),
        (np.ones((0, 4)), "expected an array"),
    ]:
        with pytest.raises(ConfigError, match=message) as error:
            clustering.cluster(bad, 1)
        assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="k is 3, but there are 1 distinct layers"):
        clustering.cluster(constant, 3)
    for method in clustering.METHODS:
        for k in (0, 26):
            with pytest.raises(ConfigError, match=f"k is {k}"):
                clustering.labels(planted()[0], k, method)
    with pytest.raises(ConfigError, match="24 labels for 25 layers"):
        clustering.partition(planted()[0], [None] + [1] * 24)
    assert clustering.project(constant).tolist() == [[0.0, 0.0]] * 6
    assert clustering.choose_k(np.eye(6))["best"].sum() == 1
    with pytest.raises(ConfigError, match="unknown scale"):
        clustering.scale(constant, "x")
    with pytest.raises(ConfigError, match="unknown method"):
        clustering.labels(constant, 1, "x")


def test_a_trackers_history_clusters_in_three_lines():
    import torch

    model = models.build("resnet18", num_classes=10, width=8)
    tracker = RWCTracker(model)
    for _ in range(4):
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight += (
                    (0.5 if name.startswith("layer4") else 0.01) * weight.std(correction=0) * torch.randn_like(weight)
                )
        tracker.step()
    history = tracker.table().pivot(index="layer", columns="step", values="rwc").loc[tracker.layers]
    found = clustering.cluster(clustering.clean(history.to_numpy()), k=2)
    assert same(found.labels, np.array([layer.startswith("layer4") for layer in history.index]).astype(int))

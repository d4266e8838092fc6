import numpy as np
import pytest
import torch
from torch import nn

from rwclib import features, models
from rwclib.errors import ConfigError


@pytest.fixture
def sets():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(200, 12)) @ rng.normal(size=(12, 12)) + 5
    return a, a[:, :9] + rng.normal(size=(200, 9))


def test_correlations_are_numpys(sets):
    a, b = sets
    expected = np.corrcoef(a.T, b.T)
    np.testing.assert_allclose(features.correlation(a), expected[:12, :12], atol=1e-10)
    np.testing.assert_allclose(features.correlation(a, b), expected[:12, 12:], atol=1e-10)
    off = expected[:12, :12][~np.eye(12, dtype=bool)]
    assert features.mean_off_diagonal(features.correlation(a)) == pytest.approx(off.mean())


def test_batches_add_up_to_the_whole(sets):
    a, b = (torch.tensor(values) for values in sets)
    parts = features.Moments()
    for rows in torch.arange(200).split(37):
        parts.add(a[rows].float(), b[rows].float())
    whole = features.moments(*sets)
    np.testing.assert_allclose(parts.correlation(), whole.correlation(), atol=1e-5)
    assert parts.cka() == pytest.approx(whole.cka(), abs=1e-5)


def test_a_feature_that_does_not_vary_has_no_correlation_and_is_left_out(sets):
    a, _ = sets
    with_dead = np.column_stack([a[:, :5], np.zeros(200), np.full(200, 0.1), a[:, 5:]])
    matrix = features.correlation(with_dead)
    assert np.isnan(np.diagonal(matrix)).nonzero()[0].tolist() == [5, 6]
    assert features.mean_off_diagonal(matrix) == pytest.approx(features.mean_off_diagonal(features.correlation(a)))
    rows, columns = features.match(matrix)
    assert rows.tolist() == columns.tolist() == [i for i in range(14) if i not in (5, 6)]
    assert sorted(features.order(matrix)) == rows.tolist()


def test_the_matching_finds_a_planted_permutation():
    rng = np.random.default_rng(1)
    a, hidden = rng.normal(size=(500, 40)), rng.permutation(40)
    b = a[:, hidden] * rng.uniform(0.1, 9, 40) + 0.2 * rng.normal(size=(500, 40))
    rows, columns = features.match(features.correlation(a, b))
    assert rows.tolist() == list(range(40))
    assert hidden[columns].tolist() == list(range(40))
    found = features.summary(features.moments(a, b))
    assert found["matched"] > 0.5 > 0.2 > found["paired"]


def test_cka_of_a_set_with_itself_and_with_a_rotation_of_it_is_1(sets):
    a, _ = sets
    rotation, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(12, 12)))
    assert features.cka(a, a) == pytest.approx(1, abs=1e-12)
    assert features.cka(a, 3 * a @ rotation) == pytest.approx(1, abs=1e-10)
    assert features.cka(a, np.random.default_rng(3).normal(size=(200, 12))) < 0.3


def test_cka_is_that_of_the_centred_gram_matrices(sets):
    a, b = (values - values.mean(0) for values in sets)
    gram_a, gram_b = a @ a.T, b @ b.T
    expected = (gram_a * gram_b).sum() / np.sqrt((gram_a**2).sum() * (gram_b**2).sum())
    assert features.cka(*sets) == pytest.approx(expected)


def test_streamed_features_are_what_the_last_layer_is_given():
    x, y = torch.randn(10, 1, 32, 32), torch.arange(10)
    for name, width in (("lenet5", 64), ("resnet18", 8), ("vgg19", 8)):
        model = models.build(name, num_classes=10, in_channels=1, width=width).eval()
        parts = list(features.stream([model, model], [(x[:6], y[:6]), (x[6:], y[6:])]))
        found = torch.cat([own for (own, _), _ in parts])
        assert torch.cat([labels for _, labels in parts]).tolist() == y.tolist()
        torch.testing.assert_close(features.last_linear(model)(found), model(x))
        assert not features.last_linear(model)._forward_pre_hooks


def test_a_model_without_a_linear_layer_is_refused():
    with pytest.raises(ConfigError, match="Sequential has no linear layer"):
        features.last_linear(nn.Sequential(nn.Conv2d(1, 1, 1)))

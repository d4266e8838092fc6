import math

import numpy as np
import pytest
import timm
import torch
from scipy import stats

from rwclib import softness
from rwclib.errors import ConfigError


def naive_score(image):
    """The paper's words, one pixel at a time."""
    low, high = image.min(), image.max()
    image = (image - low) / (high - low) if high > low else image * 0
    deviations = []
    for row in range(1, image.shape[0] - 1):
        for column in range(1, image.shape[1] - 1):
            values = [image[row + i, column + j] for i in (-1, 0, 1) for j in (-1, 0, 1)]
            mean = sum(values) / 9
            deviations.append(math.sqrt(sum((value - mean) ** 2 for value in values) / 9))
    return sum(deviations) / len(deviations)


def test_the_score_is_the_naive_loops():
    images = np.random.default_rng(0).normal(3, 5, (6, 17, 12))
    expected = [naive_score(image) for image in images]
    np.testing.assert_allclose(softness.softness_scores(images), expected, atol=1e-6)
    np.testing.assert_allclose(softness.softness_scores(images.reshape(2, 3, 17, 12)).ravel(), expected, atol=1e-6)
    assert softness.softness_score(images[0]) == pytest.approx(expected[0])


def test_a_constant_image_scores_0_and_scale_and_shift_do_not_matter():
    assert softness.softness_score(np.full((8, 8), 7.0)) == 0
    image = np.random.default_rng(1).random((32, 32))
    assert softness.softness_score(-3 * image + 9) == pytest.approx(softness.softness_score(image))


def test_smooth_images_are_softer_than_noise():
    noise = np.random.default_rng(2).random((32, 32))
    ramp = np.add.outer(np.arange(32.0), np.arange(32.0))
    assert softness.softness_score(ramp) < 0.05 < 0.2 < softness.softness_score(noise)
    assert softness.morans_i(ramp) > 0.9
    assert abs(softness.morans_i(noise)) < 0.1
    assert np.isnan(softness.morans_i(np.full((5, 5), 1e9 / 3)))
    assert softness.morans_i(1e-14 * noise) == pytest.approx(softness.morans_i(noise))


def test_morans_i_is_its_definition():
    image = np.random.default_rng(3).random((5, 4))
    z, total, weights = image - image.mean(), 0.0, 0
    for i in range(5):
        for j in range(4):
            for di, dj in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                if 0 <= i + di < 5 and 0 <= j + dj < 4:
                    total, weights = total + z[i, j] * z[i + di, j + dj], weights + 1
    assert softness.morans_i(image) == pytest.approx(20 / weights * total / (z**2).sum())


def test_small_images_are_refused():
    with pytest.raises(ValueError, match="at least 3x3 pixels, not 2x9"):
        softness.softness_score(np.zeros((2, 9)))


@pytest.mark.parametrize("model", softness.LAWS)
def test_straight_lines_are_those_of_the_normal_equations(model):
    rng = np.random.default_rng(4)
    x = np.array([1, 1, 1, 2000, 2000, 2000, 10_000, 10_000, 30_000, 30_000, 50_000])
    y = 5 - 0.2 * np.log(x) + 0.1 * rng.random(11)
    found = softness.fit(x, y, model)
    a, b = softness.straightened(x, y, model)
    design = np.stack([a, np.ones(11)], 1)
    slope, intercept = np.linalg.solve(design.T @ design, design.T @ b)
    residuals = b - design @ [slope, intercept]
    error = np.sqrt(residuals @ residuals / 9 / np.square(a - a.mean()).sum())
    r2 = 1 - residuals @ residuals / np.square(b - b.mean()).sum()
    expected = {"n": 11, "slope": slope, "intercept": intercept, "r": np.sign(slope) * np.sqrt(r2), "r2": r2,
                "p": 2 * stats.t.sf(abs(slope) / error, 9)}  # fmt: skip
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-8), name
    np.testing.assert_allclose(found["residuals"], residuals, atol=1e-9)


def test_what_has_no_logarithm_is_refused():
    with pytest.raises(ConfigError, match="the power model needs iterations above 0"):
        softness.fit([0, 1, 2], [1, 2, 3], "power")
    with pytest.raises(ConfigError, match="the exponential model needs scores above 0"):
        softness.fit([1, 2, 3], [0, 1, 2], "exponential")
    with pytest.raises(ConfigError, match="unknown model 'cubic'"):
        softness.fit([1, 2, 3], [1, 2, 3], "cubic")


@pytest.mark.parametrize("true", softness.LAWS)
def test_the_model_that_made_the_scores_has_the_least_aic(true):
    x = np.array([1, 1, 1, 2000, 2000, 2000, 10_000, 10_000, 30_000, 30_000, 50_000], float)
    y = {"linear": 9 - 1e-4 * x, "exponential": 9 * np.exp(-5e-5 * x), "power": 9 * x**-0.15}[true]
    y = y + 0.05 * np.random.default_rng(5).normal(size=11)
    table = softness.aic(x, y).set_index("model")
    assert table["aic"].idxmin() == true
    row = table.loc[true]
    assert row["a"] == pytest.approx(9, rel=0.05)
    curve = {
        "linear": row["a"] + row["b"] * x,
        "exponential": row["a"] * np.exp(row["b"] * x),
        "power": row["a"] * x ** row["b"],
    }
    assert row["rss"] == pytest.approx(((curve[true] - y) ** 2).sum(), rel=1e-6)
    assert table.loc[true, "delta"] == 0


def test_the_printed_p_values_follow_from_the_printed_r2_with_ten_points_not_eleven():
    for r2, printed in ((0.9220, 1.05e-5), (0.8996, 2.90e-5)):
        assert softness.p_of_r2(r2, 10) == pytest.approx(printed, rel=0.005)
        assert softness.p_of_r2(r2, 11) < printed / 3
    x, y = np.arange(10.0), np.random.default_rng(6).random(10)
    line = stats.linregress(x, y)
    assert softness.p_of_r2(line.rvalue**2, 10) == pytest.approx(line.pvalue)


def test_filters_of_any_model():
    model = timm.create_model("mobilenetv3_small_050", num_classes=10)
    filters = softness.filter_grid(model, "conv_stem")
    assert filters.shape == (16, 3, 3, 3)
    np.testing.assert_array_equal(filters, model.conv_stem.weight.detach().numpy())
    with pytest.raises(ConfigError, match="'classifier' is no 2-D convolution of MobileNetV3; known: conv_stem, "):
        softness.filter_grid(model, "classifier")


def test_responses_are_the_layers_own_in_float64():
    layer = torch.nn.Conv2d(3, 5, 5, padding=2, bias=False)
    filters, image = layer.weight.detach().numpy(), np.random.default_rng(7).random((3, 32, 32)).astype(np.float32)
    expected = layer.double()(torch.from_numpy(image.astype(np.float64))[None])[0].detach().numpy()
    found = softness.responses(filters, image)
    assert found.dtype == softness.softness_scores(found).dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(softness.responses(filters, image, rim=False), expected[:, 2:-2, 2:-2], atol=1e-12)

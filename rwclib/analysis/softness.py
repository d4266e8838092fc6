"""Filters of convolutions, their responses to an image, and how soft these are (study 4).

The score is that of Fountain and Rasmus, Journal of Emerging Investigators 2019: an image is scaled to [0, 1], the standard
deviation is taken in every 3x3 window, and their mean is the image's score: the lower, the softer. What the paper leaves
open is decided so: only whole windows count (an image of (H, W) has (H - 2)(W - 2)), the standard deviation is that of the
nine pixels themselves (ddof 0), and an image of one value is scaled to 0 and scores 0. A filtered image has the size of the
image, with zeros around that, as in the network; a filter whose weights do not add up to 0 draws a rim so, which takes part
in the scaling to [0, 1]: `responses(..., rim=False)` leaves it out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from torch import nn

from rwclib.errors import ConfigError

LAWS = ("linear", "exponential", "power")


def filter_grid(model: nn.Module, layer: str) -> np.ndarray:
    """A convolution's filters as (filters, channels, height, width) float32, from any model.

    Args:
        model: any `nn.Module`.
        layer: name of the convolution, as `model.named_modules()` has it.

    Raises:
        ConfigError: there is no such layer, or it is no 2-D convolution.
    """
    convolution = dict(model.named_modules()).get(layer)
    if not isinstance(convolution, nn.Conv2d):
        known = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
        raise ConfigError(
            f"{layer!r} is no 2-D convolution of {type(model).__name__}; known: {', '.join(known) or 'none'}"
        )
    return convolution.weight.detach().float().cpu().numpy().copy()


def responses(filters: np.ndarray, image: np.ndarray, rim: bool = True) -> np.ndarray:
    """What each filter makes of an image: (filters, height, width) float64.

    Args:
        filters: (filters, channels, k, k), k odd.
        image: (channels, height, width).
        rim: zeros around the image; without, only where the whole filter lies on it, (filters, height - k + 1, width - k + 1).
    """
    size = filters.shape[-1]
    around = size // 2 if rim else 0
    padded = np.pad(np.asarray(image, np.float64), ((0, 0), (around, around), (around, around)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), (1, 2))
    return np.tensordot(np.asarray(filters, np.float64), windows, ((1, 2, 3), (0, 3, 4)))


def scaled(images: np.ndarray) -> np.ndarray:
    """Each (..., height, width) image scaled linearly to [0, 1]; one of a single value to 0."""
    images = np.asarray(images, np.float64)
    low, high = (edge((-2, -1), keepdims=True) for edge in (images.min, images.max))
    return (images - low) / np.where(high > low, high - low, 1)


def softness_scores(images: np.ndarray) -> np.ndarray:
    """The score of every (..., height, width) image, (...) float64; at least 3x3 pixels each."""
    images = scaled(images)
    if min(images.shape[-2:]) < 3:
        raise ValueError(f"images must have at least 3x3 pixels, not {images.shape[-2]}x{images.shape[-1]}")
    height, width = (size - 2 for size in images.shape[-2:])
    nine = [
        images[..., i : i + height, j : j + width] for i in range(3) for j in range(3)
    ]  # of each window, one after another
    mean = sum(nine) / 9
    return np.sqrt(sum(np.square(pixel - mean) for pixel in nine) / 9).mean((-2, -1))


def softness_score(image: np.ndarray) -> float:
    """The score of one (height, width) image: 0 for a constant one, the lower the softer."""
    return float(softness_scores(image))


def morans_i(images: np.ndarray) -> np.ndarray:
    """Moran's I of every (..., height, width) image, its four neighbours weighing alike: 1 for clusters, about 0 for noise.

    NaN for an image of one value.
    """
    from scipy.ndimage import convolve

    images = np.asarray(images, np.float64)
    flat = images.reshape(-1, *images.shape[-2:])
    cross = np.array([[[0, 1, 0], [1, 0, 1], [0, 1, 0]]], float)
    pairs = convolve(np.ones_like(flat[:1]), cross, mode="constant").sum()
    flat = flat - flat.mean((-2, -1), keepdims=True)
    products = (flat * convolve(flat, cross, mode="constant")).sum((-2, -1))
    squares, varies = np.square(flat).sum((-2, -1)), np.ptp(flat, (-2, -1)) > 0
    correlation = np.divide(products, squares, out=np.full(len(flat), np.nan), where=varies)
    return (correlation * (flat[0].size / pairs)).reshape(images.shape[:-2])


def straightened(iterations: Sequence[float], scores: Sequence[float], model: str) -> tuple[np.ndarray, np.ndarray]:
    """x and y as `model` makes a line of them: as they are, (x, log y), or (log x, log y); iteration 1 has log 0.

    Raises:
        ConfigError: an unknown model, or a logarithm of what is not positive.
    """
    if model not in LAWS:
        raise ConfigError(f"unknown model {model!r}; known: {', '.join(LAWS)}")
    x, y = (np.asarray(values, np.float64) for values in (iterations, scores))
    for values, name in (
        (x, "iterations") if model == "power" else (None, ""),
        (y, "scores") if model != "linear" else (None, ""),
    ):
        if values is not None and (values <= 0).any():
            raise ConfigError(f"the {model} model needs {name} above 0; leave the others out")
    return np.log(x) if model == "power" else x, y if model == "linear" else np.log(y)


def fit(iterations: Sequence[float], scores: Sequence[float], model: str) -> dict[str, float | np.ndarray]:
    """The straight line of least squares through the straightened points (at least 3), by SciPy.

    Raises:
        ConfigError: as `straightened`.

    Returns:
        n, slope, intercept, r, r2, p (two-sided, of the slope), and residuals (n,), all on the straightened scale.
    """
    from scipy.stats import linregress

    x, y = straightened(iterations, scores, model)
    line = linregress(x, y)
    return {
        "n": len(x), "slope": line.slope, "intercept": line.intercept, "r": line.rvalue, "r2": line.rvalue**2,
        "p": line.pvalue, "residuals": y - line.intercept - line.slope * x,
    }  # fmt: skip


def aic(iterations: Sequence[float], scores: Sequence[float]) -> pd.DataFrame:
    """Akaike's criterion of the three models, each fitted by least squares to the scores themselves, not to their logarithms.

    Only so are they comparable: R^2 of a logarithm says nothing of the original scale.

    Returns:
        One row per model: model, a, b (y = a + b x, a exp(b x), a x^b), rss, aic (n log(rss / n) + 6: two parameters and a
        variance), delta (over the least).
    """
    from scipy.optimize import least_squares

    x, y = (np.asarray(values, np.float64) for values in (iterations, scores))
    unit = x.max()
    curves = {
        "linear": lambda p: p[0] + p[1] * x / unit,
        "exponential": lambda p: p[0] * np.exp(p[1] * x / unit),
        "power": lambda p: p[0] * x ** p[1],
    }
    rows = []
    for model, curve in curves.items():
        line = fit(x, y, model)
        start = [line["intercept"] if model == "linear" else np.exp(line["intercept"]),
                 line["slope"] * (1 if model == "power" else unit)]  # fmt: skip
        fitted = least_squares(lambda p, curve=curve: curve(p) - y, start, x_scale="jac")
        a, b = fitted.x[0], fitted.x[1] / (1 if model == "power" else unit)
        rss = float(np.square(fitted.fun).sum())
        rows.append({"model": model, "a": a, "b": b, "rss": rss, "aic": len(x) * np.log(rss / len(x)) + 6})
    table = pd.DataFrame(rows)
    return table.assign(delta=table["aic"] - table["aic"].min())


def p_of_r2(r2: np.ndarray | float, n: int) -> np.ndarray | float:
    """Two-sided p of a slope that has this R^2 over n points: of Student's t with n - 2 degrees of freedom."""
    from scipy.stats import t

    return 2 * t.sf(np.sqrt(r2 * (n - 2) / (1 - r2)), n - 2)

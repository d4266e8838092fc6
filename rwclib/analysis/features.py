"""Penultimate features of image classifiers and their correlations, within a model and across two.

A feature is one input of the network's last linear layer, over images. Its correlations are Pearson's; features that do
not vary over the images (dead ReLUs) have none and are left out and counted. Sums are gathered batch by batch, so that no
more than one batch of activations is ever in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from rwclib.errors import ConfigError


def last_linear(model: nn.Module) -> nn.Linear:
    """The model's last linear layer; `ConfigError` if it has none."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ConfigError(f"{type(model).__name__} has no linear layer, and so no penultimate features")
    return layers[-1]


@contextmanager
def _inputs(layer: nn.Module) -> Iterator[list[Tensor]]:
    """A list that always holds what the layer was last given."""
    last: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, given: last.__setitem__(slice(None), [given[0]]))
    try:
        yield last
    finally:
        hook.remove()


@torch.no_grad()
def stream(
    models: Iterable[nn.Module], batches: Iterable[tuple[Tensor, Tensor]]
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Penultimate features of several models on the same images, batch by batch.

    Args:
        models: in evaluation mode, on the batches' device.
        batches: (images, labels), as `rwclib.runs.data.Batches.in_order` yields them.

    Yields:
        The models' features, each (batch, features) float32, and the labels (batch,).
    """
    models = list(models)
    with ExitStack() as hooks:
        inputs = {model: hooks.enter_context(_inputs(last_linear(model))) for model in models}
        for x, labels in batches:
            for model in inputs:
                model(x)
            yield [inputs[model][0].float() for model in models], labels


SUMMARY = ("paired", "matched", "cka")


class Moments:
    """Sums of two feature sets over images, from which follow correlations and CKA.

    `add` takes (batch, a) and (batch, b) features of the same images. Memory is O(a b + a² + b²), whatever the number of images.
    """

    def __init__(self) -> None:
        self.count = 0
        self._sums: list[Tensor] = []

    def add(self, a: Tensor, b: Tensor) -> None:
        a, b = a.double(), b.double()
        if not self.count:  # sums about the first batch's means lose no digits
            self._centre = a.mean(0), b.mean(0)
        a, b = a - self._centre[0], b - self._centre[1]
        new = [a.sum(0), b.sum(0), a.T @ a, b.T @ b, a.T @ b]
        self._sums = [old + more for old, more in zip(self._sums, new, strict=True)] if self.count else new
        self.count += len(a)

    def covariances(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(a, a), (b, b) and (a, b) sums of products of deviations from the means, float64."""
        a, b, aa, bb, ab = (total.cpu().numpy() for total in self._sums)
        return aa - np.outer(a, a) / self.count, bb - np.outer(b, b) / self.count, ab - np.outer(a, b) / self.count

    def correlation(self) -> np.ndarray:
        """(a, b) Pearson correlations; NaN where a feature does not vary."""
        aa, bb, ab = self.covariances()
        scale = np.sqrt(np.outer(_variances(aa), _variances(bb)))
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(scale > 0, ab / scale, np.nan).clip(-1, 1)

    def cka(self) -> float:
        """Linear centred kernel alignment of the two sets (Kornblith et al. 2019), 0 to 1; NaN if one does not vary."""
        aa, bb, ab = self.covariances()
        scale = np.linalg.norm(aa) * np.linalg.norm(bb)
        return float(np.square(ab).sum() / scale) if scale > 0 else float("nan")


def _variances(products: np.ndarray) -> np.ndarray:
    """The diagonal, with 0 for what is rounding of a constant."""
    diagonal = np.diagonal(products)
    return np.where(diagonal > 1e-12 * diagonal.max(initial=0), diagonal, 0)


def correlation(features: np.ndarray, others: np.ndarray | None = None) -> np.ndarray:
    """(a, b) Pearson correlations of the columns of (images, a) and (images, b) features; of one set with itself by default."""
    return moments(features, features if others is None else others).correlation()


def moments(a: np.ndarray, b: np.ndarray) -> Moments:
    """`Moments` of two arrays (images, a) and (images, b)."""
    sums = Moments()
    sums.add(torch.as_tensor(np.asarray(a, np.float64)), torch.as_tensor(np.asarray(b, np.float64)))
    return sums


def cka(a: np.ndarray, b: np.ndarray) -> float:
    """Linear CKA of (images, a) and (images, b) features; 1 for a set and any rotation of it."""
    return moments(a, b).cka()


def mean_positive(features: np.ndarray) -> float:
    """Mean of the positive correlations between different features, of (images, features); NaN without any."""
    matrix = np.corrcoef(features[:, features.std(0) > 0], rowvar=False)
    above = matrix[np.triu_indices(len(matrix), 1)]
    return float(above[above > 0].mean()) if (above > 0).any() else float("nan")


def mean_off_diagonal(matrix: np.ndarray) -> float:
    """Mean of a correlation matrix without its diagonal, NaN left out; NaN if nothing is left."""
    off = matrix[~np.eye(len(matrix), dtype=bool)]
    off = off[np.isfinite(off)]
    return float(off.mean()) if len(off) else float("nan")


def match(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The one-to-one matching of features a and b of the greatest total correlation (Hungarian algorithm).

    Args:
        matrix: (a, b) correlations; features with NaN alone are not matched.

    Returns:
        Indices of a, ascending, and of b, each of as many entries as the smaller set has varying features.
    """
    from scipy.optimize import linear_sum_assignment

    rows, columns = (np.flatnonzero(np.isfinite(matrix).any(axis)) for axis in (1, 0))
    a, b = linear_sum_assignment(matrix[np.ix_(rows, columns)], maximize=True)
    return rows[a], columns[b]


def order(matrix: np.ndarray) -> np.ndarray:
    """Order of a correlation matrix's varying features in which similar ones are neighbours (average linkage)."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    kept = np.flatnonzero(np.isfinite(np.diagonal(matrix)))
    if len(kept) < 3:
        return kept
    distances = (1 - matrix[np.ix_(kept, kept)]).clip(0)
    np.fill_diagonal(distances, 0)
    return kept[leaves_list(linkage(squareform(distances, checks=False), "average", optimal_ordering=True))]


def summary(both: Moments) -> dict[str, float]:
    """What two feature sets have in common.

    Returns:
        `paired`, mean correlation of the features of the same number (NaN for sets of different sizes); `matched`, after
        `match`; `cka`.
    """
    matrix = both.correlation()
    same = np.diagonal(matrix) if len(set(matrix.shape)) == 1 else np.empty(0)
    matched = matrix[match(matrix)]
    return {
        "paired": float(np.nanmean(same)) if np.isfinite(same).any() else float("nan"),
        "matched": float(matched.mean()) if len(matched) else float("nan"),
        "cka": both.cka(),
    }

"""Layers grouped by their curves of relative weight change: outliers, k-means, choice of k, projection, stability.

Every function takes a float array or DataFrame (layers, epochs), one row per layer: a tracker's history, an archived run, or the
arrays that the authors of arXiv 2107.07005 released. `clean` and `cluster` are what that paper does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rwclib.errors import ConfigError

SCALES = {
    "raw": "the curves as they are (the paper)",
    "log": "their logarithms: ratios instead of differences, so that spikes do not decide",
    "shape": "each divided by its own mean: when a layer changes, not how much",
}
METHODS = {
    "k-means": "k-means++ (the paper)",
    "agglomerative": "Ward linkage: the same aim, without a random start",
    "hdbscan": "dense regions; chooses the number of clusters itself and leaves lone layers out (label -1)",
}


@dataclass(frozen=True)
class Clusters:
    """labels (layers,) int; centroids (k, epochs); inertia, the sum of squared distances of layers to their centroids."""

    labels: np.ndarray
    centroids: np.ndarray
    inertia: float

    @property
    def sizes(self) -> list[int]:
        """Number of layers of each cluster."""
        return np.bincount(self.labels, minlength=len(self.centroids)).tolist()


def _checked(rwc: np.ndarray, *, finite: bool = True) -> np.ndarray:
    array = np.asarray(rwc, dtype=np.float64)
    if array.ndim != 2 or not array.size:
        raise ConfigError(f"expected an array (layers, epochs) with at least one of each, not shape {array.shape}")
    names = rwc.index if isinstance(rwc, pd.DataFrame) else range(len(array))
    if np.isnan(array).any():
        layer = names[np.isnan(array).any(1).argmax()]
        raise ConfigError(
            f"layer {layer} has a change of NaN (its weights were all zero?); leave such layers out, as dropna does"
        )
    if finite and np.isinf(array).any():
        raise ConfigError(
            f"layer {names[np.isinf(array).any(1).argmax()]} has an infinite change; use `fill_infinite` first"
        )
    return array


def _check_k(array: np.ndarray, k: int) -> None:
    distinct = len(np.unique(array, axis=0))
    if not 1 <= k <= distinct:
        raise ConfigError(f"k is {k}, but there are {distinct} distinct layers; choose k from 1 to {distinct}")


def fill_infinite(rwc: np.ndarray) -> np.ndarray:
    """Infinite values replaced by the layer's sum of finite values over the number of all its epochs, infinite ones too.

    That is the released code's replacement, a little below the mean of the finite values; 0 if no value is finite.
    """
    array = _checked(rwc, finite=False)
    finite = np.isfinite(array)
    return np.where(finite, array, np.where(finite, array, 0).sum(1, keepdims=True) / array.shape[1])


def replace_outliers(rwc: np.ndarray, n_std: float = 2.0) -> np.ndarray:
    """Values more than `n_std` standard deviations (ddof 0) from the layer's mean replaced by that mean.

    One pass, as the paper does it: the mean and the standard deviation include the outliers themselves.
    """
    array = _checked(rwc)
    mean = array.mean(1, keepdims=True)
    return np.where(abs(array - mean) > n_std * array.std(1, keepdims=True), mean, array)


def clean(rwc: np.ndarray) -> np.ndarray:
    """The paper's preparation: `fill_infinite`, then `replace_outliers`."""
    return replace_outliers(fill_infinite(rwc))


def scale(rwc: np.ndarray, how: str) -> np.ndarray:
    """The curves on a scale of `SCALES`; a layer that never changed stays at 0 on each of them."""
    array = _checked(rwc)
    if how not in SCALES:
        raise ConfigError(f"unknown scale {how!r}; known: {', '.join(SCALES)}")
    if how == "log":
        positive = array[array > 0]
        return np.log(np.maximum(array, positive.min())) if positive.size else np.zeros_like(array)
    if how == "shape":
        mean = array.mean(1, keepdims=True)
        return np.divide(array, mean, out=np.zeros_like(array), where=mean != 0)
    return array


def cluster(rwc: np.ndarray, k: int, seed: int = 0, n_init: int = 10) -> Clusters:
    """k-means++ on the epochs' values, unscaled, at most 300 iterations, the best of `n_init` starts.

    Weights that differ by a millionth break the ties of k-means++: of two layers far from all others either is as good a
    next centroid, and how a processor rounds would decide.

    Raises:
        ConfigError: k below 1 or above the number of distinct layers.
    """
    from sklearn.cluster import KMeans

    array = _checked(rwc)
    _check_k(array, k)
    weights = np.linspace(1, 1 + 1e-6, len(array))
    fitted = KMeans(k, n_init=n_init, max_iter=300, random_state=seed).fit(array, sample_weight=weights)
    return partition(array, fitted.labels_)


def least(rwc: np.ndarray, most: int = 17) -> dict[int, Clusters]:
    """For every k up to `most`, or the number of distinct layers, the partition of least inertia that a thorough search finds.

    k-means starts from Ward's partition, from the partition into k - 1 with any one layer on its own, and from that into k + 1
    with any two clusters merged; where it rests, single layers change cluster while that helps (Hartigan). No seed, no order
    of the layers and no processor's rounding decides. For tens of layers: 64 take less than half a second, 200 half a minute.
    """
    from scipy.cluster.hierarchy import cut_tree, ward

    array = _checked(rwc)
    layers, distinct = range(len(array)), len(np.unique(array, axis=0))
    centred = array - array.mean(0)
    gram = centred @ centred.T
    tree = cut_tree(ward(array)) if distinct > 1 else None
    partitions, top = {1: partition(array, [0] * len(array))}, min(most + 1, distinct)
    for k in [*range(2, top + 1), *range(top - 1, 1, -1)]:
        if k in partitions:  # on the way back
            above = partitions[k + 1].labels
            merged = [np.where(above == a, b, np.where(above == k, a, above)) for a in range(k + 1) for b in range(a)]
            starts = [partitions[k].labels, *merged]
        else:
            starts = [
                tree[:, -k],
                *(np.where(np.arange(len(array)) == i, k - 1, partitions[k - 1].labels) for i in layers),
            ]
        partitions[k] = partition(array, _descend(gram, np.stack(starts), k))
    return {k: partitions[k] for k in range(1, min(most, distinct) + 1)}


def _descend(gram: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """The best labels (layers,) that k-means and then moves of single layers reach from any row of `labels` (starts, layers).

    gram: inner products of the layers about their mean, all that distances to centroids need.
    """
    labels, inertia, rows, tiny = labels.copy(), np.empty(len(labels)), np.arange(len(labels)), 1e-12 * np.trace(gram)
    while len(rows):
        own = np.eye(k)[labels[rows]]  # (starts, layers, k)
        size = own.sum(1, keepdims=True)
        inner = gram @ own / np.maximum(size, 1)
        away = gram.diagonal()[:, None] - 2 * inner + (own * inner).sum(1, keepdims=True) / np.maximum(size, 1)
        mine, mates = (own * away).sum(2, keepdims=True), (own * size).sum(2, keepdims=True)
        inertia[rows] = mine.sum((1, 2))
        nearer = (away - mine).min(2) < -tiny
        moved = np.where(nearer, away.argmin(2), labels[rows])
        change = np.where(own > 0, 0, away * size / (size + 1) - mine * mates / np.maximum(mates - 1, 1))
        change = change.reshape(len(rows), -1)
        layer, to = np.divmod(change.argmin(1), k)
        rests, helps = ~nearer.any(1), change.min(1) < -tiny
        one = np.flatnonzero(rests & helps)
        moved[one, layer[one]] = to[one]
        labels[rows] = moved
        rows = rows[~rests | helps]
    return labels[inertia.argmin()]


def partition(rwc: np.ndarray, labels: Iterable) -> Clusters:
    """Centroids and inertia of given labels of any kind; clusters are numbered in the order of their first layer."""
    array, (codes, _) = _checked(rwc), pd.factorize(np.asarray(list(labels)))
    if len(codes) != len(array) or codes.min() < 0:
        raise ConfigError(f"{(codes >= 0).sum()} labels for {len(array)} layers; give one for each")
    centroids = np.stack([array[codes == code].mean(0) for code in range(codes.max() + 1)])
    return Clusters(codes, centroids, float(((array - centroids[codes]) ** 2).sum()))


def is_fixed_point(rwc: np.ndarray, labels: Iterable) -> bool:
    """Whether k-means would leave this partition as it is: every layer lies nearest to its own cluster's centroid."""
    array, clusters = _checked(rwc), partition(rwc, labels)
    distances = ((array[:, None] - clusters.centroids) ** 2).sum(-1)
    return bool((distances[np.arange(len(array)), clusters.labels] <= distances.min(1)).all())


def project(rwc: np.ndarray) -> np.ndarray:
    """The layers' first two principal components, (layers, 2); 0 for what a single layer or epoch does not have."""
    from sklearn.decomposition import PCA

    array = _checked(rwc)
    count = min(2, *array.shape)
    with np.errstate(invalid="ignore"):  # of equal layers, whose variance is 0
        components = PCA(count, svd_solver="full").fit_transform(array) if len(array) > 1 else np.zeros((1, count))
    return np.pad(components, ((0, 0), (0, 2 - count)))


def scree(rwc: np.ndarray, ks: Iterable[int] = range(1, 18), seed: int = 0, n_init: int | None = 10) -> pd.DataFrame:
    """Inertia and mean silhouette over the number of clusters, columns k, inertia, silhouette.

    Numbers of clusters above that of distinct layers are left out; the silhouette is NaN for one cluster, and where
    every layer has its own. With n_init None the clusters are those of `least`.
    """
    from sklearn.metrics import silhouette_score

    array, rows = _checked(rwc), []
    distinct = len(np.unique(array, axis=0))
    ks = [k for k in ks if k <= distinct]
    searched = least(array, max(ks)) if n_init is None else {}
    for k in ks:
        clusters = searched[k] if searched else cluster(array, k, seed, n_init)
        rows.append((k, clusters.inertia, silhouette_score(array, clusters.labels) if 1 < k < len(array) else np.nan))
    return pd.DataFrame(rows, columns=["k", "inertia", "silhouette"])


def choose_k(rwc: np.ndarray, most: int = 17, seed: int = 0, n_init: int | None = 10) -> pd.DataFrame:
    """`scree` over k = 1..`most` with two columns that mark a choice: `elbow` (kneed's) and `best` silhouette.

    Neither is marked where there is nothing to choose from: no bend in the inertias, no silhouette.
    """
    from kneed import KneeLocator

    table = scree(rwc, range(1, most + 1), seed, n_init)
    bends = len(table) > 2 and table["inertia"].iloc[0] > 0
    elbow = KneeLocator(table["k"], table["inertia"], curve="convex", direction="decreasing").elbow if bends else None
    highest = table["silhouette"].idxmax() if table["silhouette"].notna().any() else -1
    return table.assign(elbow=table["k"] == elbow, best=table.index == highest)


def labels(rwc: np.ndarray, k: int, method: str = "k-means", seed: int = 0) -> np.ndarray:
    """(layers,) labels by a method of `METHODS`; -1 marks layers that HDBSCAN leaves out, and k does not bind it.

    Raises:
        ConfigError: k below 1 or above the number of distinct layers; unknown method.
    """
    from sklearn.cluster import AgglomerativeClustering

    array = _checked(rwc)
    _check_k(array, k)
    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    if method == "k-means":
        return cluster(array, k, seed).labels
    if len(array) < 2:
        return np.zeros(len(array), dtype=int)
    if method == "agglomerative":
        return AgglomerativeClustering(k).fit_predict(array)
    return _hdbscan(array, min(3, len(array)))


def _hdbscan(array: np.ndarray, fewest: int) -> np.ndarray:
    """HDBSCAN of clusters of `fewest` layers and more, without ties.

    It merges in the order of distances that are at least that to the `fewest`-th neighbour, so that many are equal; which of
    them comes first changes labels, and depends on how a processor sorts. Here it is that of the earlier layers.
    """
    from scipy.spatial.distance import pdist, squareform
    from sklearn.cluster import HDBSCAN

    away = squareform(pdist(array))
    dense = np.sort(away)[:, fewest - 1]
    first, second = np.triu_indices(len(array), 1)
    order = squareform((second * len(array) + first) / len(array) ** 2)
    reach = np.maximum(away, np.maximum.outer(dense, dense)) * (1 + 1e-9 * order)
    np.fill_diagonal(reach, 0)
    return HDBSCAN(fewest, min_samples=1, metric="precomputed", copy=True).fit_predict(reach)


def stability(rwc: np.ndarray, k: int, method: str = "k-means", repeats: int = 20, seed: int = 0) -> pd.DataFrame:
    """Adjusted Rand index of repeated clusterings with the first: 1 for the same partition, about 0 for chance.

    NaN where there is nothing to compare: over `seeds` for a method without a random start, and throughout if the method
    puts all layers into one cluster or into none.

    Returns:
        One row each for over = `seeds` (another random start) and `epochs` (epochs drawn with replacement), with median, low
        and high (the 5th and 95th percentile of `repeats`, at least 1).
    """
    from sklearn.metrics import adjusted_rand_score

    array, rng = _checked(rwc), np.random.default_rng(seed)
    first, rows = labels(array, k, method, seed), []
    drawn = [rng.integers(0, array.shape[1], array.shape[1]) for _ in range(max(1, repeats))]
    others = {
        "seeds": [labels(array, k, method, seed + 1 + i) for i in range(len(drawn))] if method == "k-means" else [],
        "epochs": [_labels_or_none(array[:, epochs], k, method, seed) for epochs in drawn],
    }
    for over, partitions in others.items():
        scores = [adjusted_rand_score(first, other) for other in partitions if other is not None]
        told = len(set(first.tolist())) > 1 and len(scores) > 0
        rows.append((over, *(np.quantile(scores, [0.5, 0.05, 0.95]) if told else [np.nan] * 3)))
    return pd.DataFrame(rows, columns=["over", "median", "low", "high"])


def _labels_or_none(array: np.ndarray, k: int, method: str, seed: int) -> np.ndarray | None:
    """Labels, or None where the drawn epochs leave fewer than k distinct layers."""
    return labels(array, k, method, seed) if len(np.unique(array, axis=0)) >= k else None

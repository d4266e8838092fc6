"""Clustering of 2,000 layers by 500 epochs on one core: the whole way, and each method that gives labels.

The curves are planted: 20 groups of layers with random walks of their own, noise and rare spikes.
"""

from __future__ import annotations

import _table

TARGET = 10
WHOLE = "clean, choose_k (k = 1 to 17), cluster, project"
NOTE = """{layers:,} layers by {epochs} epochs. s: seconds of the fastest of {repetitions} repetitions, one thread. share: over the whole way.
stability is of 20 other seeds and 20 bootstraps of the epochs."""


def planted(layers: int, epochs: int) -> object:
    """Curves (layers, epochs), positive."""
    import numpy as np

    rng = np.random.default_rng(0)
    groups = np.exp(np.cumsum(0.1 * rng.standard_normal((20, epochs)), axis=1) - 2)
    curves = groups[rng.integers(0, 20, layers)] * np.exp(0.2 * rng.standard_normal((layers, epochs)))
    curves[rng.random(curves.shape) < 1e-3] *= 100
    return curves


def measure(layers: int, epochs: int, repetitions: int) -> dict[str, float]:
    """Least seconds of every way."""
    from rwclib import clustering

    curves = planted(layers, epochs)

    def whole() -> None:
        clean = clustering.clean(curves)
        table = clustering.choose_k(clean)
        clustering.cluster(clean, int(table.loc[table["best"], "k"].iloc[0]))
        clustering.project(clean)

    clean = clustering.clean(curves)
    ways = {WHOLE: whole, "stability of k-means, k = 5": lambda: clustering.stability(clean, 5)}
    ways |= {
        f"labels, {method}": lambda method=method: clustering.labels(clean, 5, method) for method in clustering.METHODS
    }
    return {what: min(_table.seconds(way) for _ in range(repetitions)) for what, way in ways.items()}


def main() -> None:
    args = _table.options(__doc__)
    layers, epochs, repetitions = (60, 25, 1) if args.quick else (2000, 500, 2)
    evidence = _table.environment("1")
    found = _table.in_fresh_process(1, measure, layers, epochs, repetitions)
    rows = [{"what": what, "s": seconds, "share": seconds / found[WHOLE]} for what, seconds in found.items()]
    rows[0] |= _table.verdict(found[WHOLE] <= TARGET, f"<= {TARGET} s")
    _table.report(rows, evidence, NOTE.format(layers=layers, epochs=epochs, repetitions=repetitions), args.json)


if __name__ == "__main__":
    main()

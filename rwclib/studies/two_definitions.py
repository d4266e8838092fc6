"""Eq. 1 against the elementwise mean: on simulated weights, at initialisation, and in the archived runs of study 1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from rwclib import archive, claims, metrics, models
from rwclib.studies import layerwise, layerwise_claims
from rwclib.tracker import weight_tensors

MEASURES = claims.DEFINITIONS | {"rwc_median": "elementwise median"}


def simulate(
    sizes: Sequence[int] = tuple(10**k for k in range(2, 8)), change: float = 0.1, seed: int = 0
) -> pd.DataFrame:
    """The measures on layers of N(0, 1) weights that all move by N(0, change) steps, by the layer's size.

    Eq. 1 tends to `change` (a ratio of two means of half-normal variables), whatever the size. The elementwise mean has
    no finite expectation, since 1 / |w| has none: its typical value grows with the logarithm of the size.

    Args:
        sizes: numbers of weights.
        change: standard deviation of the steps, relative to that of the weights.
        seed: of the weights and steps.

    Returns:
        One row per size and measure: size, measure, draws, and the draws' median, p10 and p90.
    """
    rng, rows = np.random.default_rng(seed), []  # not PyTorch's generator, which gives exact zeros
    for size in sizes:
        draws = int(np.clip(10_000_000 // size, 5, 2000))
        values = []
        for _ in range(draws):
            before = rng.standard_normal(size)
            after = before + change * rng.standard_normal(size)
            values.append(metrics.measure([torch.from_numpy(after)], [torch.from_numpy(before)])[0].tolist())
        for name, measure in MEASURES.items():
            p10, median, p90 = np.quantile([row[metrics.METRICS.index(name)] for row in values], [0.1, 0.5, 0.9])
            rows.append({"size": size, "measure": measure, "draws": draws, "median": median, "p10": p10, "p90": p90})
    return pd.DataFrame(rows)


def exact_zeros(seeds: Sequence[int] = layerwise.SEEDS) -> pd.DataFrame:
    """Initial weights that are exactly 0 in the full-width networks for CIFAR-10: model, seed, zeros, layers.

    One such weight makes the elementwise mean of its layer infinite in the first epoch.
    """
    rows = []
    for model in layerwise.MODELS:
        for seed in seeds:
            weights = weight_tensors(models.build(model, num_classes=10, seed=seed))
            zeros = {name: int((weight == 0).sum()) for name, weight in weights.items()}
            rows.append({
                "model": model, "seed": seed, "zeros": sum(zeros.values()),
                "layers": ", ".join(name for name, count in zeros.items() if count) or "-",
            })  # fmt: skip
    return pd.DataFrame(rows)


def infinities(found: archive.Tables) -> pd.DataFrame:
    """Non-finite elementwise means in the runs drawn, one row per run that has one: how many, in which epochs and layers."""
    rows = []
    for (model, dataset, seed), layers in _drawn(found).groupby(["model", "dataset", "seed"], sort=False):
        bad = layers[~np.isfinite(layers["rwc_elementwise"])]
        if len(bad):
            rows.append({
                "model": model, "dataset": dataset, "seed": seed, "infinite": len(bad), "of": len(layers),
                "first_epoch": bad["epoch"].min(), "last_epoch": bad["epoch"].max(), "layers": bad["layer"].nunique(),
            })  # fmt: skip
    columns = ["model", "dataset", "seed", "infinite", "of", "first_epoch", "last_epoch", "layers"]
    return pd.DataFrame(rows, columns=columns)


def layer_means(found: archive.Tables) -> pd.DataFrame:
    """Each layer's mean of every measure over seeds and the epochs after the first, finite values only.

    Columns: model, dataset, profile, group, layer, depth, size (weights in the tensor), then one per measure.
    """
    rows = _drawn(found)
    rows = rows[rows["epoch"] > 1].replace([np.inf, -np.inf], np.nan)
    keys = ["model", "dataset", "profile", "group", "layer", "depth", "size"]
    return rows.groupby(keys, sort=False)[list(MEASURES)].mean().rename(columns=MEASURES).reset_index()


def agreement(means: pd.DataFrame) -> pd.DataFrame:
    """How far the measures agree on the order of a network's layers, one row per model and data set.

    Args:
        means: as `layer_means` gives them.

    Returns:
        Spearman's rank correlation over the layers between each pair of measures, and the median over the layers of
        elementwise mean / Eq. 1.
    """
    rows = []
    for (model, dataset, profile), of in means.groupby(["model", "dataset", "profile"], sort=False):
        rank = of[list(MEASURES.values())].corr(method="spearman")
        rows.append({
            "model": model, "dataset": dataset, "profile": profile, "layers": len(of),
            "Eq. 1 ~ elementwise": rank.loc["Eq. 1", "elementwise"],
            "Eq. 1 ~ median": rank.loc["Eq. 1", "elementwise median"],
            "elementwise ~ median": rank.loc["elementwise", "elementwise median"],
            "elementwise / Eq. 1": (of["elementwise"] / of["Eq. 1"]).median(),
        })  # fmt: skip
    return pd.DataFrame(rows)


def side_by_side(found: archive.Tables) -> pd.DataFrame:
    """Verdict and effect of every claim under each measure, and the published medians' verdict (elementwise values)."""
    table = layerwise_claims.verdicts(found, metrics=MEASURES)
    table = table[table["definition"] != "-"]  # accuracies do not depend on a definition
    table = table.assign(
        cell=table["verdict"] + table["effect"].map(lambda effect: "" if np.isnan(effect) else f" {effect:.2f}")
    )
    wide = table.pivot_table("cell", "claim", "definition", aggfunc="first", sort=False)[list(MEASURES.values())]
    wide["published figures"] = pd.Series(layerwise_claims.published())
    wide["profile"] = table.groupby("claim", sort=False)["profile"].first()
    return wide.reset_index()


def tally(side: pd.DataFrame) -> pd.DataFrame:
    """In how many claims each pair of columns of `side_by_side` gives the same verdict, of those that both judge."""
    columns = [*MEASURES.values(), "published figures"]
    verdict = side[columns].map(lambda cell: cell.rstrip("0123456789. "))
    judged = ~verdict.isin(["not run", "-"])
    rows = []
    for i, a in enumerate(columns):
        for b in columns[i + 1 :]:
            both = judged[a] & judged[b]
            rows.append({"verdicts": f"{a} and {b}", "same": (verdict[a] == verdict[b])[both].sum(), "of": both.sum()})
    return pd.DataFrame(rows)


def _drawn(found: archive.Tables) -> pd.DataFrame:
    """The rows of every model and data set at the best profile it has."""
    pairs = found.layers[["model", "dataset"]].drop_duplicates().itertuples(index=False)
    parts = [layerwise.best(found.layers, model, dataset) for model, dataset in pairs]
    return pd.concat(parts, ignore_index=True) if parts else found.layers

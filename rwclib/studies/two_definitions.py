"""Eq. 1 against the elementwise mean: on simulated weights, at initialisation, and in the archived runs of study 1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from rwclib import archive, claims, data, metrics, models
from rwclib.studies import layerwise, layerwise_claims
from rwclib.tracker import weight_tensors

MEASURES = claims.DEFINITIONS | {"rwc_median": "median"}  # the last of at most 4,096 weights of a layer


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


def exact_zeros(
    seeds: Sequence[int] = layerwise.SEEDS, networks: Sequence[str] = tuple(layerwise.MODELS)
) -> pd.DataFrame:
    """Initial weights that are exactly 0 in the full-width networks for CIFAR-10: model, seed, zeros, layers.

    One such weight makes the elementwise mean of its layer infinite in the first epoch.
    """
    rows = []
    for model in networks:
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


def caption(found: archive.Tables) -> str:
    """Per data set, a line with each model's profile and seeds, and the data copy."""
    shown = pd.concat([layerwise.shown(found, model).assign(model=model) for model in layerwise.MODELS])
    lines = ["epochs after the first, mean over seeds, finite values only"]
    for dataset, rows in shown.groupby("dataset", sort=False):
        runs = ", ".join(f"{row.model} {row.profile} (seeds {row.seeds})" for row in rows.itertuples())
        lines.append(f"{data.get(dataset).title}: {runs}; copy {rows['data copy'].iloc[0].split(';')[0]}")
    return "\n".join(lines)


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
            "Eq. 1 ~ mean": rank.loc["Eq. 1", "elementwise"],
            "Eq. 1 ~ median": rank.loc["Eq. 1", "median"],
            "mean ~ median": rank.loc["elementwise", "median"],
            "mean / Eq. 1": (of["elementwise"] / of["Eq. 1"]).median(),
        })  # fmt: skip
    return pd.DataFrame(rows)


def effects(found: archive.Tables) -> pd.DataFrame:
    """Every comparison's effect (ratio) under each measure, and that of the published medians (elementwise values).

    Columns: claim, comparison, one per measure, `published`.
    """
    parts = layerwise_claims.details(found, metrics=MEASURES).query(
        "definition != '-'"
    )  # accuracies have no definition
    wide = parts.pivot_table("effect", ["claim", "comparison", "profile"], "definition", sort=False, dropna=False)
    wide = wide.dropna(how="all").reindex(columns=list(MEASURES.values())).reset_index().rename_axis(columns=None)
    wide = wide.drop(columns="profile")
    published = layerwise_claims.published_details()[["claim", "comparison", "effect"]]
    return wide.merge(published.rename(columns={"effect": "published"}), how="left")


def verdicts(found: archive.Tables) -> pd.DataFrame:
    """Every claim's verdict under each measure, and that of the published medians: claim, profile, one column each."""
    table = layerwise_claims.verdicts(found, metrics=MEASURES).query("definition != '-'")
    wide = table.pivot(index="claim", columns="definition", values="verdict").loc[table["claim"].unique()]
    wide = wide[list(MEASURES.values())].rename_axis(columns=None)
    published = (
        layerwise_claims.published_details().groupby("claim")["verdict"].agg(lambda part: claims.of_all(set(part)))
    )
    wide["published"] = published
    wide.insert(0, "profile", table.groupby("claim")["profile"].first())
    return wide.reset_index()


def tie_breaker(table: pd.DataFrame) -> pd.DataFrame:
    """The claims on which Eq. 1 and the elementwise mean differ, and with which of them the median's verdict agrees.

    Args:
        table: as `verdicts` gives it.

    Returns:
        claim, the three verdicts, and `median sides with`: `Eq. 1`, `elementwise` or `neither`.
    """
    one, mean, median = MEASURES.values()
    rows = table.loc[table[one] != table[mean], ["claim", one, mean, median]]
    sides = np.select([rows[median] == rows[one], rows[median] == rows[mean]], [one, mean], "neither")
    return rows.assign(**{"median sides with": sides})


def _drawn(found: archive.Tables) -> pd.DataFrame:
    """The rows of every model and data set at the best profile it has."""
    pairs = found.layers[["model", "dataset"]].drop_duplicates().itertuples(index=False)
    parts = [layerwise.best(found.layers, model, dataset) for model, dataset in pairs]
    return pd.concat(parts, ignore_index=True) if parts else found.layers

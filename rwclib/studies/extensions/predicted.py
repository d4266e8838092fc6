"""Study 1's runs and published figures beside `rwclib.analysis.theory`, and a run measured step by step."""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd

from rwclib import _layers, metrics
from rwclib.analysis import theory
from rwclib.runs import archive, data, models
from rwclib.studies import layerwise
from rwclib.studies.extensions.loop import Loop
from rwclib.studies.layerwise import figures
from rwclib.studies.stored import stored

RUN = ["profile", "model", "dataset", "seed"]
BATCH_NORM, CIFAR = ("resnet18", "vgg19_bn"), ("cifar10", "cifar100")
SETTLED = 3  # relaxation times


def layers(tables: archive.Tables) -> pd.DataFrame:
    """The layers of the papers' groups in the drawn epochs after the first, beside theory.

    Columns beside those of `Tables.layers`: `steps` of an epoch, `growth` ρ, `expected` (L2 ratio, the ρ form), `factor`
    (measured L2 ratio over it), `shape` (elementwise median over the L2 ratio), `over` (elementwise mean over median),
    `settled` (whether the epoch began after three relaxation times).
    """
    rows = tables.layers.sort_values(["hash", "layer", "epoch"])
    rows = rows.assign(growth=rows["l2_norm"] / rows.groupby(["hash", "layer"])["l2_norm"].shift())
    rows = figures.drawn(rows[rows["group"].isin({group for names in figures.GROUPS.values() for group in names})])
    parts = []
    for run in tables.runs.to_dict("records"):
        settled, steps = theory.equilibrium(run["optimizer"], run), -(-int(run["images"]) // run["batch_size"])
        mine = rows[(rows["hash"] == run["hash"]) & (rows["profile"] == run["profile"])]
        age = (mine["epoch"] - 1) * steps / settled.relaxation
        expected = settled.change(steps, mine["growth"])
        parts.append(mine.assign(steps=steps, expected=expected, settled=age >= SETTLED))
    rows = pd.concat(parts or [rows.assign(expected=np.nan, settled=False)])
    median = rows["rwc_median"]
    return rows.assign(
        factor=rows["l2_ratio"] / rows["expected"],
        shape=median / rows["l2_ratio"],
        over=rows["rwc_elementwise"] / median,
    )


def fits(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per run of `layers`, by profile, model, dataset and seed.

    Columns: `r2` of the logarithms of measured and expected L2 ratio; medians of `factor` and `shape`; `slope` of `over`
    on the logarithm of a layer's size, over the layers' medians.
    """
    found = [dict(zip(RUN, names, strict=True)) | _fit(of) for names, of in rows.groupby(RUN, sort=False)]
    return pd.DataFrame(found, columns=[*RUN, "r2", "factor", "shape", "slope"])


def _fit(rows: pd.DataFrame) -> dict[str, float]:
    by_layer = rows.groupby("layer")[["size", "over"]].median()
    slope = np.polyfit(np.log(by_layer["size"]), by_layer["over"], 1)[0]
    return {"r2": r2(rows), **rows[["factor", "shape"]].median(), "slope": slope}


def r2(rows: pd.DataFrame) -> float:
    """Squared correlation of the logarithms of measured and expected L2 ratio."""
    return float(np.log(rows[["l2_ratio", "expected"]]).corr().iloc[0, 1] ** 2)


@functools.cache
def sizes(model: str, dataset: str) -> pd.DataFrame:
    """Layers of the network at the published width: columns group and size (weights)."""
    known = data.get(dataset)
    network = models.build(model, num_classes=known.num_classes, in_channels=known.in_channels)
    weights = _layers.weight_tensors(network).items()
    return pd.DataFrame([(models.get(model).group(name), w.numel()) for name, w in weights], columns=["group", "size"])


def published(rows: pd.DataFrame) -> pd.DataFrame:
    """The published medians on CIFAR beside the prediction that each run of `layers` gives: one row per run and group.

    Columns: profile, model, dataset, seed, group, published, predicted (both elementwise, medians over layers): the L2
    ratio of an epoch in equilibrium as published, times the run's factor and shape, times what the estimator adds.
    """
    paper, result = figures.published().groupby(["model", "dataset", "group"])["median"].mean(), []
    runs = fits(rows)
    for run in runs[runs["dataset"].isin(CIFAR)].to_dict("records"):
        config = layerwise.run_config("paper", run["model"], run["dataset"], 0)
        l2 = theory.equilibrium("sgd", config.to_dict()).change(-(-50_000 // config.batch_size))
        known = sizes(run["model"], run["dataset"])
        means = theory.elementwise_mean(known["size"], l2 * run["factor"] * run["shape"])
        predicted = pd.Series(means).groupby(known["group"]).median()
        for group in figures.GROUPS[run["model"]]:
            value = paper[run["model"], run["dataset"], group]
            row = {name: run[name] for name in RUN}
            result.append(row | {"group": group, "published": value, "predicted": predicted[group]})
    return pd.DataFrame(result, columns=[*RUN, "group", "published", "predicted"])


@stored
def displacement(
    profile: str = "reduced", model: str = "resnet18", dataset: str = "cifar10", seed: int = 0
) -> pd.DataFrame:
    """A run of study 1 trained again on the CPU: its weights beside those 1 step to 5 epochs (or half the run) before.

    Columns: start (epoch, every fifth from the fifth on), lag (steps), layer, group, l2_ratio and growth ρ over the
    lag. `DataError` without the data set.
    """
    loop = Loop(layerwise.run_config(profile, model, dataset, seed))
    window = min(5, loop.config.epochs // 2)
    lags = {round(lag) for lag in np.geomspace(1, window * loop.batches, 25)}
    weights, rows = _layers.weight_tensors(loop.network), []
    for epoch in range(loop.config.epochs):
        if epoch % window == 0:
            first, lag = {name: weight.detach().clone() for name, weight in weights.items()}, 0
        for _ in loop.epoch():
            lag += 1
            for name, weight in weights.items() if lag in lags and epoch >= window else ():
                growth = metrics.l2_norm(weight) / metrics.l2_norm(first[name])
                place = (epoch // window * window, lag, name, models.get(model).group(name))
                rows.append((*place, metrics.l2_ratio(weight, first[name]), growth))
    return pd.DataFrame(rows, columns=["start", "lag", "layer", "group", "l2_ratio", "growth"])

"""Eq. 1 against the elementwise mean: on simulated weights, at initialisation, and in the archived runs of study 1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from rwclib import metrics
from rwclib.analysis import claims
from rwclib.runs import archive, data, models
from rwclib.studies import captions
from rwclib.studies.captions import at_largest_profile
from rwclib.studies.layerwise import STUDY, figures
from rwclib.studies.layerwise.runs import NETWORKS, SEEDS
from rwclib.studies.stored import stored
from rwclib.studies.study import under
from rwclib.tracker import weight_tensors

MEASURES = claims.DEFINITIONS | {"rwc_median": "median"}  # the last of at most 4,096 weights of a layer


@stored
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
            values.append(metrics.measure([torch.from_numpy(after)], [torch.from_numpy(before)]))
        for name, measure in MEASURES.items():
            p10, median, p90 = np.quantile([row[name].item() for row in values], [0.1, 0.5, 0.9])
            rows.append({"size": size, "measure": measure, "draws": draws, "median": median, "p10": p10, "p90": p90})
    return pd.DataFrame(rows)


@stored
def exact_zeros(seeds: Sequence[int] = SEEDS, networks: Sequence[str] = tuple(NETWORKS)) -> pd.DataFrame:
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


def layer_medians(found: archive.Tables) -> pd.DataFrame:
    """Each layer's median of every measure over seeds and the drawn epochs after the first, infinite values in the ranks.

    Columns: model, dataset, profile, group, layer, depth, size (weights in the tensor), then one per measure.
    """
    rows = figures.drawn(_drawn(found))
    keys = ["model", "dataset", "profile", "group", "layer", "depth", "size"]
    return rows.groupby(keys, sort=False)[list(MEASURES)].median().rename(columns=MEASURES).reset_index()


def caption(found: archive.Tables) -> str:
    """Profiles and seeds, training accuracies and data copies of the runs of all models on all data sets."""
    names = {model: settings["title"] for model, settings in NETWORKS.items()}
    shown = pd.concat([captions.runs_shown(found, model).assign(model=names[model]) for model in names])
    sizes, tops = [], []
    for dataset, rows in shown.groupby("dataset", sort=False):
        title, settings = data.get(dataset).title, rows["profile"] + ", seeds " + rows["seeds"]
        sizes.append((title, "; ".join(captions.merge_lines(zip(rows["model"], settings, strict=True)))))
        hardly = rows["learned"].str.startswith("0").map({True: " (has hardly learned)", False: ""})
        tops.append(f"{title} " + ", ".join(rows["model"] + " " + rows["train_top1"].map("{:.0f}%".format) + hardly))
    return "\n".join([
        "medians over the seeds and epochs drawn, from the second on, infinite values in their ranks",
        *captions.merge_lines(sizes), f"training top-1: {'; '.join(tops)}", captions.copies(shown.rename(columns={"data copy": "data_note"})),
    ])  # fmt: skip


def agreement(medians: pd.DataFrame) -> pd.DataFrame:
    """How far the measures agree on the order of a network's layers, one row per model and data set.

    Args:
        medians: as `layer_medians` gives them.

    Returns:
        Spearman's rank correlation over the layers between each pair of measures, and the median over the layers of
        elementwise / Eq. 1.
    """
    rows = []
    for (model, dataset, profile), of in medians.groupby(["model", "dataset", "profile"], sort=False):
        rank = of[list(MEASURES.values())].corr(method="spearman")
        rows.append({
            "model": model, "dataset": dataset, "profile": profile, "layers": len(of),
            "Eq. 1 ~ elementwise": rank.loc["Eq. 1", "elementwise"],
            "Eq. 1 ~ median": rank.loc["Eq. 1", "median"],
            "elementwise ~ median": rank.loc["elementwise", "median"],
            "elementwise / Eq. 1": (of["elementwise"] / of["Eq. 1"]).median(),
        })  # fmt: skip
    return pd.DataFrame(rows)


READING_ERROR = 0.1  # half the 95% interval of a median read off a published figure


def published_details() -> pd.DataFrame:
    """Every comparison judged by the published figures' medians (elementwise values) with their reading error; as `claims.details`."""
    table = figures.published().groupby(["model", "dataset", "group"])["median"].mean().reset_index()
    table = table.assign(
        profile="published", definition="published", quantity="change", seed=0, value=np.log(table["median"])
    )
    error = (READING_ERROR / 1.96) ** 2
    spread = claims.Spread(error, claims.INFINITY, error, claims.INFINITY, "reading error")
    about = [claim for claim in under(STUDY.claims, {"": "published"}) if claim.id != "L16"]
    return claims.details(table[claims.VALUES], about, ["published"], spread)


def _largest(parts: pd.DataFrame) -> pd.DataFrame:
    """The rows of each comparison at the largest profile at which it was run."""
    keys = ["claim", "comparison"]
    place = parts.groupby(keys, sort=False).ngroup()  # of the claims' own order
    run = parts.assign(place=place)[(parts["verdict"] != "not run") & (parts["definition"] != "-")]
    largest = run.groupby(keys)["profile"].transform("last")
    return run[run["profile"] == largest].sort_values("place", kind="stable")


def effects(found: archive.Tables) -> pd.DataFrame:
    """Every comparison's ratio under each measure, from group medians, and that of the published medians (elementwise values).

    Columns: claim, comparison, profile, one per measure, `elementwise, means` (from group means of finite values, which
    single spikes lift), `published`.
    """
    keys = ["claim", "comparison"]
    parts = _largest(STUDY.details(found, metrics=MEASURES))
    wide = parts.pivot_table("effect", [*keys, "profile"], "definition", sort=False).reindex(
        columns=list(MEASURES.values())
    )
    means = _largest(STUDY.details(found, statistic="mean")).query("definition == 'elementwise'")
    published = published_details()
    for name, table in (("elementwise, means", means), ("published", published)):
        known = dict(zip(zip(*(table[key] for key in keys), strict=True), table["effect"], strict=True))
        wide[name] = [known.get(key[:2], np.nan) for key in wide.index]
    return wide.rename_axis(columns=None).reset_index()


def verdicts(found: archive.Tables) -> pd.DataFrame:
    """Every claim's verdict under each measure at the largest profile that judges it, and that of the published medians."""
    table = STUDY.verdicts(found, metrics=MEASURES).query("definition != '-'")
    largest = table.drop_duplicates(["claim", "definition"])
    wide = largest.pivot(index="claim", columns="definition", values="verdict").loc[largest["claim"].unique()]
    wide = wide[list(MEASURES.values())].rename_axis(columns=None)
    wide["published"] = claims.verdicts(published_details()).set_index("claim")["verdict"]
    wide.insert(0, "profile", largest.groupby("claim")["profile"].first())
    return wide.reset_index()


def tie_breaker(table: pd.DataFrame) -> pd.DataFrame:
    """The claims on which Eq. 1 and the elementwise mean differ, and with which of them the median's verdict agrees.

    Args:
        table: as `verdicts` gives it.

    Returns:
        claim, the three verdicts, and `median sides with`: `Eq. 1`, `elementwise` or `neither`.
    """
    one, elementwise, median = MEASURES.values()
    rows = table.loc[table[one] != table[elementwise], ["claim", one, elementwise, median]]
    sides = np.select([rows[median] == rows[one], rows[median] == rows[elementwise]], [one, elementwise], "neither")
    return rows.assign(**{"median sides with": sides})


def _drawn(found: archive.Tables) -> pd.DataFrame:
    """The rows of every model and data set at the best profile it has."""
    pairs = found.layers[["model", "dataset"]].drop_duplicates().itertuples(index=False)
    parts = [at_largest_profile(found.layers, model, dataset) for model, dataset in pairs]
    return pd.concat(parts, ignore_index=True) if parts else found.layers

"""Eq. 1 against the elementwise mean: on simulated weights, at initialisation, and in the archived runs of study 1."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from rwclib import metrics
from rwclib.analysis import claims
from rwclib.runs import archive, data, models
from rwclib.studies import captions
from rwclib.studies.captions import at_largest_profiles
from rwclib.studies.layerwise import STUDY, figures
from rwclib.studies.layerwise.runs import NETWORKS, SEEDS
from rwclib.studies.stored import stored
from rwclib.tracker import weight_tensors

MEASURES = claims.DEFINITIONS | {"rwc_median": "median"}  # the last of at most 4,096 weights of a layer


@stored
def simulate(
    sizes: Sequence[int] = tuple(10**k for k in range(2, 8)), change: float = 0.1, seed: int = 0
) -> pd.DataFrame:
    """The measures on layers of N(0, 1) weights that all move by N(0, change) steps, by the layer's size (number of weights).

    Eq. 1 tends to `change` (a ratio of two means of half-normal variables), whatever the size. The elementwise mean has
    no finite expectation, since 1 / |w| has none: its typical value grows with the logarithm of the size.

    Columns, one row per size and measure: size, measure, draws, and the draws' median, p10 and p90.
    """
    rng, rows = np.random.default_rng(seed), []  # not PyTorch's generator, which gives exact zeros
    for size in sizes:
        draws = int(np.clip(10_000_000 // size, 5, 2000))
        values = []
        for _ in range(draws):
            before = rng.standard_normal(size)
            after = before + change * rng.standard_normal(size)
            after, before = (torch.from_numpy(weights).float() for weights in (after, before))  # as networks have them
            values.append(metrics.measure([after], [before]))
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


def infinities(tables: archive.Tables) -> pd.DataFrame:
    """Non-finite elementwise means in the runs drawn, one row per run that has one: how many, in which epochs and layers."""
    rows, keys = at_largest_profiles(tables.layers), ["model", "dataset", "seed"]
    bad = rows[~np.isfinite(rows["rwc_elementwise"])].groupby(keys, sort=False)
    table = bad["epoch"].agg(infinite="size", first_epoch="min", last_epoch="max").assign(layers=bad["layer"].nunique())
    table.insert(1, "of", rows.groupby(keys).size().reindex(table.index))
    return table.reset_index()


def layer_medians(tables: archive.Tables) -> pd.DataFrame:
    """Each layer's median of every measure over seeds and the drawn epochs after the first, infinite values in the ranks.

    Columns: model, dataset, profile, group, layer, depth, size (weights in the tensor), then one per measure.
    """
    rows = figures.drawn(at_largest_profiles(tables.layers))
    keys = ["model", "dataset", "profile", "group", "layer", "depth", "size"]
    return rows.groupby(keys, sort=False)[list(MEASURES)].median().rename(columns=MEASURES).reset_index()


def caption(tables: archive.Tables) -> str:
    """Profiles and seeds, training accuracies and data copies of the runs of all models on all data sets."""
    names = {model: settings["title"] for model, settings in NETWORKS.items()}
    shown = pd.concat([captions.runs_shown(tables, model).assign(model=names[model]) for model in names])
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
    """How far the measures agree on the order of a network's layers, one row per model and data set of `layer_medians`.

    Columns: model, dataset, profile, layers (number), Spearman's rank correlation over the layers between each pair of
    measures, and the median over the layers of elementwise / Eq. 1.
    """
    keys, rows = ["model", "dataset", "profile"], []
    for names, layers in medians.groupby(keys, sort=False):
        rank = layers[list(MEASURES.values())].corr(method="spearman")
        pairs = {f"{a} ~ {b}": rank.loc[a, b] for a, b in itertools.combinations(rank, 2)}
        ratio = (layers["elementwise"] / layers["Eq. 1"]).median()
        row = dict(zip(keys, names, strict=True)) | {"layers": len(layers)}
        rows.append(row | pairs | {"elementwise / Eq. 1": ratio})
    return pd.DataFrame(rows)


READING_ERROR = 0.1  # half the 95% interval of a median read off a published figure


def published_details() -> pd.DataFrame:
    """Every comparison judged by the published figures' medians (elementwise values) with their reading error; as `claims.details`."""
    table = figures.published().groupby(["model", "dataset", "group"])["median"].mean().reset_index()
    settings = {"profile": "published", "definition": "published", "quantity": "change", "seed": 0}
    error = (READING_ERROR / 1.96) ** 2
    spread = claims.Spread(error, claims.INFINITY, error, claims.INFINITY, "reading error")
    about = [claim for claim in STUDY.about(metrics={"": "published"}) if claim.id != "L16"]
    values = table.assign(**settings, value=np.log(table["median"]))[claims.VALUES]
    return claims.details(values, about, ["published"], spread)


def effects(tables: archive.Tables) -> pd.DataFrame:
    """Every comparison's ratio under each measure at the largest profile at which it was run, and that of the published medians.

    Columns: claim, comparison, profile, one per measure (from group medians), `elementwise, means` (from group means of
    finite values, which single spikes lift), `published` (from published medians of elementwise values).
    """
    keys, measures = ["claim", "comparison"], [*MEASURES.values(), "elementwise, means"]
    medians = STUDY.details(tables, metrics=MEASURES).query("definition != '-'").dropna(subset="effect")
    means = STUDY.details(tables, statistic="mean").query("definition == 'elementwise'").assign(definition=measures[-1])
    parts = pd.concat([published_details(), medians, means])
    wide = parts.pivot_table("effect", keys, "definition", "last", sort=False)  # the last profile is the largest
    wide = wide.reindex(columns=[*measures, "published"]).rename_axis(columns=None)
    wide.insert(0, "profile", medians.groupby(keys)["profile"].last())
    return wide.dropna(subset="profile").reset_index()


def verdicts(tables: archive.Tables) -> pd.DataFrame:
    """Every claim's verdict under each measure at the largest profile that judges it, and that of the published medians."""
    table = STUDY.verdicts(tables, metrics=MEASURES).query("definition != '-'").drop_duplicates(["claim", "definition"])
    ids, measures = table["claim"].unique(), list(MEASURES.values())
    wide = table.pivot(index="claim", columns="definition", values="verdict").loc[ids, measures]
    wide["published"] = claims.verdicts(published_details()).set_index("claim")["verdict"]
    wide.insert(0, "profile", table.groupby("claim")["profile"].first())
    return wide.rename_axis(columns=None).reset_index()


def tie_breaker(table: pd.DataFrame) -> pd.DataFrame:
    """The claims of `verdicts` on which Eq. 1 and the elementwise mean differ, and with which of them the median's agrees.

    Columns: claim, the three verdicts, and `median sides with`: `Eq. 1`, `elementwise` or `neither`.
    """
    one, elementwise, median = MEASURES.values()
    rows = table.loc[table[one] != table[elementwise], ["claim", one, elementwise, median]]
    sides = np.select([rows[median] == rows[one], rows[median] == rows[elementwise]], [one, elementwise], "neither")
    return rows.assign(**{"median sides with": sides})

"""The tables behind the three parts of study 3's slides."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd

from rwclib.analysis import features
from rwclib.runs import archive, data
from rwclib.runs.config import PROFILES
from rwclib.runs.weights import COLUMNS, THRESHOLDS, WHOLE
from rwclib.studies import captions
from rwclib.studies.dynamics.runs import (
    INITS,
    NETWORKS,
    OPTIMIZER_NAMES,
    PERTURBATIONS,
    RETRAINING,
    SEEDS,
    grid,
    retrainings,
)
from rwclib.studies.study import learned, select

# Norms of the slides (part 3): perturbation, data set, |w1|, |w2|, |w1 - w2|. They do not say of which network.
PUBLISHED = (
    ("none", "mnist", 120.32, 120.32, 0.0), ("none", "mnist", 209.18, 209.18, 0.0),
    ("none", "cifar10", 174.29, 174.29, 0.0), ("none", "cifar10", 175.84, 175.84, 0.0),
    ("distort:1e-06", "mnist", 120.3, 120.29, 0.27), ("distort:1e-06", "mnist", 23.43, 23.02, 1.3),
    ("distort:1e-06", "mnist", 171.79, 171.78, 1.38), ("flip_sign", "mnist", 120.32, 120.44, 240.67),
    ("flip_sign", "mnist", 171.78, 180.41, 347.66), ("flip_sign", "fashion_mnist", 24.42, 26.06, 49.6),
)  # fmt: skip
CELL = ["model", "dataset", "init", "optimizer"]


def endings(found: archive.Tables) -> pd.DataFrame:
    """One row per run: its settings, where its weights and features ended, and where they began.

    Columns, besides profile, hash and those of `CELL`, seed, perturbation, epochs and width: of all parameters, the columns
    of `rwclib.runs.weights.Snapshots.table` at the last epoch; of the last epoch `train_top1`; of `features.parquet` those at the
    end, and at the start with `_start` behind the name; `parent_top1`, the parent's test accuracy (percent) at its end; and
    `learned`, whether it is judged: if it has learned (`learned`), or what it was retrained from.
    """
    settings = ["profile", "hash", *CELL, "seed", "perturbation", "parent", "epochs", "width"]
    table = found.runs[settings].copy()
    snapshots = found.extra["snapshots"]
    last = snapshots[
        (snapshots["tensor"] == WHOLE) & (snapshots["epoch"] == snapshots.groupby("hash")["epoch"].transform("max"))
    ]
    table = table.merge(last[["profile", "hash", "size", *COLUMNS]], on=["profile", "hash"])
    table = table.merge(archive.last_epochs(found.epochs)[["profile", "hash", "train_top1"]], on=["profile", "hash"])
    measured = found.extra["features"]
    columns = ["profile", "hash", "test_top1", "features", "varying", "correlation", *features.SUMMARY]
    for when, suffix in (("end", ""), ("start", "_start")):
        rows = measured.loc[measured["when"] == when, columns]
        table = table.merge(rows.rename(columns={name: name + suffix for name in columns[2:]}), on=["profile", "hash"])
    tops = dict(zip(table["hash"], table["test_top1"], strict=True))
    trained = table["hash"].where(table["perturbation"] == "none", table["parent"])
    has_learned = trained.isin(learned(found)[0].runs["hash"])
    return table.assign(parent_top1=table["parent"].map(tops), learned=has_learned)


def at_largest_profiles(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of each training or retraining (of any seed) at the most telling profile it has, in the order of the slides."""
    keys = [*CELL, "perturbation"]
    start = table["init"].str.partition(":")[0]
    profile = table["profile"].map(list(PROFILES).index)
    kept = table[profile == profile.groupby([start if key == "init" else table[key] for key in keys]).transform("max")]
    order = {model: place for place, model in enumerate(NETWORKS)}
    return kept.sort_values("model", key=lambda names: names.map(order), kind="stable", ignore_index=True)


def labelled(table: pd.DataFrame) -> pd.DataFrame:
    """The table with `model`, `dataset`, `init` and `optimizer` as figures name them, as far as it has these columns."""
    words = {
        "model": NETWORKS.get, "dataset": lambda name: data.get(name).title, "optimizer": OPTIMIZER_NAMES.get,
        "init": lambda name: name.partition(":")[0].replace("kaiming_", "Kaiming "),
    }  # fmt: skip
    return table.assign(**{name: table[name].map(word) for name, word in words.items() if name in table})


def moved(ends: pd.DataFrame) -> pd.DataFrame:
    """Part 1, one row per training of the grid: shares changed, norms and distance, from `endings`.

    Columns: `CELL`, profile, seed, `THRESHOLDS`, norm_start, norm, distance_start, relative (distance over the norm at the
    start), test_top1 (percent), learned.
    """
    rows = at_largest_profiles(ends[ends["perturbation"] == "none"])
    rows["relative"] = rows["distance_start"] / rows["norm_start"]
    measured = ["norm_start", "norm", "distance_start", "relative", "test_top1", "learned"]
    return rows[[*CELL, "profile", "seed", *THRESHOLDS, *measured]]


def steps(found: archive.Tables) -> pd.DataFrame:
    """Part 1's distances between the weights of every few epochs, of the grid's best trainings.

    Columns: `CELL`, profile, seed, epoch (at the end of each step), distance_previous, distance_start, norm, and `step`, the
    epochs between as text.
    """
    settings = ["profile", "hash", "init", "optimizer", "perturbation", "snapshot_every"]
    runs = found.runs.loc[found.runs["perturbation"] == "none", settings]
    rows = found.extra["snapshots"].query("tensor == @WHOLE and epoch > 0").merge(runs, on=["profile", "hash"])
    rows = at_largest_profiles(rows)
    first = ((rows["epoch"] - 1) // rows["snapshot_every"] * rows["snapshot_every"]).astype(int)
    rows["step"] = first.astype(str) + "-" + rows["epoch"].astype(str)
    return rows[[*CELL, "profile", "seed", "epoch", "step", "distance_previous", "distance_start", "norm"]]


def kinds(found: archive.Tables) -> pd.DataFrame:
    """Part 1, by kind of tensor: the share of weights changed of convolutions, linear layers, normalisations and biases.

    Columns: model, dataset, optimizer, kind, weights (number), `THRESHOLDS` (means over initialisations and seeds).
    """
    settings = ["profile", "hash", "init", "optimizer", "perturbation", "epochs"]
    runs = found.runs.loc[found.runs["perturbation"] == "none", settings]
    rows = found.extra["snapshots"].merge(runs, on=["profile", "hash"])
    rows = at_largest_profiles(rows[(rows["epoch"] == rows["epochs"]) & (rows["tensor"] != WHOLE)])
    heads = ("classifier", "fc")
    norm = rows["tensor"].str.contains(r"bn\d|downsample\.1")
    bias = rows["tensor"].str.endswith("bias") & ~norm
    linear = rows["tensor"].str.startswith(heads) & ~bias
    rows["kind"] = np.select([norm, bias, linear], ["normalisation", "bias", "linear"], "convolution")
    for column in THRESHOLDS:
        rows[column] *= rows["size"]
    keys = ["model", "dataset", "optimizer", "kind"]
    sums = rows.groupby(keys, sort=False)[["size", *THRESHOLDS]].sum()
    cells = rows.groupby(keys, sort=False)["hash"].nunique()
    shares = sums[list(THRESHOLDS)].div(sums["size"], axis=0)
    shares.insert(0, "weights", (sums["size"] / cells).astype(int))
    return shares.reset_index()


def retrained(ends: pd.DataFrame, perturbations: Sequence[str] = tuple(PERTURBATIONS)) -> pd.DataFrame:
    """Part 3, one row per retrained model: the old and the new weights and features, from `endings`.

    Columns: `CELL`, profile, seed, perturbation; w1 and w2, the norms before and after, their distance, relative (over w1)
    and cosine; drift, the distance that retraining went from the perturbed weights; test accuracy (percent) `before`,
    `right after` and `after` retraining; and of the features old and new: correlation of pairs, of matched pairs, CKA.
    """
    rows = at_largest_profiles(ends[ends["perturbation"].isin(perturbations)])
    names = {"norm_parent": "w1", "norm": "w2", "distance_parent": "distance", "cosine_parent": "cosine",
             "distance_start": "drift", "parent_top1": "before", "test_top1_start": "right after", "test_top1": "after"}  # fmt: skip
    table = rows.rename(columns=names).assign(relative=rows["distance_parent"] / rows["norm_parent"])
    columns = [*names.values()]
    columns.insert(3, "relative")
    return table[[*CELL, "profile", "seed", "perturbation", *columns, "paired", "matched", "cka", "learned"]]


def published() -> pd.DataFrame:
    """The slides' norms: perturbation, dataset, w1, w2, distance, and the cosine that follows from the three."""
    table = pd.DataFrame(PUBLISHED, columns=["perturbation", "dataset", "w1", "w2", "distance"])
    w1, w2 = table["w1"], table["w2"]
    return table.assign(
        relative=table["distance"] / w1, cosine=(w1**2 + w2**2 - table["distance"] ** 2) / (2 * w1 * w2)
    )


def counts(profile_runs: archive.Tables) -> pd.DataFrame:
    """How many of the slides' trainings and retrainings are there per profile: profile, kind, run, of."""
    rows = []
    for profile in PROFILES:
        there = set(profile_runs.runs.loc[profile_runs.runs["profile"] == profile, "hash"])
        for kind, configs in (("trainings", grid(profile)), ("retrainings", retrainings(profile))):
            first = [config for config in configs if config.seed == SEEDS[0]]
            rows.append(
                {"profile": profile, "kind": kind, "run": sum(c.hash in there for c in first), "of": len(first)}
            )
    return pd.DataFrame(rows)


def similarities(found: archive.Tables) -> pd.DataFrame:
    """Part 2 across models: penultimate features of the first seed's trainings that differ in one thing, on the same images.

    Columns: model, dataset, differ (`optimizer` or `initialisation`), a, b, profile; `features.SUMMARY`; `chance`, the
    matched correlation when the images of one are put in random order, which is what matching finds where there is nothing;
    and whether both have `learned`.
    """
    rows = at_largest_profiles(
        found.runs[(found.runs["perturbation"] == "none") & (found.runs["seed"] == found.runs["seed"].min())]
    )
    table, rng, judged = [], np.random.default_rng(0), set(learned(found)[0].runs["hash"])
    for (model, dataset), of in rows.groupby(["model", "dataset"], sort=False):
        runs = list(of.itertuples())
        for a, b in itertools.combinations(runs, 2):
            differ = [kind for kind in ("init", "optimizer") if getattr(a, kind) != getattr(b, kind)]
            if len(differ) > 1:
                continue
            x, y = (found.arrays[run.hash, "penultimate"].astype(np.float64) for run in (a, b))
            shuffled = features.correlation(x, y[rng.permutation(len(y))])
            table.append({
                "model": model, "dataset": dataset, "differ": {"init": "initialisation"}.get(differ[0], differ[0]),
                "a": getattr(a, differ[0]), "b": getattr(b, differ[0]), "profile": a.profile,
                **features.summary(features.moments(x, y)), "chance": float(shuffled[features.match(shuffled)].mean()),
                "learned": {a.hash, b.hash} <= judged,
            })  # fmt: skip
    return pd.DataFrame(table)


def drifts(found: archive.Tables) -> pd.DataFrame:
    """How far training goes in as many epochs as retraining has, over the norm that it starts from.

    Columns: model, dataset, optimizer; `from scratch` (of the runs that are not pretrained), and after each of
    `PERTURBATIONS`; means over initialisations and seeds.
    """
    rows = at_largest_profiles(found.extra["snapshots"].query("tensor == @WHOLE").merge(
        found.runs[["profile", "hash", "init", "optimizer", "perturbation"]], on=["profile", "hash"]
    ))  # fmt: skip
    scratch = (rows["perturbation"] == "none") & ~rows["init"].str.startswith("pretrained")
    rows["kind"] = rows["perturbation"].map(PERTURBATIONS).mask(scratch, "from scratch")
    rows = rows[rows["kind"].notna() & (rows["epoch"] == rows["profile"].map(RETRAINING))]
    rows["relative"] = rows["distance_start"] / rows["norm_start"]
    wide = rows.pivot_table("relative", ["model", "dataset", "optimizer"], "kind", sort=False)
    return wide.reindex(columns=["from scratch", *PERTURBATIONS.values()]).rename_axis(columns=None).reset_index()


def caption(found: archive.Tables) -> str:
    """Size, seeds, training accuracies and data copies of the runs that a figure shows, networks of one size in one line."""
    last = archive.last_epochs(found.epochs)[["profile", "hash", "train_top1"]]
    rows, sizes, ranges = at_largest_profiles(found.runs).merge(last, on=["profile", "hash"]), [], []
    again = rows["perturbation"] != "none"
    for (model, profile), of in rows.groupby(["model", "profile"], sort=False):
        lengths = {"": of.loc[~again[of.index], "epochs"], " of retraining": of.loc[again[of.index], "epochs"]}
        epochs = [f"{length.max()} epochs{kind}" for kind, length in lengths.items() if len(length)]
        seeds = [str(seed) for seed in sorted(of["seed"].unique())]
        settings = f"{', '.join(epochs)}, {of['precision'].iloc[0]}, seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}"
        sizes.append((NETWORKS[model], f"profile {profile}, {captions.size(of)}, {settings}"))
    for model, of in labelled(rows[~again]).groupby("model", sort=False):
        tops = [
            (kind, sorted(top.round().astype(int))) for kind, top in of.groupby("optimizer", sort=False)["train_top1"]
        ]
        words = [f"{kind} {top[0]}-{top[-1]}%" if top[0] < top[-1] else f"{kind} {top[0]}%" for kind, top in tops]
        ranges.append(f"{model} {', '.join(words)}")
    progress = captions.progress(rows[~again], f"at the end: {'; '.join(ranges)}")
    return "\n".join([*captions.merge_lines(sizes), progress, captions.copies(found.runs)])


CORRELATIONS = ("mean of positive r", "mean r")
TRAINED_ALIKE = 10  # points of training top-1 between the two trainings of a pair, at most


def pairs(found: archive.Tables) -> pd.DataFrame:
    """The trainings with SGD and Adam from one start, as D3 and D4 compare them.

    Columns: profile, model, dataset, seed (initialisation and seed), group (optimizer), distance (log), `CORRELATIONS`, untrained (mean r
    at the start), train_top1, alike (whether the two were trained alike).
    """
    ends = endings(found).query("perturbation == 'none'")
    positive = [features.mean_positive(found.arrays[hash_, "penultimate"].astype(np.float64)) for hash_ in ends["hash"]]
    ends = ends.assign(seed=ends["init"].str.partition(":")[0] + " " + ends["seed"].astype(str), group=ends["optimizer"].map(OPTIMIZER_NAMES),
                       distance=np.log(ends["distance_start"] / ends["norm_start"]), untrained=ends["correlation_start"],
                       **{"mean r": ends["correlation"], "mean of positive r": positive})  # fmt: skip
    keys = ["profile", "model", "dataset", "seed"]
    top1 = ends.groupby(keys)["train_top1"]
    ends["alike"] = top1.transform("max") - top1.transform("min") <= TRAINED_ALIKE
    columns = [*keys, "group", "distance", *CORRELATIONS, "untrained", "train_top1", "alike"]
    return ends.loc[top1.transform("size") == 2, columns]


def candidates(found: archive.Tables) -> archive.Tables:
    """What may be judged: of whole cells the trainings that have learned (`learned`), and what was retrained from them.

    A cell is all initialisations and optimizers of a profile, network, data set, perturbation and seed: a profile that is half trained
    must not take the place of one that is done.
    """
    there, whole = set(found.runs["hash"]), set()
    for profile, runs in found.runs.groupby("profile"):
        seeds, cells = {"seeds": [int(seed) for seed in runs["seed"].unique()]}, {}
        for config in [*grid(profile, **seeds), *retrainings(profile, **seeds)]:
            cells.setdefault((config.model, config.dataset, config.perturbation, config.seed), set()).add(config.hash)
        whole |= {hash_ for cell in cells.values() if cell <= there for hash_ in cell}
    runs = select(found, whole).runs.set_index("hash")
    trained = runs["perturbation"] == "none"
    kept = set(learned(select(found, set(runs.index[trained])))[0].runs["hash"])
    return select(found, kept | {hash_ for hash_, parent in runs.loc[~trained, "parent"].items() if parent in kept})


def heat_maps(found: archive.Tables, dataset: str, init: str = INITS[0]) -> list[tuple[str, np.ndarray]]:
    """Part 2 within models: correlations of the penultimate features over the first test images, similar ones side by side.

    Returns:
        Title and matrix (features, features) per network and optimizer, features that do not vary left out.
    """
    rows = at_largest_profiles(found.runs[(found.runs["perturbation"] == "none") & (found.runs["init"] == init)])
    rows, panels = rows[(rows["dataset"] == dataset) & (rows["seed"] == rows["seed"].min())], []
    for run in rows.sort_values("optimizer", ascending=False, kind="stable").itertuples():
        matrix = features.correlation(found.arrays[run.hash, "penultimate"].astype(np.float64))
        kept = features.order(matrix)
        title = f"{NETWORKS[run.model]}, {'Adam' if run.optimizer == 'adam' else 'SGD'}\n{len(kept)} of {len(matrix)} features vary"
        panels.append((title, matrix[np.ix_(kept, kept)]))
    return panels

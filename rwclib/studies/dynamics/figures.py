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


def endings(tables: archive.Tables) -> pd.DataFrame:
    """One row per run: its settings, where its weights and features ended, and where they began.

    Columns: the run's settings; `start`, what `init` is; of all parameters, those of `rwclib.runs.weights.Snapshots.table` at
    the last epoch, and distances over norms: `relative` to the start and `relative_parent`; `train_top1` then; those of
    `features.parquet` at the end, and at the start with `_start` behind the name; `parent_top1`, the parent's test accuracy
    (percent) at its end; and `learned`, whether it, or what it was retrained from, is judged.
    """
    keys, snapshots, measured = ["profile", "hash"], tables.extra["snapshots"], tables.extra["features"]
    columns = ["features", "varying", "correlation", *features.SUMMARY]
    measured = measured.set_index(keys)[["when", "test_top1", *columns]]
    start, end = (measured[measured["when"] == when].drop(columns="when") for when in ("start", "end"))
    whole = archive.last_epochs(snapshots[snapshots["tensor"] == WHOLE])[[*keys, "size", *COLUMNS]]
    last = archive.last_epochs(tables.epochs)[[*keys, "train_top1"]]
    table = tables.runs[[*keys, *CELL, "seed", "perturbation", "parent", "epochs", "width"]]
    for part in (whole, last, end.reset_index(), start.add_suffix("_start").reset_index()):
        table = table.merge(part, on=keys)
    trained = table["hash"].where(table["perturbation"] == "none", table["parent"])
    tops, judged = table.set_index("hash")["test_top1"].to_dict(), learned(tables)[0].runs["hash"]
    table = table.assign(parent_top1=table["parent"].map(tops), learned=trained.isin(judged), start=_start(table))
    table["relative"] = table["distance_start"] / table["norm_start"]
    return table.assign(relative_parent=table["distance_parent"] / table["norm_parent"])


def _start(table: pd.DataFrame) -> pd.Series:
    """The initialisations without the data set of pretraining."""
    return table["init"].str.split(":").str[0]


def at_largest_profiles(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of each training or retraining (of any seed) at the most telling profile it has, in the order of the slides."""
    kept = captions.at_largest_profiles(table, ["model", "dataset", _start(table), "optimizer", "perturbation"])
    return kept.sort_values("model", key=lambda names: names.map([*NETWORKS].index), kind="stable", ignore_index=True)


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
    measured = ["norm_start", "norm", "distance_start", "relative", "test_top1", "learned"]
    return at_largest_profiles(ends[ends["perturbation"] == "none"])[[*CELL, "profile", "seed", *THRESHOLDS, *measured]]


def _snapshots(tables: archive.Tables) -> pd.DataFrame:
    """The snapshots of the best runs, with their settings."""
    runs = tables.runs[["profile", "hash", "init", "optimizer", "perturbation", "epochs", "snapshot_every"]]
    return at_largest_profiles(tables.extra["snapshots"].merge(runs, on=["profile", "hash"]))


def steps(tables: archive.Tables) -> pd.DataFrame:
    """Part 1's distances between the weights of every few epochs, of the grid's best trainings.

    Columns: `CELL`, profile, seed, epoch (at the end of each step), distance_previous, distance_start, norm, and `step`, the
    epochs between as text.
    """
    rows = _snapshots(tables).query("perturbation == 'none' and tensor == @WHOLE and epoch > 0")
    first = ((rows["epoch"] - 1) // rows["snapshot_every"] * rows["snapshot_every"]).astype(int)
    rows = rows.assign(step=first.astype(str) + "-" + rows["epoch"].astype(str))
    return rows[[*CELL, "profile", "seed", "epoch", "step", "distance_previous", "distance_start", "norm"]]


def kinds(tables: archive.Tables) -> pd.DataFrame:
    """Part 1, by kind of tensor: the share of weights changed of convolutions, linear layers, normalisations and biases.

    Columns: model, dataset, optimizer, kind, weights (number), `THRESHOLDS` (means over initialisations and seeds).
    """
    rows = _snapshots(tables).query("perturbation == 'none' and epoch == epochs and tensor != @WHOLE")
    tensors = rows["tensor"].str
    kind = np.where(tensors.startswith(("classifier", "fc")), "linear", "convolution")
    kind = np.where(tensors.endswith("bias"), "bias", kind)
    rows = rows.assign(kind=np.where(tensors.contains(r"bn\d|downsample\.1"), "normalisation", kind))
    rows[list(THRESHOLDS)] = rows[list(THRESHOLDS)].mul(rows["size"], axis=0)
    cells = rows.groupby(["model", "dataset", "optimizer", "kind"], sort=False)
    sizes = cells["size"].sum()
    shares = cells[list(THRESHOLDS)].sum().div(sizes, axis=0)
    shares.insert(0, "weights", (sizes / cells["hash"].nunique()).astype(int))
    return shares.reset_index()


def retrained(ends: pd.DataFrame, perturbations: Sequence[str] = tuple(PERTURBATIONS)) -> pd.DataFrame:
    """Part 3, one row per retrained model: the old and the new weights and features, from `endings`.

    Columns: `CELL`, profile, seed, perturbation; w1 and w2, the norms before and after, their distance, relative (over w1)
    and cosine; drift, the distance that retraining went from the perturbed weights; test accuracy (percent) `before`,
    `right after` and `after` retraining; and of the features old and new: correlation of pairs, of matched pairs, CKA.
    """
    rows = at_largest_profiles(ends[ends["perturbation"].isin(perturbations)])
    names = {"norm_parent": "w1", "norm": "w2", "distance_parent": "distance", "relative_parent": "relative", "cosine_parent": "cosine",
             "distance_start": "drift", "parent_top1": "before", "test_top1_start": "right after", "test_top1": "after"}  # fmt: skip
    columns = [*CELL, "profile", "seed", "perturbation", *names, *features.SUMMARY, "learned"]
    return rows[columns].rename(columns=names)


def published() -> pd.DataFrame:
    """The slides' norms: perturbation, dataset, w1, w2, distance, relative, and the cosine that follows from the first three."""
    table = pd.DataFrame(PUBLISHED, columns=["perturbation", "dataset", "w1", "w2", "distance"])
    w1, w2, distance = table["w1"], table["w2"], table["distance"]
    return table.assign(relative=distance / w1, cosine=(w1**2 + w2**2 - distance**2) / (2 * w1 * w2))


def counts(tables: archive.Tables) -> pd.DataFrame:
    """How many of the slides' trainings and retrainings are there per profile: profile, kind, run, of."""
    rows = []
    for profile in PROFILES:
        there = set(tables.runs.loc[tables.runs["profile"] == profile, "hash"])
        for kind, configs in (("trainings", grid), ("retrainings", retrainings)):
            hashes = {config.hash for config in configs(profile, seeds=SEEDS[:1])}
            rows.append({"profile": profile, "kind": kind, "run": len(hashes & there), "of": len(hashes)})
    return pd.DataFrame(rows)


def _penultimate(tables: archive.Tables, run: str) -> np.ndarray:
    """(images, features) float64 of a run's hash, at its end."""
    return tables.arrays[run, "penultimate"].astype(np.float64)


def similarities(tables: archive.Tables) -> pd.DataFrame:
    """Part 2 across models: penultimate features of the first seed's trainings that differ in one thing, on the same images.

    Columns: model, dataset, differ (`optimizer` or `initialisation`), a, b, profile; `features.SUMMARY`; `chance`, the
    matched correlation when the images of one are put in random order, which is what matching finds where there is nothing;
    and whether both have `learned`.
    """
    runs = tables.runs.query("perturbation == 'none'")
    runs = at_largest_profiles(runs[runs["seed"] == tables.runs["seed"].min()])
    table, rng, judged = [], np.random.default_rng(0), set(learned(tables)[0].runs["hash"])
    for (model, dataset), cell in runs.groupby(["model", "dataset"], sort=False):
        for a, b in itertools.combinations(cell.to_dict("records"), 2):
            differ = [kind for kind in ("init", "optimizer") if a[kind] != b[kind]]
            if len(differ) > 1:
                continue
            x, y = (_penultimate(tables, run["hash"]) for run in (a, b))
            shuffled = features.correlation(x, y[rng.permutation(len(y))])
            table.append({
                "model": model, "dataset": dataset, "differ": differ[0].replace("init", "initialisation"),
                "a": a[differ[0]], "b": b[differ[0]], "profile": a["profile"],
                **features.summary(features.moments(x, y)), "chance": float(shuffled[features.match(shuffled)].mean()),
                "learned": {a["hash"], b["hash"]} <= judged,
            })  # fmt: skip
    return pd.DataFrame(table)


def drifts(tables: archive.Tables) -> pd.DataFrame:
    """How far training goes in as many epochs as retraining has, over the norm that it starts from.

    Columns: model, dataset, optimizer; `from scratch` (of the runs that are not pretrained), and after each of
    `PERTURBATIONS`; means over initialisations and seeds.
    """
    rows = _snapshots(tables).query("tensor == @WHOLE")
    rows = rows[rows["epoch"] == rows["profile"].map(RETRAINING)]
    scratch = (rows["perturbation"] == "none") & (_start(rows) != "pretrained")
    kind = rows["perturbation"].map(PERTURBATIONS).mask(scratch, "from scratch")
    rows = rows.assign(kind=kind, relative=rows["distance_start"] / rows["norm_start"]).dropna(subset="kind")
    wide = rows.pivot_table("relative", ["model", "dataset", "optimizer"], "kind", sort=False)
    return wide.reindex(columns=["from scratch", *PERTURBATIONS.values()]).rename_axis(columns=None).reset_index()


def caption(tables: archive.Tables) -> str:
    """Size, seeds, training accuracies and data copies of the runs that a figure shows, networks of one size in one line."""
    last = archive.last_epochs(tables.epochs)[["profile", "hash", "train_top1"]]
    rows, sizes, ranges = at_largest_profiles(tables.runs).merge(last, on=["profile", "hash"]), [], []
    trained = rows["perturbation"] == "none"
    for (model, profile), runs in rows.groupby(["model", "profile"], sort=False):
        lengths = {"": runs.loc[trained, "epochs"], " of retraining": runs.loc[~trained, "epochs"]}
        epochs = [f"{length.max()} epochs{kind}" for kind, length in lengths.items() if len(length)]
        seeds = [str(seed) for seed in sorted(runs["seed"].unique())]
        words = [f"profile {profile}", captions.size(runs), *epochs, runs["precision"].iloc[0]]
        words.append(f"seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}")
        sizes.append((NETWORKS[model], ", ".join(words)))
    for model, runs in labelled(rows[trained]).groupby("model", sort=False):
        tops = runs["train_top1"].round().astype(int).groupby(runs["optimizer"], sort=False).agg(["min", "max"])
        words = [f"{kind} {low}-{high}%" if low < high else f"{kind} {low}%" for kind, low, high in tops.itertuples()]
        ranges.append(f"{model} {', '.join(words)}")
    progress = captions.progress(rows[trained], f"at the end: {'; '.join(ranges)}")
    return "\n".join([*captions.merge_lines(sizes), progress, captions.copies(tables.runs)])


CORRELATIONS = ("mean of positive r", "mean r")
TRAINED_ALIKE = 10  # points of training top-1 between the two trainings of a pair, at most


def pairs(tables: archive.Tables) -> pd.DataFrame:
    """The trainings with SGD and Adam from one start, as D3 and D4 compare them.

    Columns: profile, model, dataset, seed (initialisation and seed), group (optimizer), distance (log), `CORRELATIONS`, untrained (mean r
    at the start), train_top1, alike (whether the two were trained alike).
    """
    ends = endings(tables).query("perturbation == 'none'")
    ends = ends.rename(columns={"correlation": "mean r", "correlation_start": "untrained"})
    ends["seed"], ends["group"] = ends["start"] + " " + ends["seed"].astype(str), ends["optimizer"].map(OPTIMIZER_NAMES)
    ends["distance"] = np.log(ends["relative"])
    ends["mean of positive r"] = [features.mean_positive(_penultimate(tables, run)) for run in ends["hash"]]
    keys = ["profile", "model", "dataset", "seed"]
    top1 = ends.groupby(keys)["train_top1"]
    ends["alike"] = top1.transform("max") - top1.transform("min") <= TRAINED_ALIKE
    columns = [*keys, "group", "distance", *CORRELATIONS, "untrained", "train_top1", "alike"]
    return ends.loc[top1.transform("size") == 2, columns]


def candidates(tables: archive.Tables) -> archive.Tables:
    """What may be judged: of whole cells the trainings that have learned (`learned`), and what was retrained from them.

    A cell is all initialisations and optimizers of a profile, network, data set, perturbation and seed: a profile that is half trained
    must not take the place of one that is done.
    """
    keys, planned = ["model", "dataset", "perturbation", "seed"], []
    for profile, seeds in tables.runs.groupby("profile")["seed"].unique().items():
        configs = [*grid(profile, seeds=seeds.tolist()), *retrainings(profile, seeds=seeds.tolist())]
        rows = pd.DataFrame([config.to_dict() | {"hash": config.hash} for config in configs])
        rows["there"] = rows["hash"].isin(tables.runs["hash"])
        planned.append(rows[rows.groupby(keys)["there"].transform("all")])
    runs = select(tables, set(pd.concat(planned)["hash"])).runs
    trained = runs["perturbation"] == "none"
    kept = set(learned(select(tables, set(runs.loc[trained, "hash"])))[0].runs["hash"])
    return select(tables, kept | set(runs.loc[~trained & runs["parent"].isin(kept), "hash"]))


def heat_maps(tables: archive.Tables, dataset: str, init: str = INITS[0]) -> list[tuple[str, np.ndarray]]:
    """Part 2 within models: correlations of the penultimate features over the first test images, similar ones side by side.

    Returns:
        Title and matrix (features, features) per network and optimizer, features that do not vary left out.
    """
    runs = at_largest_profiles(tables.runs.query("perturbation == 'none' and init == @init and dataset == @dataset"))
    runs, panels = runs[runs["seed"] == runs["seed"].min()], []
    for run in runs.sort_values("optimizer", ascending=False, kind="stable").itertuples():
        matrix = features.correlation(_penultimate(tables, run.hash))
        kept = features.order(matrix)
        title = f"{NETWORKS[run.model]}, {OPTIMIZER_NAMES[run.optimizer]}\n{len(kept)} of {len(matrix)} features vary"
        panels.append((title, matrix[np.ix_(kept, kept)]))
    return panels

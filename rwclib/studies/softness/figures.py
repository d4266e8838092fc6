"""The tables behind study 4's figures."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from rwclib.analysis import softness
from rwclib.runs import archive, data
from rwclib.runs.config import PROFILES
from rwclib.studies.softness.runs import DATASETS, DESIGN, SIZES

EARLY, LATE = 2000, 30_000  # what figures 1 to 5 compare
LAYERS = ("conv1", "conv2")
WAYS = (("conv1", "image"), ("conv2", "through"), ("conv2", "image"))  # of making images with a layer's filters
IMAGES = ("bird", "static")
PRINTED = {"bird": 1, "static": 0}  # the figures' bird of `birds`, and seed of `noise`
NOISES = 12  # static images
SOFT = 0.1  # an image is called soft, and framed, if it is softer than all but this share of those that untrained filters make
_KEYS = ["layer", "way", "image"]

# Published: R^2 and p of the power model in layer 2.
PUBLISHED = {"bird": (0.9220, 1.05e-5), "static": (0.8996, 2.90e-5)}


def choose_birds(images: data.ImageSet) -> np.ndarray:
    """17 of CIFAR-10's test birds, from the softest to the hardest in even steps of rank: (17, 32, 32, 3) uint8.

    They are ordered by the score of their grey mean. The second, softer than 15 of 16, is the one of the figures: the
    paper's is "simple".
    """
    birds = images.x_test[images.y_test == 2]
    order = softness.softness_scores(birds.mean(-1)).argsort(kind="stable")
    return birds[order[np.linspace(0, len(order) - 1, 17).round().astype(int)]]


def birds() -> np.ndarray:
    """The birds that `choose_birds` chose: (17, 3, 32, 32) float64 in [0, 1]."""
    return np.load(Path(__file__).with_name("birds.npy")).transpose(0, 3, 1, 2) / 255


def noise(seed: int) -> np.ndarray:
    """Random black and white: (3, 32, 32) float64, 0 or 1."""
    return np.random.default_rng(seed).integers(0, 2, (32, 32)).astype(np.float64)[None].repeat(3, 0)


def picture(name: str) -> np.ndarray:
    """`bird` or `static`, as the figures show them: (3, 32, 32) float64 in [0, 1]."""
    return noise(PRINTED[name]) if name == "static" else birds()[PRINTED[name]]


def filtered(filters: dict[str, np.ndarray], layer: str, way: str, image: np.ndarray, rim: bool = True) -> np.ndarray:
    """What a layer's filters make of an image: (filters, height, width), half as high and wide where layer 1 has pooled.

    The paper does not say what the second layer is applied to. `image`: each filter's mean over its channels, to the image's
    mean over colours. `through`: to what the first layer makes of the image, ReLU and pooling included, without biases.

    Args:
        filters: by layer, (filters, channels, 5, 5).
        layer, way: one of `WAYS`.
        image: (3, height, width), both even.
        rim: as in `rwclib.analysis.softness.responses`, of the layer's own filters.
    """
    own, first = filters[layer], filters["conv1"]
    if first.shape[1] == 1:  # a network for grey images
        image = image.mean(0, keepdims=True)
    if way == "through":
        seen = np.maximum(softness.responses(first, image), 0)
        count, height, width = seen.shape
        image = seen.reshape(count, height // 2, 2, width // 2, 2).max((2, 4))
    elif layer == "conv2":
        own, image = own.astype(np.float64).mean(1, keepdims=True), image.mean(0, keepdims=True)
    return softness.responses(own, image, rim)


def profiles(tables: archive.Tables) -> list[str]:
    """The profiles that there are sessions of, the most telling last."""
    return [name for name in PROFILES if len(tables.runs) and name in set(tables.runs["profile"])]


def select_profile(tables: archive.Tables, profile: str, dataset: str | None = None) -> archive.Tables:
    """The sessions of one profile and data set (the first there is). A short session may belong to several profiles."""
    runs = tables.runs[tables.runs["profile"] == profile]
    hashes = set(runs.loc[runs["dataset"] == (dataset or runs["dataset"].iloc[0]), "hash"]) if len(runs) else set()

    def part(table: pd.DataFrame) -> pd.DataFrame:
        return table[table["hash"].isin(hashes) & (table["profile"] == profile)] if len(table) else table

    extra = {name: part(table) for name, table in tables.extra.items()}
    return archive.Tables(part(tables.runs), part(tables.layers), part(tables.epochs), extra, tables.arrays)


def judgeable(tables: archive.Tables) -> list[str]:
    """The profiles of which all planned CIFAR-10 sessions are there, and some of `LATE` iterations or more, the most telling last."""

    def complete(profile: str) -> bool:
        planned = pd.Series(SIZES[profile]["sessions"])
        counts = select_profile(tables, profile, DATASETS[0]).runs["iterations"].value_counts()
        return planned.index.max() >= LATE and (counts.reindex(planned.index, fill_value=0) >= planned).all()

    return [profile for profile in profiles(tables) if complete(profile)]


def at_largest_profile(tables: archive.Tables) -> archive.Tables:
    """The sessions to show: those on which the claims are judged, else of the most telling profile there is."""
    names = judgeable(tables) or profiles(tables)
    return select_profile(tables, names[-1]) if names else tables


def counts(tables: archive.Tables) -> pd.DataFrame:
    """Sessions by profile and iterations, beside the paper's: profile, iterations, sessions, `in the paper`."""
    table = tables.runs.groupby(["profile", "iterations"], sort=False).size().rename("sessions").reset_index()
    return table.assign(**{"in the paper": table["iterations"].map(DESIGN).fillna(0).astype(int)})


def caption(tables: archive.Tables) -> str:
    """Data set, profile, images, sessions and data copy of the sessions that a figure shows."""
    run, notes = tables.runs.iloc[0], "; ".join(tables.runs["data_note"].unique())
    return (
        f"{data.get(run['dataset']).title}, profile {run['profile']} ({len(tables.runs)} sessions), batches of "
        f"{run['batch_size']} of {run['images']:,} images, {run['precision']}\ndata copy: {notes}"
    )


def r_squared_caption(tables: archive.Tables, table: pd.DataFrame) -> str:
    """`caption`, with which bird the bars of `plotting_runs.fit_bars` are, and how its power law ranks among all birds'."""
    power = table[(table["model"] == "power") & (table["image"] == "bird")]
    count, power = power["picture"].nunique(), power.assign(place=power.groupby("panel")["r2"].rank(ascending=False))
    places = "; ".join(f"{row.panel}: {row.place:.0f}" for row in power[power["printed"]].itertuples())
    return (
        f"bars: the second softest of {count} birds (softer than 15 of 16 in the test set), and one static image; dots: all "
        f"pictures, birds from soft to hard\nplace of this bird among the {count} by R² of the power model: {places}\n{caption(tables)}"
    )


def sessions(tables: archive.Tables) -> Iterator[tuple[pd.Series, np.ndarray, dict[str, np.ndarray]]]:
    """Settings, recorded iterations (n,), and by layer the filters (n, filters, channels, 5, 5) of each session."""
    for run in tables.runs.sort_values(["profile", "iterations", "seed"]).itertuples(index=False):
        arrays = {layer: tables.arrays[run.hash, f"filters_{layer}"] for layer in LAYERS}
        yield run, tables.arrays[run.hash, "filters_iterations"], arrays


def examples(tables: archive.Tables) -> list[tuple[pd.Series, dict[str, np.ndarray]]]:
    """Settings and last filters of one session of 2,000 iterations and two of 30,000, or of the nearest lengths there are.

    The third is of another seed where there are two of its length.
    """
    lengths = np.unique(tables.runs["iterations"])
    more = lengths[abs(np.log(lengths / LATE)).argmin()]
    below = lengths[lengths < more] if more > lengths[0] else lengths
    fewer = below[abs(np.log(below / EARLY)).argmin()]
    last = [(run, {layer: kept[-1] for layer, kept in filters.items()}) for run, _, filters in sessions(tables)]
    few, many = ([session for session in last if session[0].iterations == length] for length in (fewer, more))
    return [few[0], many[0], many[-1]]


def accuracy(tables: archive.Tables) -> pd.DataFrame:
    """The longest session's accuracy every 10 iterations: iteration, test_top1 (percent)."""
    longest = tables.runs.sort_values(["iterations", "seed"]).iloc[-1]
    table = tables.extra["accuracy"]
    return table.loc[table["hash"] == longest["hash"], ["iteration", "test_top1"]].reset_index(drop=True)


def _recorded(tables: archive.Tables, all_iterations: bool) -> Iterator[tuple[dict, dict[str, np.ndarray]]]:
    """Each session's profile, seed, iterations and iteration, and its filters by layer then: after the first and the last, or all."""
    for run, iterations, filters in sessions(tables):
        for place, iteration in enumerate(iterations):
            if all_iterations or iteration in (1, run.iterations):
                key = {"profile": run.profile, "seed": run.seed, "iterations": run.iterations, "iteration": iteration}
                yield key, {layer: kept[place] for layer, kept in filters.items()}


def _ends(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["iteration"] == table["iterations"]].reset_index(drop=True)


def scores(
    tables: archive.Tables, all_iterations: bool = False, pictures: Mapping | None = None, rim: bool = True
) -> pd.DataFrame:
    """Softness of every session, layer, way and image: the sum of the scores of the layer's filtered images.

    Args:
        tables: as `select_profile` gives them.
        all_iterations: also those recorded on the way to the last.
        pictures: other images than `IMAGES`, (3, height, width) each, by name; `rim` as in `filtered`.

    Returns:
        profile, seed, iterations (of the session), iteration (at which), layer, way, image, limit (the `SOFT` quantile of the
        images that filters of all sessions make after their first iteration), score, filters, soft (number of images below it).
    """
    rows, pictures = [], pictures or {name: picture(name) for name in IMAGES}
    for key, filters in _recorded(tables, all_iterations):
        for (layer, way), (name, image) in itertools.product(WAYS, pictures.items()):
            each = softness.softness_scores(filtered(filters, layer, way, image, rim))
            rows.append({**key, "layer": layer, "way": way, "image": name, "each": each})
    table = pd.DataFrame(rows)
    untrained = table[table["iteration"] == 1].groupby(_KEYS)["each"]
    limits = untrained.agg(lambda parts: np.quantile(np.concatenate(list(parts)), SOFT)).rename("limit")
    table = table.join(limits, on=_KEYS)
    table["score"], table["filters"] = table["each"].map(np.sum), table["each"].map(len)
    table["soft"] = [(each < limit).sum() for each, limit in zip(table["each"], table["limit"], strict=True)]
    return table.drop(columns="each") if all_iterations else _ends(table.drop(columns="each"))


def clustering(tables: archive.Tables, all_iterations: bool = False) -> pd.DataFrame:
    """Moran's I of the filters (mean over filters and channels) of every session's layers: are strong weights neighbours?

    Columns: profile, seed, iterations, iteration, layer, morans_i; at the end, or also at all recorded `iteration`s.
    """
    table = pd.DataFrame([
        {**key, "layer": layer, "morans_i": float(np.nanmean(softness.morans_i(kept)))}
        for key, filters in _recorded(tables, all_iterations) for layer, kept in filters.items()
    ])  # fmt: skip
    return table if all_iterations else _ends(table)


def panel(scores: pd.DataFrame) -> pd.Series:
    """Layer, and of layer 2 the reading, in words."""
    return scores["layer"].where(scores["layer"] == "conv1", scores["layer"] + ", " + scores["way"])


def akaike(scores: pd.DataFrame) -> pd.DataFrame:
    """`rwclib.analysis.softness.aic` of every layer, way and image of `scores`."""
    parts = scores.groupby(_KEYS, sort=False)
    return (
        parts.apply(lambda rows: softness.aic(rows["iterations"], rows["score"]))
        .reset_index(_KEYS)
        .reset_index(drop=True)
    )


def power_residuals(scores: pd.DataFrame) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Of layer 2 and the bird, in both readings: title, log iterations and the residuals of log scores from the power model's line."""
    residuals = []
    for way in ("through", "image"):
        rows = scores.query("layer == 'conv2' and way == @way and image == 'bird'")
        line = softness.fit(rows["iterations"], rows["score"], "power")
        residuals.append((f"layer 2, {way}", np.log(rows["iterations"].to_numpy()), line["residuals"]))
    return residuals


def fits(scores: pd.DataFrame) -> pd.DataFrame:
    """The three straight lines of every layer, way and image over `scores`: n, r, r2, slope, p of `rwclib.analysis.softness.fit`."""
    lines = []
    for (key, rows), law in itertools.product(scores.groupby(_KEYS, sort=False), softness.LAWS):
        line = softness.fit(rows["iterations"], rows["score"], law)
        lines.append(dict(zip(_KEYS, key, strict=True)) | {"model": law} | line)
    return pd.DataFrame(lines)[[*_KEYS, "model", "n", "r", "r2", "slope", "p"]]


def r_squared(tables: archive.Tables) -> pd.DataFrame:
    """The lines of `fits` on every picture, of one profile's sessions.

    Columns: panel (layer and reading), layer, way, model, image, picture (number), printed (whether it is the figures'), n, r, r2, slope, p.
    """
    pictures = {("bird", k): bird for k, bird in enumerate(birds())} | {("static", k): noise(k) for k in range(NOISES)}
    lines = fits(scores(tables, pictures=pictures))
    lines[["image", "picture"]] = pd.DataFrame(lines["image"].tolist(), lines.index)
    lines["printed"] = lines["picture"] == lines["image"].map(PRINTED)
    lines.insert(0, "panel", panel(lines))
    return lines

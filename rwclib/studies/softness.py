"""Study 4, softness of filters (Journal of Emerging Investigators, 2019): its sessions, and the tables behind its figures.

A session is one training from scratch for so many iterations, with a seed of its own. The paper gives the batch of 50 and the
lengths; chosen here, as in the TensorFlow tutorials of its time: Adam with learning rate 1e-4, pixels in [0, 1] as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from rwclib import archive, data, softness
from rwclib.config import PROFILES, RunConfig, check_profile
from rwclib.errors import ConfigError
from rwclib.studies import base

STUDY = "softness"
MODELS = {"softness_cnn": "two convolutions, two linear layers"}
DATASETS = ("cifar10",)
DESIGN = {1: 3, 2000: 3, 10_000: 2, 30_000: 2, 50_000: 1}  # the paper's: iterations, sessions

# Sessions by iterations, and images. `reduced` is the paper's own design.
SIZES = {
    "smoke": {"sessions": {1: 2, 20: 2, 60: 2}, "n_train": 500, "n_test": 256},
    "quick": {"sessions": dict.fromkeys((1, 100, 400, 1000, 2000), 3), "n_train": None, "n_test": 1000},
    "reduced": {"sessions": DESIGN, "n_train": None, "n_test": 1000},
    "paper": {"sessions": dict.fromkeys(DESIGN, 10), "n_train": None, "n_test": None},
}

EARLY, LATE = 2000, 30_000  # what figures 1 to 5 compare
LAYERS = ("conv1", "conv2")
IMAGES = ("bird", "static")
WAYS = {  # of making images with a layer's filters
    "conv1": ("image",),
    "conv2": ("through", "image"),
}
SOFT = 0.1  # an image is called soft, and framed, if it is softer than all but this share of those that untrained filters make
# Published: R^2 and p of the power model in layer 2.
PUBLISHED = {"bird": (0.9220, 1.05e-5), "static": (0.8996, 2.90e-5)}


def run_config(profile: str, iterations: int, seed: int, dataset: str = "cifar10") -> RunConfig:
    """One session; `ConfigError` for an unknown profile or data set."""
    size = {key: value for key, value in SIZES[check_profile(profile)].items() if key != "sessions"}
    data.get(dataset)
    return RunConfig(
        study=STUDY, model="softness_cnn", dataset=dataset, iterations=iterations, seed=seed, optimizer="adam", lr=1e-4,
        momentum=0.0, weight_decay=0.0, batch_size=50, **size,
    )  # fmt: skip


def runs(
    profile: str,
    *,
    models: Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> list[RunConfig]:
    """The sessions at a profile, each with a seed of its own, counted through; of these, only `seeds` where given."""
    for model in models or ():
        if model not in MODELS:
            raise ConfigError(f"unknown model {model!r} in study {STUDY}; known: {', '.join(MODELS)}")
    lengths = [length for length, count in SIZES[check_profile(profile)]["sessions"].items() for _ in range(count)]
    return [
        run_config(profile, length, seed, dataset)
        for dataset in (datasets or DATASETS)
        for seed, length in enumerate(lengths)
        if not seeds or seed in seeds
    ]


def tables(results: str | Path | None = None, profile: str = "best", **which: object) -> archive.Tables:
    """Finished sessions, as `base.load`."""
    return base.load(runs, results, profile, **which)


def prepare(profile: str, models: list[str], **rest: object) -> tuple[archive.Tables, list[str]]:
    """What a notebook draws, as `base.prepare`."""
    return base.prepare(runs, profile, models, **rest)


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
    return np.load(Path(__file__).with_name("softness_birds.npy")).transpose(0, 3, 1, 2) / 255


def noise(seed: int) -> np.ndarray:
    """Random black and white: (3, 32, 32) float64, 0 or 1."""
    return np.random.default_rng(seed).integers(0, 2, (32, 32)).astype(np.float64)[None].repeat(3, 0)


PRINTED = {"bird": 1, "static": 0}  # the figures' bird of `birds`, and seed of `noise`


def picture(name: str) -> np.ndarray:
    """`bird` or `static`, as the figures show them: (3, 32, 32) float64 in [0, 1]."""
    return noise(PRINTED[name]) if name == "static" else birds()[PRINTED[name]]


def filtered(filters: dict[str, np.ndarray], layer: str, way: str, image: np.ndarray, rim: bool = True) -> np.ndarray:
    """What a layer's filters make of an image: (filters, height, width), half as high and wide where layer 1 has pooled.

    The paper does not say what the second layer is applied to. `image`: each filter's mean over its channels, to the image's
    mean over colours, as to any picture. `through`: to what the first layer makes of the image, ReLU and pooling included, as
    in the network (without its biases, which the paper does not save).

    Args:
        filters: by layer, (filters, channels, 5, 5).
        layer, way: a name in `LAYERS`, and one of its `WAYS`.
        image: (3, height, width), both even.
        rim: as in `rwclib.softness.responses`, of the layer's own filters.
    """
    filters = {name: weights.astype(np.float64) for name, weights in filters.items()}
    if filters["conv1"].shape[1] == 1:  # a network for grey images
        image = image.mean(0, keepdims=True)
    if way == "image" and layer == "conv1":
        return softness.responses(filters["conv1"], image, rim)
    if way == "image":
        return softness.responses(filters[layer].mean(1, keepdims=True), image.mean(0, keepdims=True), rim)
    first = np.maximum(softness.responses(filters["conv1"], image), 0)
    count, height, width = first.shape
    pooled = first.reshape(count, height // 2, 2, width // 2, 2).max((2, 4))
    return softness.responses(filters[layer], pooled, rim)


@dataclass(frozen=True)
class Session:
    """One session's settings and what it recorded last: filters by layer, (filters, channels, 5, 5)."""

    iterations: int
    seed: int
    filters: dict[str, np.ndarray]


def profiles(found: archive.Tables) -> list[str]:
    """The profiles that there are sessions of, the most telling last."""
    return [name for name in PROFILES if len(found.runs) and name in set(found.runs["profile"])]


def only(found: archive.Tables, profile: str, dataset: str | None = None) -> archive.Tables:
    """The sessions of one profile and data set (the first there is). A short session may belong to several profiles."""
    of = found.runs[found.runs["profile"] == profile]
    hashes = set(of.loc[of["dataset"] == (dataset or of["dataset"].iloc[0]), "hash"]) if len(of) else set()

    def part(table: pd.DataFrame) -> pd.DataFrame:
        return table[table["hash"].isin(hashes) & (table["profile"] == profile)] if len(table) else table

    extra = {name: part(table) for name, table in found.extra.items()}
    return archive.Tables(part(found.runs), part(found.layers), part(found.epochs), extra, found.arrays)


def judgeable(found: archive.Tables) -> list[str]:
    """The profiles of which all planned CIFAR-10 sessions are there, and some of `LATE` iterations or more, the most telling last."""
    names = []
    for name in profiles(found):
        planned, there = SIZES[name]["sessions"], only(found, name, DATASETS[0]).runs["iterations"].value_counts()
        if max(planned) >= LATE and all(there.get(length, 0) >= count for length, count in planned.items()):
            names.append(name)
    return names


def best(found: archive.Tables) -> archive.Tables:
    """The sessions to show: those on which the claims are judged, else of the most telling profile there is."""
    names = judgeable(found) or profiles(found)
    return only(found, names[-1]) if names else found


def counts(found: archive.Tables) -> pd.DataFrame:
    """Sessions by profile and iterations, beside the paper's: profile, iterations, sessions, `in the paper`."""
    table = found.runs.groupby(["profile", "iterations"], sort=False).size().rename("sessions").reset_index()
    return table.assign(**{"in the paper": table["iterations"].map(DESIGN).fillna(0).astype(int)})


def caption(found: archive.Tables) -> str:
    """Data set, profile, images, sessions and data copy of the sessions that a figure shows."""
    run, notes = found.runs.iloc[0], "; ".join(found.runs["data_note"].unique())
    return (
        f"{data.get(run['dataset']).title}, profile {run['profile']} ({len(found.runs)} sessions), batches of "
        f"{run['batch_size']} of {run['images']:,} images, {run['precision']}\ndata copy: {notes}"
    )


def r_squared_caption(found: archive.Tables, table: pd.DataFrame) -> str:
    """`caption`, with which bird the bars of `plotting_filters.fit_bars` are, and how its power law ranks among all birds'."""
    power = table[(table["model"] == "power") & (table["image"] == "bird")]
    count, power = power["picture"].nunique(), power.assign(place=power.groupby("panel")["r2"].rank(ascending=False))
    places = "; ".join(f"{of.panel}: {of.place:.0f}" for of in power[power["printed"]].itertuples())
    return (
        f"bars: the second softest of {count} birds (softer than 15 of 16 in the test set), and one static image; dots: all "
        f"pictures, birds from soft to hard\nplace of this bird among the {count} by R² of the power model: {places}\n{caption(found)}"
    )


def examples(found: archive.Tables) -> tuple[Session, Session, Session]:
    """A session of the figures' fewer iterations and two of the more: 2,000 and 30,000, or the nearest lengths there are.

    The third is of another seed where there are two of its length.
    """
    lengths = sorted(found.runs["iterations"].unique())

    def nearest(wanted: int, among: Sequence[int]) -> int:
        return min(among, key=lambda length: abs(np.log(length / wanted)))

    more = nearest(LATE, lengths)
    fewer = nearest(EARLY, [length for length in lengths if length < more] or lengths)
    kept: dict[int, list[Session]] = {}
    for run, _, filters in sessions(found):
        last = {layer: of[-1] for layer, of in filters.items()}
        kept.setdefault(run.iterations, []).append(Session(run.iterations, run.seed, last))
    return kept[fewer][0], kept[more][0], kept[more][-1]


def accuracy(found: archive.Tables) -> pd.DataFrame:
    """The longest session's accuracy every 10 iterations: iteration, test_top1 (percent)."""
    longest = found.runs.sort_values(["iterations", "seed"]).iloc[-1]
    table = found.extra["accuracy"]
    return table.loc[table["hash"] == longest["hash"], ["iteration", "test_top1"]].reset_index(drop=True)


def akaike(table: pd.DataFrame) -> pd.DataFrame:
    """`rwclib.softness.aic` of every layer, way and image of `scores`."""
    parts = [
        softness.aic(of["iterations"], of["score"]).assign(layer=layer, way=way, image=image)
        for (layer, way, image), of in table.groupby(["layer", "way", "image"], sort=False)
    ]
    return pd.concat(parts, ignore_index=True)[["layer", "way", "image", "model", "a", "b", "rss", "aic", "delta"]]


def power_residuals(table: pd.DataFrame, image: str = "bird") -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Of layer 2, in both readings: title, log iterations and the residuals of log scores from the power model's line."""
    found = []
    for way in WAYS["conv2"]:
        of = table[(table["layer"] == "conv2") & (table["way"] == way) & (table["image"] == image)]
        line = softness.fit(of["iterations"], of["score"], "power")
        found.append((f"layer 2, {way}", np.log(of["iterations"].to_numpy()), line["residuals"]))
    return found


def sessions(found: archive.Tables) -> Iterator[tuple[pd.Series, np.ndarray, dict[str, np.ndarray]]]:
    """Settings, recorded iterations (n,), and by layer the filters (n, filters, channels, 5, 5) of each session."""
    for run in found.runs.sort_values(["profile", "iterations", "seed"]).itertuples(index=False):
        arrays = {layer: found.arrays[run.hash, f"filters_{layer}"] for layer in LAYERS}
        yield run, found.arrays[run.hash, "filters_iterations"], arrays


def scores(
    found: archive.Tables,
    all_iterations: bool = False,
    pictures: Mapping[str, np.ndarray] | None = None,
    rim: bool = True,
) -> pd.DataFrame:
    """Softness of every session, layer, way and image: the sum of the scores of the layer's filtered images.

    Args:
        found: as `only` gives them.
        all_iterations: also those recorded on the way to the last.
        pictures: other images than `IMAGES`, (3, height, width) each, by name.
        rim: as in `filtered`.

    Returns:
        profile, seed, iterations (of the session), iteration (at which), layer, way, image, limit (the `SOFT` quantile of the
        images that filters of all sessions make after their first iteration), score, filters, soft (number of images below it).
    """
    rows = [
        {"profile": run.profile, "seed": run.seed, "iterations": run.iterations, "iteration": iteration, "layer": layer,
         "way": way, "image": name, "each": softness.softness_scores(filtered(at, layer, way, image, rim))}
        for run, iterations, filters in sessions(found)
        for place, iteration in enumerate(iterations)
        if all_iterations or iteration in (1, run.iterations)
        for at in [{layer: kept[place] for layer, kept in filters.items()}]
        for layer in LAYERS
        for way in WAYS[layer]
        for name, image in (pictures or {name: picture(name) for name in IMAGES}).items()
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    untrained = table[table["iteration"] == 1].groupby(["layer", "way", "image"])["each"]
    limits = untrained.agg(lambda parts: np.quantile(np.concatenate(list(parts)), SOFT)).rename("limit")
    table = table.join(limits, on=["layer", "way", "image"])
    table["score"], table["filters"] = table["each"].map(np.sum), table["each"].map(len)
    table["soft"] = [int((each < limit).sum()) for each, limit in zip(table["each"], table["limit"], strict=True)]
    wanted = table if all_iterations else table[table["iteration"] == table["iterations"]]
    return wanted.drop(columns="each").reset_index(drop=True)


def panel(scores: pd.DataFrame) -> pd.Series:
    """Layer, and of layer 2 the reading, in words."""
    return scores["layer"].where(scores["layer"] == "conv1", scores["layer"] + ", " + scores["way"])


def clustering(found: archive.Tables, all_iterations: bool = False) -> pd.DataFrame:
    """Moran's I of the filters (mean over filters and channels) of every session's layers: are strong weights neighbours?

    Columns: profile, seed, iterations, iteration, layer, morans_i; at the end, or also at all recorded `iteration`s.
    """
    rows = []
    for run, iterations, filters in sessions(found):
        for place in range(len(iterations)) if all_iterations else [len(iterations) - 1]:
            for layer, kept in filters.items():
                rows.append({
                    "profile": run.profile, "seed": run.seed, "iterations": run.iterations, "iteration": iterations[place],
                    "layer": layer, "morans_i": float(np.nanmean(softness.morans_i(kept[place]))),
                })  # fmt: skip
    return pd.DataFrame(rows)


def fits(table: pd.DataFrame) -> pd.DataFrame:
    """The three straight lines of every layer, way and image over `scores`: n, R, R^2, slope, p, as `rwclib.softness.fit`."""
    rows = []
    for (layer, way, image), of in table.groupby(["layer", "way", "image"], sort=False):
        for model in softness.MODELS:
            line = softness.fit(of["iterations"], of["score"], model)
            rows.append({"layer": layer, "way": way, "image": image, "model": model,
                         **{key: line[key] for key in ("n", "r", "r2", "slope", "p")}})  # fmt: skip
    return pd.DataFrame(rows)


NOISES = 12  # static images


def r_squared(found: archive.Tables) -> pd.DataFrame:
    """The lines of `fits` on every picture, of one profile's sessions.

    Columns: panel (layer and reading), layer, way, model, image, picture (number), printed (whether it is the figures'), n, r, r2, slope, p.
    """
    pictures = {("bird", k): bird for k, bird in enumerate(birds())}
    pictures |= {("static", k): noise(k) for k in range(NOISES)}
    lines = fits(scores(found, pictures=pictures))
    lines[["image", "picture"]] = pd.DataFrame(lines["image"].tolist(), lines.index)
    lines["printed"] = lines["picture"] == lines["image"].map(PRINTED)
    lines.insert(0, "panel", panel(lines))
    return lines

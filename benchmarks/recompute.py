"""The effect of every claim, computed a second time from the archived files alone.

This script shares no code with the package: it reads run.json, the Parquet tables and the arrays under data/results and
works each effect out from its definition, in float64, with numpy, scipy and scikit-learn. That both find the same is
evidence that the scorecards' arithmetic is right; whether a claim holds, it does not say.

    python benchmarks/recompute.py [--results data/results] [--json FILE]
"""

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage, stats
from sklearn.cluster import kmeans_plusplus

REPOSITORY = Path(__file__).resolve().parents[1]
BIRDS = REPOSITORY / "rwclib" / "studies" / "softness" / "birds.npy"  # pictures, not code
PUBLISHED = REPOSITORY / "rwclib" / "studies" / "layerwise" / "published.csv"
IMAGES = {"cifar10": 50_000, "cifar100": 50_000, "mnist": 60_000, "fashion_mnist": 60_000}
BLOCKS, PARTS = ("block1", "block2", "block3", "block4"), ("early", "middle", "late")
WHOLE_WIDTH = {"block1": 64 * 64 * 9, "block4": 512 * 512 * 9}  # weights of a group's median layer as published
CLASSES = {"cifar10": 10, "cifar100": 100, "mnist": 10, "fashion_mnist": 10, "svhn": 10}
RWC_COLUMNS = {"Eq. 1": "rwc", "elementwise": "rwc_elementwise"}
CHANGED = {"at all": "changed", "by 0.1%": "changed_1e3", "by 1%": "changed_1e2"}

DESIGN = {1: 3, 2000: 3, 10_000: 2, 30_000: 2, 50_000: 1}  # study 4: iterations, sessions
_PAPER = {"width": 64, "n_train": None, "n_test": None, "precision": "bf16"}  # None: all images
_REDUCED = {"width": 16, "n_train": 10_000, "n_test": 2000, "precision": "fp32"}
_SESSION = {"width": 64, "n_train": None, "precision": "fp32"}
_COLOUR = {"width": 32, "epochs": 60}
_GREY = {
    f"{model} {dataset}": {"epochs": 20}
    for model in ("resnet18", "vgg19_bn", "alexnet")
    for dataset in ("mnist", "fashion_mnist")
}

# Study, profile: the settings that its runs have (a tuple: one of these), and under the name of a network, of a network and
# a data set, or of what is `retrained`, other ones for these. `sessions`: how many of so many iterations, seeds counted through.
PROFILES = {
    "layerwise": {
        "quick": {"width": 16, "n_train": 2048, "n_test": 256, "epochs": 8, "precision": "fp32", "seed": (0, 42)},
        "reduced": {**_REDUCED, "epochs": 30, "seed": (0, 42, 123), "alexnet cifar10": _COLOUR, "alexnet cifar100": _COLOUR},
        "narrow": {**_PAPER, **_GREY, "width": 16, "epochs": 150, "seed": (0, 42, 123, 1000, 1234)},
        "paper": {**_PAPER, **_GREY, "epochs": 150, "seed": (0, 42, 123, 1000, 1234)},
    },
    "weightscale": {
        "quick": {"width": 8, "n_train": 2048, "n_test": 256, "epochs": 25, "image_size": 32, "precision": "fp32",
                  "seed": (0,), "resnet50": {"n_train": 1536}},
        "reduced": {**_REDUCED, "epochs": 25, "image_size": 32, "seed": (0, 42)}
        | {f"{model} svhn": {"n_train": 7500} for model in ("resnet34", "resnet50", "efficientnet_b4")},
        "narrow": {**_PAPER, "width": 16, "epochs": 25, "image_size": 32, "seed": (0, 42), "efficientnet_b4": {"image_size": 224}},
        "paper": {**_PAPER, "epochs": 25, "image_size": 32, "seed": (0, 42), "efficientnet_b4": {"image_size": 224}},
    },
    "dynamics": {
        "quick": {"width": 8, "n_train": 1024, "n_test": 256, "epochs": 20, "precision": "fp32", "seed": (0,),
                  "lenet5": {"width": 64}, "retrained": {"epochs": 10}},
        "reduced": {**_REDUCED, "epochs": 20, "seed": (0, 42), "lenet5": {"width": 64}},
        "paper": {**_PAPER, "epochs": 20, "seed": (0, 42)},
    },
    "softness": {
        "quick": {**_SESSION, "n_test": 1000, "sessions": dict.fromkeys((1, 100, 400, 1000, 2000), 3)},
        "reduced": {**_SESSION, "n_test": 1000, "sessions": DESIGN},
        "paper": {**_SESSION, "n_test": None, "sessions": dict.fromkeys(DESIGN, 10)},
    },
}  # fmt: skip

# Study 1: claim, network, data sets: groups "a / b"; or claim, network, groups: data sets "a / b".
RATIOS = """
L1 resnet18 cifar10: block2 / block1, block3 / block2
L2 resnet18 cifar10: block4 / block3
L3 resnet18 cifar100: block2 / block1, block3 / block2, block4 / block3
L4 resnet18 mnist: block3 / block1, block3 / block2, block3 / block4, block4 / block1, block4 / block2
L5 resnet18 fashion_mnist: block3 / block1, block3 / block2, block3 / block4
L6 resnet18 block1 block2 block3 block4: fashion_mnist / mnist
L6 vgg19_bn early middle late: fashion_mnist / mnist
L7 vgg19_bn cifar10: middle / early, middle / late, late / early
L8 vgg19_bn early middle late: cifar100 / cifar10
L9 vgg19_bn cifar100: middle / early, late / early
L10 vgg19_bn mnist fashion_mnist: middle / early, early / late
L11 alexnet cifar10: middle / early, middle / late
L12 alexnet cifar100: middle / early, late / middle
L13 alexnet mnist fashion_mnist: middle / early, late / middle
L14 resnet18 cifar10 cifar100 mnist fashion_mnist: block4 / block1
L14 vgg19_bn cifar10 cifar100 mnist fashion_mnist: late / early
L14 alexnet cifar10 cifar100 mnist fashion_mnist: late / early
L15 resnet18 cifar100: block4 / block1, block4 / block2, block4 / block3
L15 vgg19_bn cifar100: late / early, late / middle
L15 alexnet cifar100: late / early, late / middle
L17 resnet18 cifar10 mnist: block3 / block4
L17 vgg19_bn cifar10 mnist: middle / late
L17 alexnet cifar10 mnist: middle / late
"""
GAPS = (  # |ln ratio| on the first data set less that on the second
    ("L2", "resnet18", "block4 / block3", "cifar100", "cifar10"),
    ("L9", "vgg19_bn", "late / middle", "cifar10", "cifar100"),
)
TEST_TOP1 = {  # study 1, section 4, percent
    "resnet18": {"cifar10": 91.0, "cifar100": 64.0, "mnist": 99.0, "fashion_mnist": 92.0},
    "vgg19_bn": {"cifar10": 90.5, "cifar100": 63.6, "mnist": 98.5, "fashion_mnist": 91.6},
    "alexnet": {"cifar10": 81.0, "cifar100": 53.0, "mnist": 98.5, "fashion_mnist": 89.5},
}
STARTS = 300  # study 2: of k-means
KINDS = ("train_top1", "train_top5", "test_top1", "test_top5")  # study 2, table 2, percent
_RESNET = {"cifar10": (96.1, 99.9, 90.0, 99.75), "cifar100": (92.4, 99.8, 62.4, 87.1), "svhn": (98.9, 99.9, 94.5, 99.3)}
TABLE_2 = {
    "resnet34": _RESNET,
    "resnet50": _RESNET,
    "efficientnet_b4": {
        "cifar10": (97.9, 99.9, 89.1, 99.6),
        "cifar100": (95.1, 99.9, 62.3, 86.7),
        "svhn": (98.7, 99.9, 95.3, 99.4),
    },
}
CELL = ["profile", "model", "dataset", "perturbation", "seed"]  # study 3: whole with 3 initialisations, 2 optimizers
EARLY, LATE = 2000, 30_000
SOFT_SHARE = 0.1
READINGS = {"through layer 1": "through", "on the image": "image"}
LAYERS = ("conv1", "conv2")
LINES = ("linear", "exponential", "power")
SAME_LIMIT = 2 * max(0.27 / 120.3, 1.3 / 23.43, 1.38 / 171.79)  # D5: twice the slides' largest distance / norm


def lengths_of(sessions: dict[int, int]) -> list[int]:
    """Iterations of each session of a design; its place is its seed."""
    return [length for length, count in sessions.items() for _ in range(count)]


def fits(config: dict, settings: dict) -> bool:
    """Whether a run has the settings of a profile."""
    names = [config["model"], f"{config['model']} {config['dataset']}"]
    names += ["retrained"] if config.get("perturbation", "none") != "none" else []
    wanted = {key: value for key, value in settings.items() if not isinstance(value, dict)}
    for name in names:
        wanted |= settings.get(name, {})
    planned = (config["seed"], config.get("iterations")) in enumerate(lengths_of(settings.get("sessions", {})))
    return (planned or "sessions" not in settings) and all(
        config[key] in (value if isinstance(value, tuple) else (value,)) for key, value in wanted.items()
    )


def read_runs(results: Path, study: str) -> pd.DataFrame:
    """Finished runs, once for each profile that they fit: the settings, `profile`, `folder`, `hash`, the accuracies
    at the end (`KINDS`), and whether the network has `learned`."""
    rows = []
    for file in sorted((results / study).glob("*/run.json")):
        record = json.loads(file.read_text())
        config = record["config"]
        profiles = [name for name, settings in PROFILES[study].items() if fits(config, settings)]
        if record["status"] == "done" and profiles:
            guess = 100 / CLASSES[config["dataset"]]
            last = pd.read_parquet(file.parent / "epochs.parquet").sort_values("epoch").iloc[-1]
            found = {"folder": file.parent, "hash": file.parent.name[-12:]} | {kind: last[kind] for kind in KINDS}
            found["learned"] = (found["train_top1"] - guess) / (100 - guess) >= 0.25
            rows += [{**config, **found, "profile": profile} for profile in profiles]
    return pd.DataFrame(rows)


def read_layers(runs: pd.DataFrame) -> pd.DataFrame:
    """The layers of all these runs, with model, dataset and seed, of which no two runs may be the same."""
    if runs.duplicated(["model", "dataset", "seed"]).any():
        raise ValueError("two runs of one network, data set and seed")
    return pd.concat(
        pd.read_parquet(run.folder / "layers.parquet").assign(model=run.model, dataset=run.dataset, seed=run.seed)
        for run in runs.itertuples()
    )


def log_medians(layers: pd.DataFrame, column: str) -> pd.DataFrame:
    """ln of the median of all rows: one row per (model, dataset, group), one column per seed."""
    median = layers.groupby(["model", "dataset", "group", "seed"])[column].agg(np.nanmedian)
    return np.log(median).unstack("seed")


def log_ratio(cells: pd.DataFrame, model: str, where: str, ratio: str) -> float:
    """ln of "a / b": two groups on the data set `where`, of the seeds that have both, or the group `where` on two data
    sets, each of its own seeds. NaN without such a seed."""
    within = where in CLASSES
    a, b = ((model, where, part) if within else (model, part, where) for part in ratio.split(" / "))
    if a not in cells.index or b not in cells.index:
        return np.nan
    both = cells.loc[[a, b]].dropna(axis=1) if within else cells
    return both.loc[a].mean() - both.loc[b].mean()


def layerwise_ratios(cells: pd.DataFrame) -> list[tuple]:
    """(claim, comparison, ln ratio) of one profile and definition; NaN where there is no run."""
    found = []
    for line in RATIOS.strip().splitlines():
        of, ratios = line.split(": ")
        claim, model, *places = of.split()
        for where, ratio in itertools.product(places, ratios.split(", ")):
            found.append((claim, f"{model} {where}: {ratio}", log_ratio(cells, model, where, ratio)))
    for claim in ("L6", "L14"):  # NaN if any cell is
        found.append((claim, "mean of the cells", np.mean([value for name, _, value in found if name == claim])))
    for claim, model, ratio, first, second in GAPS:
        gap = abs(log_ratio(cells, model, first, ratio)) - abs(log_ratio(cells, model, second, ratio))
        found.append((claim, f"{model}: distance of {ratio} from 1, {first} over {second}", gap))
    return found


def layerwise(runs: pd.DataFrame) -> list[tuple]:
    """Study 1: (claim, definition, profile, comparison, effect)."""
    rows = []
    for profile, of in runs[runs["learned"]].groupby("profile"):
        layers = read_layers(of)
        last = np.where(layers["dataset"].isin(["cifar10", "cifar100"]), 150, 20)
        layers = layers[(layers["epoch"] >= 2) & (layers["epoch"] <= last)]
        for definition, column in RWC_COLUMNS.items():
            found = layerwise_ratios(log_medians(layers, column))
            rows += [(claim, definition, profile, label, np.exp(value)) for claim, label, value in found]
    published = runs[runs["learned"] & (runs["profile"] == "paper")]
    for (model, dataset), of in published.groupby(["model", "dataset"]):
        miss = of["test_top1"].mean() - TEST_TOP1[model][dataset]
        rows.append(("L16", "-", "paper", f"{model} {dataset}: test top-1 - published", miss))
    return rows


def cleaned(curves: np.ndarray) -> np.ndarray:
    """Curves (layers, epochs): what is not finite becomes sum / epochs, then outliers over 2 std become the mean."""
    finite = np.isfinite(curves)
    filled = np.where(finite, curves, 0)
    filled = np.where(finite, curves, filled.sum(1, keepdims=True) / curves.shape[1])
    mean, std = filled.mean(1, keepdims=True), filled.std(1, keepdims=True)
    return np.where(abs(filled - mean) > 2 * std, mean, filled)


def clusters(curves: np.ndarray, k: int) -> np.ndarray:
    """Each curve's cluster, of `k` or, of fewer distinct curves, as many as these: k-means++, the best of all starts, which
    go side by side (scikit-learn's own k-means takes one after the other: up to a minute)."""
    k = min(k, len(np.unique(curves, axis=0)))
    centres = np.array([kmeans_plusplus(curves, k, random_state=start)[0] for start in range(STARTS)])
    nearest = np.full((STARTS, len(curves)), -1)
    for _ in range(300):
        distances = (curves**2).sum(1)[:, None] + (centres**2).sum(2)[:, None] - 2 * curves @ centres.swapaxes(1, 2)
        before, nearest = nearest, distances.argmin(2)
        if (nearest == before).all():
            break
        inside = nearest[:, None] == np.arange(k)[:, None]  # start, cluster, curve
        count = inside.sum(2, keepdims=True)
        centres = np.where(count > 0, inside @ curves / np.maximum(count, 1), centres)
    return nearest[distances.min(2).sum(1).argmin()]


def named_efficientnet_groups(layers: pd.DataFrame) -> pd.DataFrame:
    """Rows of DW and PW layers of one run once more, under the names of the parts that the claims speak of."""
    parts = []
    for kind in ("DW", "PW"):
        of = layers[layers["group"] == kind]
        depths = np.sort(of["depth"].unique())
        named = dict(zip(("early", "middle", "late"), np.array_split(depths, 3), strict=True))
        named |= {"last two": depths[-2:], "other": depths[:-2]}
        parts += [of[of["depth"].isin(which)].assign(group=f"{name} {kind}") for name, which in named.items()]
    return pd.concat(parts)


def share_in_one_cluster(layers: pd.DataFrame, column: str) -> float:
    """Of the layers of block3 and block4 of one run, the largest share in one of 3 clusters."""
    curves = layers.pivot(index="depth", columns="epoch", values=column).sort_index().iloc[1:-1]
    group = layers.groupby("depth")["group"].first().loc[curves.index]
    labels = clusters(cleaned(curves.to_numpy()), 3)[group.isin(["block3", "block4"])]
    return np.bincount(labels).max() / len(labels)


def marked(layers: pd.DataFrame) -> pd.DataFrame:
    """The layers of one run with `spiking`, by the elementwise curves: 1 or 0, NaN for the first and the last."""
    curves = layers.pivot(index="depth", columns="epoch", values="rwc_elementwise").sort_index().iloc[1:-1]
    smooth = cleaned(curves.to_numpy())
    labels, means = clusters(smooth, 4), smooth.mean(1)
    spiking = (np.bincount(labels)[labels] <= len(labels) / 8) & (means > means.mean())
    return layers.assign(spiking=layers["depth"].map(pd.Series(spiking.astype(float), curves.index)))


def spiking_over_other(layers: pd.DataFrame, column: str) -> float:
    """ln of the spiking layers' median peak over median, less that of the others; NaN without a spiking layer."""
    later = layers[layers["epoch"] >= 2].groupby("depth")
    peaks, spiking = later[column].max() / later[column].agg(np.nanmedian), later["spiking"].first()
    if not (spiking == 1).any():
        return np.nan
    return np.log(np.nanmedian(peaks[spiking == 1])) - np.log(np.nanmedian(peaks[spiking == 0]))


def weightscale_effects(model: str, dataset: str, layers: pd.DataFrame, column: str) -> list[tuple]:
    """(claim, comparison, effect) of one network and data set."""
    tables = [table for _, table in layers.groupby("seed")]
    if model == "efficientnet_b4":
        layers = pd.concat([named_efficientnet_groups(table) for table in tables])
    cells = log_medians(layers[layers["epoch"] >= 2], column)
    ratios = {
        ("efficientnet_b4", "cifar10"): [("W4", "early DW / late DW"), ("W4", "middle DW / late DW")],
        ("efficientnet_b4", "cifar100"): [("W5", "late PW / early PW")],
        ("efficientnet_b4", "svhn"): [("W6", "other DW / last two DW")],
    }.get((model, dataset), [("W3", "block4 / block3")] if dataset == "svhn" else [])
    found = [(claim, ratio, np.exp(log_ratio(cells, model, dataset, ratio))) for claim, ratio in ratios]
    if model == "efficientnet_b4":
        return found
    if dataset == "svhn":
        share = np.mean([share_in_one_cluster(table, column) for table in tables])
        return [*found, ("W3", "share in one cluster", share)]
    medians = [table[table["epoch"] >= 2].groupby("depth")[column].agg(np.nanmedian) for table in tables]
    rank = np.mean([stats.spearmanr(median.index, median)[0] for median in medians])
    spikes = pd.Series([spiking_over_other(table, column) for table in tables])  # NaN: a seed without spikes
    claims = ("W1", "W2") if dataset == "cifar10" else ("W2",)
    found = [(claim, "Spearman of depth and change", rank) for claim in claims]
    return [*found, ("W7", "peak over median, spiking / other", np.exp(spikes.mean()))]


def weightscale(runs: pd.DataFrame) -> list[tuple]:
    """Study 2, as `layerwise`."""
    rows = []
    for (profile, model, dataset), of in runs[runs["learned"]].groupby(["profile", "model", "dataset"]):
        layers = read_layers(of)
        if model != "efficientnet_b4" and dataset != "svhn":
            layers = pd.concat(marked(table) for _, table in layers.groupby("seed"))
        for definition, column in RWC_COLUMNS.items():
            for claim, label, effect in weightscale_effects(model, dataset, layers, column):
                rows.append((claim, definition, profile, f"{model} {dataset}: {label}", effect))
        if profile == "paper":
            for kind, published in zip(KINDS, TABLE_2[model][dataset], strict=True):
                label = f"{model} {dataset}: {kind.replace('_top', ' top-')} - published"
                rows.append(("W8", "-", profile, label, of[kind].mean() - published))
    return rows


def mean_of_positive_r(features: np.ndarray) -> float:
    """Mean of the positive correlations between features (images, features) that vary."""
    features = features.astype(np.float64)
    r = np.corrcoef(features[:, np.ptp(features, 0) > 0], rowvar=False)
    between = r[~np.eye(len(r), dtype=bool)]
    return between[between > 0].mean()


def read_dynamics(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of whole cells with what they were at the end: those that learned; of retrained ones, whose parent did."""
    runs = runs.assign(
        init=runs["init"].str.split(":").str[0], optimizer=runs["optimizer"].map({"sgd": "SGD", "adam": "Adam"})
    )
    different = (runs["init"] + " " + runs["optimizer"]).groupby([runs[key] for key in CELL]).transform("nunique")
    runs = runs[different == 6]
    scratch = runs["perturbation"] == "none"
    judged = runs["hash"].where(scratch, runs["parent"]).isin(runs.loc[scratch & runs["learned"], "hash"])
    runs = runs[judged]
    rows = []
    for run in runs.itertuples():
        snapshots = pd.read_parquet(run.folder / "snapshots.parquet")
        last = snapshots[snapshots["epoch"] == snapshots["epoch"].max()].set_index("tensor")
        whole, tensors = last.loc["all"], last.drop("all")
        end = pd.read_parquet(run.folder / "features.parquet").set_index("when").loc["end"]
        row = {name: np.average(tensors[name], weights=tensors["size"]) for name in CHANGED.values()}
        row |= {"moved": np.log(whole["distance_start"] / whole["norm_start"]), "mean r": end["correlation"]}
        row |= {"apart": whole["distance_parent"] / whole["norm_parent"], "mean of positive r": np.nan}
        row["back"] = float(row["apart"] <= SAME_LIMIT and end["paired"] >= 0.9)
        if run.perturbation == "none" and (run.folder / "penultimate.npy").exists():
            row["mean of positive r"] = mean_of_positive_r(np.load(run.folder / "penultimate.npy"))
        rows.append(row)
    return runs.join(pd.DataFrame(rows, index=runs.index))


def scratch_effects(scratch: pd.DataFrame) -> list[tuple]:
    """D1 to D4, of one profile's trainings from scratch: (claim, definition, comparison, effect)."""
    rows = []
    for (model, dataset), of in scratch.groupby(["model", "dataset"]):
        claim = {"resnet18": "D1", "lenet5 cifar10": "D2a", "vgg19 cifar10": "D2b"}
        claim = claim.get(model) or claim.get(f"{model} {dataset}")
        for ((init, optimizer), runs), definition in itertools.product(of.groupby(["init", "optimizer"]), CHANGED):
            if claim:
                label = f"{model} {dataset}: {init}, {optimizer}"
                shares = runs[CHANGED[definition]]  # of several seeds, the one that speaks least for the claim
                rows.append((claim, definition, label, shares.max() if claim == "D1" else shares.min()))
        adam, sgd = (of[of["optimizer"] == name].set_index(["init", "seed"]) for name in ("Adam", "SGD"))
        pairs = adam.index.intersection(sgd.index)
        adam, sgd = adam.loc[pairs], sgd.loc[pairs]
        if model != "lenet5":
            rows.append(("D3", "-", f"{model} {dataset}: Adam / SGD", np.exp((adam["moved"] - sgd["moved"]).mean())))
        alike = (adam["train_top1"] - sgd["train_top1"]).abs() <= 10
        for definition in ("mean of positive r", "mean r"):
            effect = (adam[definition] - sgd[definition])[alike].mean()
            rows.append(("D4", definition, f"{model} {dataset}: Adam - SGD", effect))
    return rows


def retrained_effects(runs: pd.DataFrame) -> list[tuple]:
    """D5 and D6, of one profile's retrained networks, as `scratch_effects`."""
    rows = []
    for claim, perturbation, column, quantity in (
        ("D5", "distort:1e-06", "back", "share that comes back"),
        ("D6", "flip_sign", "apart", "distance / norm"),
    ):
        again = runs[runs["perturbation"] == perturbation]
        cells = again.groupby(["model", "dataset", "optimizer"])[column].mean()
        for (model, dataset, optimizer), value in cells.items():
            rows.append((claim, "-", f"{model} {dataset}: {optimizer}, {quantity}", value))
        if claim == "D5" and len(cells) == 18:
            rows.append((claim, "-", "mean of the cells", cells.mean()))
    return rows


def dynamics(runs: pd.DataFrame) -> list[tuple]:
    """Study 3, as `layerwise`."""
    rows = []
    for profile, of in read_dynamics(runs).groupby("profile"):
        found = scratch_effects(of[of["perturbation"] == "none"]) + retrained_effects(of)
        rows += [(claim, definition, profile, label, value) for claim, definition, label, value in found]
    return rows


def filter_images(filters: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Images (n, channels, height, width) as each filter makes them, zeros around: (n, filters, height, width)."""
    rim = [(0, 0), (0, 0), *((size // 2, size // 2) for size in filters.shape[-2:])]
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(images, rim), filters.shape[-2:], axis=(-2, -1))
    return np.einsum("fcij,nchwij->nfhw", filters, windows, optimize=True)


def image_scores(images: np.ndarray) -> np.ndarray:
    """Mean standard deviation of the whole 3x3 windows of each image (..., height, width), scaled to [0, 1]."""
    low, high = images.min((-2, -1), keepdims=True), images.max((-2, -1), keepdims=True)
    scaled = (images - low) / np.where(high > low, high - low, 1)
    return np.lib.stride_tricks.sliding_window_view(scaled, (3, 3), axis=(-2, -1)).std((-2, -1)).mean((-2, -1))


def scores(filters: tuple, layer: str, way: str, images: np.ndarray) -> np.ndarray:
    """Scores (n, filters) of what a layer's filters make of colour images: layer 2's of the image's grey, or of what
    layer 1 hands on."""
    conv1, conv2 = filters
    if layer == "conv1":
        return image_scores(filter_images(conv1, images))
    if way == "image":
        return image_scores(filter_images(conv2.mean(1, keepdims=True), images.mean(1, keepdims=True)))
    first = np.maximum(filter_images(conv1, images), 0)
    pooled = np.maximum(first[..., ::2, :], first[..., 1::2, :])
    return image_scores(filter_images(conv2, np.maximum(pooled[..., ::2], pooled[..., 1::2])))


def mean_morans_i(filters: np.ndarray) -> float:
    """Mean over filters and channels of Moran's I, four neighbours weighing alike; constant ones left out."""
    cross = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], float)
    found = []
    for image in filters.reshape(-1, *filters.shape[-2:]):
        apart = image - image.mean()
        weights = ndimage.correlate(np.ones_like(image), cross, mode="constant").sum()
        products = (apart * ndimage.correlate(apart, cross, mode="constant")).sum()
        if np.ptp(image) > 0:
            found.append(image.size / weights * products / (apart**2).sum())
    return float(np.mean(found))


def read_sessions(runs: pd.DataFrame) -> list[dict]:
    """Sessions in order of their seeds: `length`, and by iteration both layers' filters in float64."""
    sessions = []
    for run in runs.sort_values("seed").itertuples():
        recorded = np.load(run.folder / "filters_iterations.npy").tolist()
        both = [np.load(run.folder / f"filters_{layer}.npy").astype(np.float64) for layer in LAYERS]
        at = {iteration: tuple(layer[place] for layer in both) for place, iteration in enumerate(recorded)}
        sessions.append({"length": run.iterations, "at": at})
    return sessions


def line_of(lengths: np.ndarray, scores: np.ndarray, model: str) -> tuple[float, float]:
    """R^2 and two-sided p of the slope of the straight line that `model` makes."""
    x = np.log(lengths) if model == "power" else lengths
    line = stats.linregress(x, scores if model == "linear" else np.log(scores))
    return line.rvalue**2, line.pvalue


def later_than_early(sessions: list[dict], pictures: dict[str, np.ndarray]) -> list[tuple]:
    """S1 to S3: the sessions of at least 30,000 iterations, then and after 2,000."""
    long = [session["at"] for session in sessions if session["length"] >= LATE]
    gain = np.mean([mean_morans_i(at[LATE][0]) - mean_morans_i(at[EARLY][0]) for at in long])
    rows = [("S1", "-", "Moran's I, layer 1: 30,000 - 2,000 iterations", gain)]
    for (definition, way), layer, name in itertools.product(READINGS.items(), LAYERS, pictures):
        first = pictures[name][:1]
        late, early = (np.array([scores(at[when], layer, way, first).sum() for at in long]) for when in (LATE, EARLY))
        label = f"score, {layer} {name}: 30,000 / 2,000 iterations"
        rows.append(("S2", definition, label, np.exp(np.mean(np.log(late) - np.log(early)))))
    bird = "conv1", "image", pictures["bird"][:1]
    limit = np.quantile([scores(session["at"][1], *bird) for session in sessions], SOFT_SHARE)
    late, early = (np.array([(scores(at[when], *bird) < limit).sum() for at in long]) for when in (LATE, EARLY))
    spread = late.std(ddof=1) / (late.mean() - early.mean())
    return [*rows, ("S3", "-", "soft images, layer 1 bird: sessions' spread / gain", spread)]


def lines_through_sessions(sessions: list[dict], pictures: dict[str, np.ndarray]) -> list[tuple]:
    """S4 to S6: the three straight lines of score on iterations, over the sessions' ends."""
    lengths = np.array([session["length"] for session in sessions], float)
    ends = [session["at"][session["length"]] for session in sessions]
    rows = []
    for (definition, way), layer, name in itertools.product(READINGS.items(), LAYERS, pictures):
        totals = np.array([scores(end, layer, way, pictures[name]).sum(1) for end in ends])
        fits = {model: np.array([line_of(lengths, of, model) for of in totals.T]) for model in LINES}
        r2 = {model: fit[:, 0] for model, fit in fits.items()}
        for model in LINES:
            claim, label = "S4" if (layer, model) == ("conv2", "power") else "S5", f"{layer} {model} {name}"
            rows.append((claim, definition, f"R2, {label}", r2[model].mean()))
            rows.append(("S6", definition, f"p, {label}", fits[model][0, 1]))
            if layer == "conv1":
                rows.append(("S6", definition, f"R2 of the single fit, {label}", r2[model][0]))
        if layer == "conv2":
            lead = r2["power"] - np.maximum(r2["linear"], r2["exponential"])
            rows.append(("S4", definition, f"power's lead, {layer} {name}", lead.mean()))
    return rows


def softness(runs: pd.DataFrame) -> list[tuple]:
    """Study 4, as `layerwise`: of the profiles that have all their sessions, and long ones."""
    birds = np.load(BIRDS).transpose(0, 3, 1, 2) / 255
    birds[[0, 1]] = birds[[1, 0]]  # the printed one first
    noise = [np.random.default_rng(k).integers(0, 2, (32, 32)).astype(float) for k in range(12)]
    pictures = {"bird": birds, "static": np.array(noise)[:, None].repeat(3, axis=1)}
    rows = []
    for profile, of in runs.groupby("profile"):
        lengths = lengths_of(PROFILES["softness"][profile]["sessions"])
        if max(lengths) >= LATE and sorted(of["seed"]) == list(range(len(lengths))):
            sessions = read_sessions(of)
            found = later_than_early(sessions, pictures) + lines_through_sessions(sessions, pictures)
            rows += [(claim, definition, profile, label, value) for claim, definition, label, value in found]
    return rows


def expected_cosine(lr: float, decay: float, momentum: float, n: int, growth: np.ndarray) -> np.ndarray:
    """w_t·w_s / |w_s|² after n steps of SGD: w and lr times momentum as one vector, driven by white noise."""
    d = lr * decay
    return cosine_of(
        np.array([[1 - d, -momentum], [d, momentum]]), np.array([-1.0, 1.0]), d / (1 - momentum), n, growth
    )


def cosine_of(matrix: np.ndarray, push: np.ndarray, kappa: float, n: int, growth: np.ndarray) -> np.ndarray:
    """The same of any such system that forgets kappa of its direction per step."""
    moments = np.linalg.solve(np.eye(4) - np.kron(matrix, matrix), np.kron(push, push)).reshape(2, 2)
    settled = (np.linalg.matrix_power(matrix, n) @ moments)[0, 0] / moments[0, 0]
    falling = np.abs(np.linalg.eigvals(matrix)).max() ** n
    return settled + np.log(growth) / (n * kappa) * (settled - falling)


def beside_theory(runs: pd.DataFrame) -> pd.DataFrame:
    """Layers of study 1's groups from the second epoch on: measured and expected L2 ratio, and whether settled."""
    parts = []
    for run in runs.itertuples():
        layers = pd.read_parquet(run.folder / "layers.parquet").sort_values(["layer", "epoch"])
        growth = layers["l2_norm"] / layers.groupby("layer")["l2_norm"].shift()
        n = -(-int(run.n_train if run.n_train == run.n_train else IMAGES[run.dataset]) // run.batch_size)
        cosine = expected_cosine(run.lr, run.weight_decay, run.momentum, n, growth)
        squares = (growth**2 + 1 - 2 * cosine).where(growth > cosine - 1e-9)
        age = (layers["epoch"] - 1) * n * 4 * run.lr * run.weight_decay / (1 - run.momentum)  # in relaxation times
        layers = layers.assign(
            expected=np.sqrt(squares), settled=age >= 3, over=layers["rwc_elementwise"] / layers["rwc_median"]
        )
        layers = layers.assign(
            factor=layers["l2_ratio"] / layers["expected"], shape=layers["rwc_median"] / layers["l2_ratio"]
        )
        last = 150 if run.dataset.startswith("cifar") else 20
        kept = layers["group"].isin(["block1", "block2", "block3", "block4", "early", "middle", "late"])
        kept &= layers["epoch"].between(2, last)
        parts.append(layers[kept].assign(model=run.model, dataset=run.dataset, seed=run.seed))
    return pd.concat(parts)


def extensions(runs: pd.DataFrame) -> list[tuple]:
    """What theory predicts of study 1, as `layerwise`."""
    paper = pd.read_csv(PUBLISHED).groupby(["model", "dataset", "group"])["median"].mean()
    rows = []
    for profile, of in runs[runs["learned"]].groupby("profile"):
        layers = beside_theory(of)
        cells = layers.groupby(["model", "dataset", "seed"])
        factors = cells[["factor", "shape"]].median()
        slopes, fits = {}, {}
        for key, cell in cells:
            sizes = cell.groupby("layer")[["size", "over"]].median()
            slopes[key] = stats.linregress(np.log(sizes["size"]), sizes["over"]).slope
            both = np.log(cell[["l2_ratio", "expected"]]).dropna()
            fits[key] = stats.pearsonr(both["l2_ratio"], both["expected"])[0] ** 2
        for model, groups in {"resnet18": BLOCKS, "vgg19_bn": PARTS, "alexnet": PARTS}.items():
            sets = (
                ["mnist", "fashion_mnist"] if model == "alexnet" else ["cifar10", "cifar100", "mnist", "fashion_mnist"]
            )
            whole = {(model, dataset) for dataset in sets} <= {key[:2] for key in slopes}
            for claim, name, values in (("T2", "slope", slopes), ("T3", "R²", fits)):
                by_set = [
                    np.mean([value for key, value in values.items() if key[:2] == (model, dataset)])
                    for dataset in sets
                    if whole
                ]
                rows.append((claim, "-", profile, f"{model}: {name}", np.mean(by_set) if whole else np.nan))
            if model == "alexnet":
                continue
            logs = np.log(layers[layers["model"] == model].groupby(["dataset", "group", "seed"])["factor"].median())
            logs = logs.groupby(["dataset", "group"]).mean().groupby("group").mean()
            for b, a in itertools.combinations(groups, 2):
                effect = np.exp(logs[a] - logs[b]) if whole else np.nan
                rows.append(("T4", "-", profile, f"{model}: factor, {a} / {b}", effect))
            for dataset in ("cifar10", "cifar100"):
                if (model, dataset) in factors.index:
                    found = published_over_predicted(layers, factors.loc[model, dataset], paper, model, dataset, groups)
                    rows += [("T1", "-", profile, *each) for each in found]
        settled = np.log(
            layers[layers["settled"]].groupby(["model", "dataset", "group", "seed"])["rwc"].median()
        ).unstack("seed")
        for dataset in ("cifar10", "cifar100"):
            ratio = log_ratio(settled, "resnet18", dataset, "block4 / block1")
            rows.append(("T5", "Eq. 1", profile, f"resnet18 {dataset}: block4 / block1", np.exp(ratio)))
    for dataset in ("cifar10", "cifar100"):
        over = [
            paper["resnet18", dataset, group] / (1 + 2 / np.pi * np.log(size)) for group, size in WHOLE_WIDTH.items()
        ]
        rows.append(
            ("T6", "-", "paper", f"resnet18 {dataset}: block4 / block1, published over size", over[1] / over[0])
        )
    return rows


def published_over_predicted(layers, factors, paper, model, dataset, groups) -> list[tuple]:
    """T1 of one network and data set: (comparison, published median over the one that theory predicts)."""
    lr, decay = (0.1, 1e-4) if model == "resnet18" else (0.05, 5e-4)
    l2 = np.sqrt(2 - 2 * expected_cosine(lr, decay, 0.9, 391, 1.0))
    mine = layers[(layers["model"] == model) & (layers["dataset"] == dataset)].drop_duplicates("layer")
    wider = np.where(mine["depth"] == 1, 4, 16)  # the published width is 4 times that of these runs
    add = 2 / np.pi * (np.log(mine["size"] * wider) + 1 - np.euler_gamma) + stats.landau.ppf(0.5)
    add = add.groupby(mine["group"]).median()
    own = np.exp(np.log(factors["factor"] * factors["shape"]).mean())
    return [
        (f"{model} {dataset}: {group}, published / predicted", paper[model, dataset, group] / (l2 * own * add[group]))
        for group in groups
    ]


def language(tables: dict[str, dict]) -> list[tuple]:
    """N1 to N4, from the stored tables of the language model by inputs."""
    eta, decay, beta = 1e-3, 0.1, 0.9
    step = np.sqrt(2 * eta * decay * (1 - beta) / (1 + beta * (1 - eta * decay)))
    ends = {"in_proj_weight": "attention in", "out_proj.weight": "attention out", "linear1.weight": "MLP in", "linear2.weight": "MLP out"}  # fmt: skip
    rows = []
    for profile, (steps, window) in {"quick": (2000, 100), "reduced": (10_000, 500)}.items():
        keys = {(with_decay, seed): f"{profile!r}; {decay if with_decay else 0.0}; {seed}" for with_decay in (True, False) for seed in (0, 42, 123)}  # fmt: skip
        if not set(keys.values()) <= set(tables):
            continue
        parts = []
        for (with_decay, seed), key in keys.items():
            table = pd.DataFrame(tables[key]).query("layer.str.startswith('blocks.')")
            names = table["layer"].str.removeprefix("blocks.layers.").str.split(".", n=1, expand=True)
            kinds = names[1].str.removeprefix("self_attn.").map(ends)
            parts.append(table.assign(block=names[0].astype(int) + 1, kind=kinds, decay=with_decay, seed=seed))
        table = pd.concat(parts, ignore_index=True)
        table["late"] = table["step"] > steps / 2
        spans = {span: of.pivot(index=["decay", "seed", "block", "kind"], columns="step", values="l2_norm") for span, of in table.groupby("span")}  # fmt: skip
        growth = spans["window"].pct_change(axis=1).add(1).stack().rename("growth")
        table = table[table["step"] > window].join(growth, on=["decay", "seed", "block", "kind", "step"])
        single, wide = table[table["span"] == "step"], table[table["span"] == "window"]
        for definition, column in (("Eq. 1", "rwc"), ("elementwise", "rwc_elementwise")):
            blocks = np.log(wide[wide["decay"]].groupby(["block", "seed"])[column].median()).groupby("block").mean()
            rows += [("N1", definition, profile, f"transformer help pages: block{b + 1} / block{b}", np.exp(blocks[b + 1] - blocks[b])) for b in (1, 2, 3)]  # fmt: skip
            kinds = np.log(wide[wide["late"]].groupby(["decay", "kind", "seed"])[column].median()).groupby(["decay", "kind"]).mean()  # fmt: skip
            rows += [("N3", definition, profile, f"{kind}: with / without weight decay", np.exp(kinds[True, kind] - kinds[False, kind])) for kind in ends.values()]  # fmt: skip
        adamw = np.array([[1 - eta * decay, -beta], [0.0, beta]])
        cosines = cosine_of(adamw, np.array([-1.0, 1.0]), eta * decay, window, wide["growth"].to_numpy())
        over = wide["l2_ratio"] / np.sqrt(wide["growth"] ** 2 + 1 - 2 * cosines)
        for claim, name, of, ratios in (("N2", "step over equilibrium", single, single["l2_ratio"] / step), ("N4", "window over theory", wide, over)):  # fmt: skip
            mine = of.assign(ratio=ratios)[of["late"] & of["decay"]]
            means = np.exp(np.log(mine.groupby(["kind", "seed"])["ratio"].median()).groupby("kind").mean())
            rows += [(claim, "-", profile, f"{kind}: {name}", means[kind]) for kind in ends.values()]
    return rows


def freezing(tables: dict[str, dict]) -> list[tuple]:
    """F1 to F3, from the stored tables of the freezing runs by inputs."""
    rows = []
    asked = (("F1", "constant", "lowest RWC", "random"), ("F2", "cosine", "lowest RWC", "random"), ("F3", "constant", "bottom up", "all train"))  # fmt: skip
    for profile, (claim, schedule, a, b), share in itertools.product(("quick", "reduced"), asked, (0.2, 0.4)):
        gains = []
        for seed in (0, 42, 123):
            found = []
            for arm in (a, b):
                key = f"{profile!r}; 'cifar10'; {schedule!r}; {arm!r}; {share if arm != 'all train' else 0.0}; {seed}"
                found.append(pd.DataFrame(tables.get(key, {"top1": [], "seconds": []})))
            if len(found[0]) and len(found[1]):
                mine, other = found[0]["top1"][-3:].mean(), found[1]["top1"][-3:].mean()
                if claim == "F3":  # at the times at which the other run had its last epochs, in first epochs
                    times = [of["seconds"] / of["seconds"][0] for of in found]
                    other = np.interp(times[0][-3:], times[1], found[1]["top1"]).mean()
                gains.append((mine, other))
        if gains:
            name = b if claim != "F3" else "all train, same time"
            rows.append((claim, "-", profile, f"{schedule}, {share:.0%} spared: {a} - {name}", np.subtract(*np.mean(gains, 0))))  # fmt: skip
    return rows


def stored(results: Path, name: str) -> dict[str, dict]:
    """Tables of `extensions/tables` by inputs."""
    file = results / "extensions" / "tables" / f"{name}.json"
    return json.loads(file.read_text())["tables"] if file.is_file() else {}


def effects(results: Path) -> pd.DataFrame:
    """claim, definition, profile, comparison, effect of all that there are runs for."""
    rows = []
    for study in (layerwise, weightscale, dynamics, softness):
        runs = read_runs(results, study.__name__)
        rows += study(runs) if len(runs) else []
        rows += extensions(runs) if study is layerwise and len(runs) else []
    rows += language(stored(results, "language")) + freezing(stored(results, "freezing"))
    table = pd.DataFrame(rows, columns=["claim", "definition", "profile", "comparison", "effect"])
    table = table.dropna(subset="effect")  # not run
    claims = sorted(
        table["claim"].unique(), key=lambda claim: ("LWDSTNF".index(claim[0]), len(claim.rstrip("ab")), claim)
    )
    return table.sort_values("claim", key=lambda of: of.map(claims.index), kind="stable", ignore_index=True)


def main() -> None:
    """Print the table, or write it as JSON records."""
    parser = argparse.ArgumentParser(description="Compute the effect of every claim from the archived files alone.")
    parser.add_argument("--results", type=Path, default=REPOSITORY / "data" / "results")
    parser.add_argument("--json", type=Path, help="write records here instead of printing the table")
    chosen = parser.parse_args()
    table = effects(chosen.results)
    if chosen.json:
        chosen.json.write_text(json.dumps(table.to_dict("records"), indent=1, ensure_ascii=False) + "\n")
    else:
        print(table.to_string())


if __name__ == "__main__":
    main()

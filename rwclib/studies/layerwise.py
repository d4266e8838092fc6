"""Study 1, layer-wise weight change (arXiv 2011.06735): its runs, figures' tables and accuracies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from rwclib import archive, claims, data, plotting
from rwclib.config import PROFILES, RunConfig, check_profile
from rwclib.errors import ArchiveError, ConfigError, DataError
from rwclib.progress import SweepProgress
from rwclib.sweep import run_all

STUDY = "layerwise"
DATASETS = ("cifar10", "cifar100", "mnist", "fashion_mnist")
SEEDS = (0, 42, 123, 1000, 1234)

# Table 1 and section 4 of the paper: learning rate, weight decay, published test top-1 (percent) by data set.
MODELS = {
    "resnet18": {
        "title": "ResNet-18",
        "lr": dict.fromkeys(DATASETS, 0.1),
        "weight_decay": 1e-4,
        "top1": {"cifar10": 91.0, "cifar100": 64.0, "mnist": 99.0, "fashion_mnist": 92.0},
    },
    "vgg19_bn": {
        "title": "VGG-19-bn",
        "lr": dict.fromkeys(DATASETS, 0.05),
        "weight_decay": 5e-4,
        "top1": {"cifar10": 90.5, "cifar100": 63.6, "mnist": 98.5, "fashion_mnist": 91.6},
    },
    "alexnet": {
        "title": "AlexNet",
        "lr": {"cifar10": 0.001, "cifar100": 0.01, "mnist": 0.1, "fashion_mnist": 0.1},
        "weight_decay": 1e-4,
        "top1": {"cifar10": 81.0, "cifar100": 53.0, "mnist": 98.5, "fashion_mnist": 89.5},
        "sizes": {"quick": {"epochs": 20}},  # cheaper, and slow to leave chance: the slower, the narrower
        "colour": {"reduced": {"width": 32, "epochs": 60}},  # on MNIST, at its rate of 0.1, still at chance
    },
}

# Profile: width, images, epochs and seeds, unless a model says otherwise. `None` images is all of them.
SIZES = {
    "smoke": {"width": 8, "n_train": 512, "n_test": 256, "epochs": 2, "seeds": SEEDS[:1]},
    "quick": {"width": 16, "n_train": 2048, "n_test": 1000, "epochs": 8, "seeds": SEEDS[:2]},
    "reduced": {"width": 16, "n_train": 10_000, "n_test": 2000, "epochs": 30, "seeds": SEEDS[:3]},
    "paper": {"width": 64, "n_train": None, "n_test": None, "epochs": 150, "seeds": SEEDS, "precision": "bf16"},
}


def run_config(profile: str, model: str, dataset: str, seed: int) -> RunConfig:
    """The run of Table 1's hyperparameters at the profile's size; `ConfigError` for unknown names."""
    size = {key: value for key, value in SIZES[check_profile(profile)].items() if key != "seeds"}
    if model not in MODELS:
        raise ConfigError(f"unknown model {model!r} in study {STUDY}; known: {', '.join(MODELS)}")
    settings = MODELS[model]
    grey = data.get(dataset).in_channels == 1  # the release flips these too, but neither crops nor normalises them
    for kind in ("sizes",) if grey else ("sizes", "colour"):
        size |= settings.get(kind, {}).get(profile, {})
    return RunConfig(
        study=STUDY, model=model, dataset=dataset, seed=seed, batch_size=128, momentum=0.9,
        lr=settings["lr"].get(dataset, settings["lr"]["fashion_mnist"]), weight_decay=settings["weight_decay"],
        crop_padding=0 if grey else 4, normalize="none" if grey else "imagenet", flip=True, **size,
    )  # fmt: skip


def runs(
    profile: str,
    *,
    models: list[str] | None = None,
    datasets: list[str] | None = None,
    seeds: list[int] | None = None,
) -> list[RunConfig]:
    """The study's runs at a profile, ordered so that every (model, data set) gets its first seed before any its second.

    Args:
        profile: a name in `rwclib.config.PROFILES`.
        models, datasets, seeds: fewer, or other, than the study's own; data sets may be any of `rwclib.data.DATASETS`.
    """
    check_profile(profile)
    return [
        run_config(profile, model, dataset, seed)
        for seed in (seeds or SIZES[profile]["seeds"])
        for dataset in (datasets or DATASETS)
        for model in (models or MODELS)
    ]


# Figures 1-12: pairs of neighbouring ResNet-18 blocks on each data set, in the paper's order. 13-16: VGG. 17-20: AlexNet.
FIGURES = {
    3 * i + j: ("resnet18", dataset, (f"block{j}", f"block{j + 1}"))
    for i, dataset in enumerate(DATASETS)
    for j in (1, 2, 3)
} | {
    first + i: (model, dataset, ("early", "middle", "late"))
    for first, model in ((13, "vgg19_bn"), (17, "alexnet"))
    for i, dataset in enumerate(DATASETS)
}


def published() -> pd.DataFrame:
    """The published figures' medians, read off the figures (good to about 10%), and their last epochs.

    Columns: figure, model, dataset, group, median, epochs.
    """
    table = pd.read_csv(Path(__file__).with_name("layerwise_published.csv"))
    names = {"ResNet18": "resnet18", "VGG19_bn": "vgg19_bn", "AlexNet": "alexnet"}
    sets = {"CIFAR-10": "cifar10", "CIFAR-100": "cifar100", "MNIST": "mnist", "FMNIST": "fashion_mnist"}
    groups = {f"Block-{i}": f"block{i}" for i in (1, 2, 3, 4)} | {
        "Early Layer": "early", "Earlier Layers": "early", "Middle Layers": "middle", "Later Layers": "late",
    }  # fmt: skip
    return pd.DataFrame({
        "figure": table["journal_fig"], "model": table["model"].map(names), "dataset": table["dataset"].map(sets),
        "group": table["group"].map(groups), "median": table["p50"], "epochs": table["last_epoch"],
    })  # fmt: skip


def tables(
    results: str | Path | None = None,
    profile: str = "best",
    *,
    models: list[str] | None = None,
    datasets: list[str] | None = None,
    seeds: list[int] | None = None,
) -> archive.Tables:
    """Finished runs of one profile, or of all profiles (`best`), with a column `profile` in each table.

    Raises:
        ConfigError: unknown profile, model or data set.
        ArchiveError: a run directory is damaged.
    """
    parts = {}
    for name in PROFILES if profile == "best" else [check_profile(profile)]:
        configs = runs(name, models=models, datasets=datasets, seeds=seeds)
        parts[name] = archive.load(configs, Path(results or archive.default_results()), status="done")

    def together(kind: str) -> pd.DataFrame:
        tidy = [getattr(part, kind).assign(profile=name) for name, part in parts.items()]
        return pd.concat([table for table in tidy if len(table)] or tidy[:1], ignore_index=True)

    return archive.Tables(*(together(kind) for kind in ("runs", "layers", "epochs")))


def learned(found: archive.Tables) -> tuple[archive.Tables, set[tuple[str, str, str]]]:
    """The tables without the runs at chance, and the (profile, model, dataset) of these.

    A run is at chance if its training top-1 in the last epoch is below twice that of guessing. How the weights of such a
    network move says nothing about learning, so claims are not judged on it; figures and accuracies still show it.
    """
    if found.epochs.empty:
        return found, set()
    last = archive.last_epochs(found.epochs)
    guessing = last["dataset"].map(lambda name: 100 / data.get(name).num_classes)
    bad = last[last["train_top1"] < 2 * guessing]
    kept = (table[~table["hash"].isin(bad["hash"])] for table in (found.runs, found.layers, found.epochs))
    return archive.Tables(*kept), set(bad[["profile", "model", "dataset"]].itertuples(index=False, name=None))


def best(table: pd.DataFrame, model: str, dataset: str) -> pd.DataFrame:
    """The rows of `table` for one model and data set at the most telling profile it has (of the published order)."""
    rows = table[(table["model"] == model) & (table["dataset"] == dataset)]
    found = [name for name in PROFILES if name in set(rows["profile"])]
    return rows[rows["profile"] == found[-1]] if found else rows


def figures(model: str, dataset: str) -> list[int]:
    """Numbers of the published figures of a model and data set; those of Fashion-MNIST for its bundled sample."""
    dataset = "fashion_mnist" if dataset == data.SAMPLE else dataset
    return [number for number, (of, on, _) in FIGURES.items() if (of, on) == (model, dataset)]


def _drawn(layers: pd.DataFrame, figure: int, dataset: str | None) -> tuple[pd.DataFrame, pd.Series]:
    """The best runs' rows that a figure shows, no later than its published last epoch; and the published medians."""
    model, paper_dataset, groups = FIGURES[figure]
    paper = published().query("figure == @figure").set_index("group")
    rows = best(layers, model, dataset or paper_dataset)
    return rows[rows["group"].isin(groups) & (rows["epoch"] <= paper["epochs"].max())], paper["median"]


def figure_table(layers: pd.DataFrame, figure: int, dataset: str | None = None) -> pd.DataFrame:
    """The numbers behind one published figure, one row per definition and group; `dataset` if not the published one.

    Columns: mean (over layers, seeds and the drawn epochs after the first), median, p10, p90 of the finite values, the
    number of infinite values, and the published figure's median, which is an elementwise value.
    """
    rows, medians = _drawn(layers, figure, dataset)
    rows, result = rows[rows["epoch"] > 1], []
    for metric, definition in claims.DEFINITIONS.items():
        for group in FIGURES[figure][2]:
            values = rows.loc[rows["group"] == group, metric]
            finite = values[values < float("inf")]
            p10, median, p90 = finite.quantile([0.1, 0.5, 0.9])
            result.append({
                "definition": definition, "group": group, "mean": finite.mean(), "median": median, "p10": p10, "p90": p90,
                "infinite": len(values) - len(finite),
                "published_median": medians[group] if metric == "rwc_elementwise" else float("nan"),
            })  # fmt: skip
    return pd.DataFrame(result)


def draw(
    found: archive.Tables, model: str, dataset: str, folder: str | Path, prefix: str
) -> Iterator[tuple[int, plotting.Figure, pd.DataFrame]]:
    """Draw and save the published figures of one model and data set: yields (number, figure, the numbers behind it).

    A figure ends at the last epoch of the published one: those of MNIST and Fashion-MNIST show 20 of the 150 epochs.

    Args:
        found: as `tables` gives them; figures whose runs are missing are left out.
        model, dataset: their figures are drawn.
        folder, prefix: files are `<folder>/<prefix>_fig<NN>_<data set>_<groups>.png` and `.pdf`.
    """
    for number in figures(model, dataset):
        groups = FIGURES[number][2]
        layers, medians = _drawn(found.layers, number, dataset)
        if layers.empty:
            continue
        drawn, note = layers["epoch"].max(), caption(found, model, dataset)
        if drawn < best(found.layers, model, dataset)["epoch"].max():
            note += f"; the first {drawn} epochs are drawn, as in the published figure"
        figure = plotting.group_lines(
            layers, groups,
            title=f"Figure {number}: {MODELS[model]['title']}, {data.get(dataset).title}, {', '.join(groups)}",
            caption=note, published=medians.to_dict(),
        )  # fmt: skip
        plotting.save(figure, folder, f"{prefix}_fig{number:02d}_{dataset}_{'_'.join(groups)}")
        yield number, figure, figure_table(found.layers, number, dataset)


def caption(found: archive.Tables, model: str, dataset: str) -> str:
    """Profile, size, seeds, training accuracy and data copy of the runs that a figure of this model and data set shows."""
    epochs = best(found.epochs, model, dataset)
    top1 = epochs.loc[epochs["epoch"] == epochs["epoch"].max(), "train_top1"].mean()
    rows = best(found.runs, model, dataset).astype({"images": int, "epochs": int, "width": int})
    run, seeds, notes = rows.iloc[0], sorted(rows["seed"]), "; ".join(rows["data_note"].unique())
    return (
        f"profile {run['profile']}: width {run['width']} of 64, {run['images']:,} images, {run['epochs']} epochs, "
        f"{run['precision']}, seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
        f"{'; band: range over seeds' if len(seeds) > 1 else ''}; training top-1 at the end {top1:.0f}%\n"
        f"data copy: {notes}"
    )


def overview_caption(found: archive.Tables, model: str) -> str:
    """The captions of all data sets of a model, one line each."""
    lines = ["epochs after the first; bars: range over seeds where there are several"]
    for row in shown(found, model).to_dict("records"):
        title = data.get(row["dataset"]).title
        lines.append(
            f"{title}: width {row['width']}, {row['images']:,} images, {row['epochs']} epochs, seeds {row['seeds']}"
        )
        lines[-1] += f"; copy {row['data copy'].split(';')[0]}"
    return "\n".join(lines)


def shown(found: archive.Tables, model: str) -> pd.DataFrame:
    """The runs that the figures of a model show, one row per data set."""
    result = []
    for dataset in dict.fromkeys(found.runs.loc[found.runs["model"] == model, "dataset"]):
        rows = best(found.runs, model, dataset)
        run = rows.iloc[0]
        result.append({
            "dataset": dataset, "profile": run["profile"], "seeds": ",".join(map(str, sorted(rows["seed"]))),
            "width": run["width"], "images": int(run["images"]), "epochs": int(run["epochs"]), "device": run["device"],
            "data copy": run["data_note"],
        })  # fmt: skip
    return pd.DataFrame(result)


def group_means(found: archive.Tables, model: str) -> pd.DataFrame:
    """Mean RWC per data set, group, seed and definition (epochs after the first, finite values), published medians beside.

    Columns: dataset, panel, profile, group, seed (-1 for published), source (`Eq. 1`, `elementwise`, `published`), value.
    """
    groups = list(dict.fromkeys(group for of, _, names in FIGURES.values() if of == model for group in names))
    layers, (_, at_chance), parts = found.layers, learned(found), []
    for dataset in dict.fromkeys(layers.loc[layers["model"] == model, "dataset"]):
        rows = best(layers, model, dataset)
        rows = rows[(rows["epoch"] > 1) & rows["group"].isin(groups)]
        profile = rows["profile"].iloc[0]
        shown = f"{profile}, at chance" if (profile, model, dataset) in at_chance else profile
        for metric, definition in claims.DEFINITIONS.items():
            finite = rows.assign(value=rows[metric].where(rows[metric] < float("inf")))
            mean = finite.groupby(["dataset", "profile", "group", "seed"])["value"].mean().reset_index()
            parts.append(mean.assign(source=definition, panel=f"{data.get(dataset).title}\n({shown})"))
    medians = (
        published().query("model == @model").groupby(["dataset", "group"])["median"].mean().reset_index(name="value")
    )
    parts.append(medians.assign(profile="published", seed=-1, source="published"))
    table = pd.concat(parts, ignore_index=True)
    return table.sort_values("group", key=lambda names: names.map(groups.index), kind="stable", ignore_index=True)


def prepare(
    profile: str,
    models: list[str],
    *,
    datasets: list[str],
    seeds: list[int] | None = None,
    results: str | Path,
    retrain: bool = False,
    device: str = "auto",
    jobs: int | None = None,
) -> tuple[archive.Tables, list[str]]:
    """What a notebook draws: the archive's tables, after training what is missing if `retrain`, and their data sets.

    Data sets that are not on this machine and cannot be fetched are named and left out. If none can be had, the bundled
    Fashion-MNIST sample is trained under its own name instead, and that is said.
    """
    if retrain:
        here = []
        for dataset in datasets:
            try:
                data.load(dataset)
                here.append(dataset)
            except DataError as error:
                print(f"not run: {error}")
        if not here:
            print(f"none of the data sets can be had: training on the bundled {data.get(data.SAMPLE).title} instead")
            here = [data.SAMPLE]
        datasets = here
        configs = runs(profile, models=models, datasets=datasets, seeds=seeds)
        with SweepProgress(configs) as tell:
            report = run_all(configs, results=results, device=device, jobs=jobs, progress=tell)
        for name, message in report.diverged.items():
            print(f"left out: {name}: {message}")
        if report.failed:
            raise ArchiveError("; ".join(f"{name} failed: {message}" for name, message in report.failed.items()))
    return tables(results, profile, models=models, datasets=datasets, seeds=seeds), datasets


def accuracy_table(epochs: pd.DataFrame, models: list[str] | None = None) -> pd.DataFrame:
    """Test top-1 (percent, last epoch, mean over seeds) beside the published, one row per model, data set and profile.

    Columns: model, dataset, profile, seeds, epochs, train_top1, test_top1, published, miss (ours less the published).
    What has no run at any profile has one row of profile `not run`.
    """
    columns = ["model", "dataset", "profile", "seeds", "epochs", "train_top1", "test_top1", "published", "miss"]
    table = pd.DataFrame(
        [(model, dataset, paper) for model in models or MODELS for dataset, paper in MODELS[model]["top1"].items()],
        columns=["model", "dataset", "published"],
    )
    if len(epochs):
        means = archive.last_epochs(epochs).groupby(["model", "dataset", "profile"], sort=False).agg(
            seeds=("seed", "nunique"), epochs=("epoch", "max"), train_top1=("train_top1", "mean"),
            test_top1=("test_top1", "mean"),
        )  # fmt: skip
        table = table.merge(means.reset_index(), how="left")
    table = (
        table.reindex(columns=columns)
        .astype({"profile": "object"})
        .fillna({"profile": "not run", "seeds": 0, "epochs": 0})
    )
    return table.astype({"seeds": int, "epochs": int}).assign(miss=table["test_top1"] - table["published"])

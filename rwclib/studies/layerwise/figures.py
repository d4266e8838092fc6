"""The tables behind study 1's figures, and how they are drawn."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from rwclib.analysis import plotting, theory
from rwclib.analysis.claims import DEFINITIONS
from rwclib.runs import archive, data
from rwclib.studies import captions
from rwclib.studies.captions import at_largest_profile, at_largest_profiles
from rwclib.studies.layerwise.runs import DATASETS, NETWORKS

GROUPS = {
    "resnet18": ("block1", "block2", "block3", "block4"),
    "vgg19_bn": ("early", "middle", "late"),
    "alexnet": ("early", "middle", "late"),
}
# Figures 1-12: pairs of neighbouring ResNet-18 blocks on each data set, in the paper's order. 13-16: VGG. 17-20: AlexNet.
_PANELS = [("resnet18", dataset, GROUPS["resnet18"][j : j + 2]) for dataset in DATASETS for j in range(3)]
_PANELS += [(model, dataset, GROUPS[model]) for model in ("vgg19_bn", "alexnet") for dataset in DATASETS]
FIGURES = dict(enumerate(_PANELS, 1))


def published() -> pd.DataFrame:
    """The published figures' medians, read off the figures (good to about 10%), and the last epochs that they draw.

    Columns, among others: figure, model, dataset, group, median, epochs.
    """
    return pd.read_csv(Path(__file__).with_name("published.csv"))


EPOCHS, DRAWN = 150, {"mnist": 20, "fashion_mnist": 20, data.SAMPLE: 20}  # published, and drawn where it is not all


def drawn(layers: pd.DataFrame) -> pd.DataFrame:
    """The rows of the epochs that medians are over: from the second to the last that the published figures draw."""
    last = layers["dataset"].map(DRAWN).astype(float).fillna(EPOCHS)
    return layers[(layers["epoch"] > 1) & (layers["epoch"] <= last)]


def _length(epochs: int, dataset: str) -> str:
    """A run's epochs beside the published, and how many of each are drawn where it is not all."""
    last = DRAWN.get(dataset, EPOCHS)
    ours, paper = (f"{last} of {count}" if last < count else f"{count}" for count in (epochs, EPOCHS))
    return f"{'the first ' * (last < epochs)}{ours} epochs (published: {paper})"


def figures(model: str, dataset: str) -> list[int]:
    """Numbers of the published figures of a model and data set; those of Fashion-MNIST for its bundled sample."""
    dataset = "fashion_mnist" if dataset == data.SAMPLE else dataset
    return [number for number, (of, on, _) in FIGURES.items() if (of, on) == (model, dataset)]


def _drawn(layers: pd.DataFrame, figure: int, dataset: str | None) -> tuple[pd.DataFrame, pd.Series]:
    """The best runs' rows that a figure shows, no later than its published last epoch; and the published medians."""
    model, paper_dataset, groups = FIGURES[figure]
    paper = published().query("figure == @figure").set_index("group")
    dataset = dataset or paper_dataset
    rows = at_largest_profile(layers, model, dataset)
    return rows[rows["group"].isin(groups) & (rows["epoch"] <= DRAWN.get(dataset, EPOCHS))], paper["median"]


def figure_table(layers: pd.DataFrame, figure: int, dataset: str | None = None) -> pd.DataFrame:
    """The numbers behind one published figure, one row per definition and group; `dataset` if not the published one.

    Columns: over layers, seeds and the drawn epochs after the first, the median and the mean of the finite values beside it,
    p10 and p90; the number of infinite values, which count in the ranks; and the published median, an elementwise value.
    """
    rows, medians = _drawn(layers, figure, dataset)
    rows, result = drawn(rows), []
    for metric, definition in DEFINITIONS.items():
        for group in FIGURES[figure][2]:
            values = rows.loc[rows["group"] == group, metric]
            finite = values[values < float("inf")]
            p10, p90 = values.quantile([0.1, 0.9], "nearest")  # between two infinities there is nothing to interpolate
            result.append({
                "definition": definition, "group": group, "median": values.median(), "mean": finite.mean(),
                "p10": p10, "p90": p90, "infinite": len(values) - len(finite),
                "published_median": medians[group] if metric == "rwc_elementwise" else float("nan"),
            })  # fmt: skip
    return pd.DataFrame(result)


def draw(
    tables: archive.Tables, model: str, dataset: str, folder: str | Path, prefix: str
) -> Iterator[tuple[int, plotting.Figure, pd.DataFrame]]:
    """Draw and save the published figures of one model and data set: yields (number, figure, the numbers behind it).

    A figure ends at the last epoch of the published one, and is left out if its runs are missing. Files are
    `<folder>/<prefix>_fig<NN>_<data set>_<groups>.png` and `.pdf`.
    """
    for number in figures(model, dataset):
        groups = FIGURES[number][2]
        layers, medians = _drawn(tables.layers, number, dataset)
        if layers.empty:
            continue
        epochs = int(at_largest_profile(tables.runs, model, dataset)["epochs"].max())
        figure = plotting.group_lines(
            layers, groups,
            title=f"Figure {number}: {NETWORKS[model]['title']}, {data.get(dataset).title}, {', '.join(groups)}",
            caption=captions.caption(tables, model, dataset, _length(epochs, dataset)),
            order=GROUPS[model], published=medians.to_dict(),
        )  # fmt: skip
        plotting.save(figure, folder, f"{prefix}_fig{number:02d}_{dataset}_{'_'.join(groups)}")
        yield number, figure, figure_table(tables.layers, number, dataset)


def overview_caption(tables: archive.Tables, model: str) -> str:
    """What the overview shows, the size of the runs beside the published, and their data copies."""
    rows = captions.runs_shown(tables, model)
    titles = [data.get(name).title for name in rows["dataset"]]
    sizes = [
        f"{row.profile}, {captions.size(rows.loc[[row.Index]])}, {_length(row.epochs, row.dataset)}, seeds {row.seeds}"
        for row in rows.itertuples()
    ]
    return "\n".join([
        "medians over a group's layers and the epochs after the first, infinite values in their ranks; bars: range over seeds",
        *captions.merge_lines(zip(titles, sizes, strict=True)),
        captions.copies(rows.rename(columns={"data copy": "data_note"})),
    ])  # fmt: skip


def run_medians(
    layers: pd.DataFrame, metrics: Mapping[str, str] = DEFINITIONS, statistic: str = "median"
) -> pd.DataFrame:
    """Each run's median over a group's layers and the `drawn` epochs, or its mean of the finite values (`mean`).

    Columns: profile, model, dataset, group, seed, definition, value.
    """
    rows = drawn(layers[layers["group"].isin({group for groups in GROUPS.values() for group in groups})])
    rows = rows.replace(float("inf"), np.nan) if statistic == "mean" else rows
    centers = rows.groupby(["profile", "model", "dataset", "group", "seed"], sort=False)[list(metrics)].agg(statistic)
    return centers.rename(columns=metrics).melt(var_name="definition", ignore_index=False).reset_index()


def group_medians(tables: archive.Tables, model: str) -> pd.DataFrame:
    """`run_medians` of the runs that a model's figures show, published medians beside.

    Columns: dataset, panel, profile, group, seed (-1 for published), source (`Eq. 1`, `elementwise`, `published`), value.
    """
    layers = at_largest_profiles(tables.layers[tables.layers["model"] == model])
    datasets, last, panels = layers["dataset"].unique(), archive.last_epochs(tables.epochs), {}
    for dataset in datasets:
        learned = captions.progress(at_largest_profile(last, model, dataset)).split("; ")
        panels[dataset] = "\n".join([data.get(dataset).title, *(textwrap.fill(part, 20) for part in learned)])
    ours = run_medians(layers).rename(columns={"definition": "source"})
    paper = published().query("model == @model").groupby(["dataset", "group"], as_index=False)["median"].mean()
    paper = paper.rename(columns={"median": "value"}).assign(profile="published", seed=-1, source="published")
    table = pd.concat([ours.assign(panel=ours["dataset"].map(panels)), paper])
    order = [*GROUPS[model], *datasets, *DATASETS]
    table = table.sort_values(["group", "dataset"], key=lambda names: names.map(order.index), ignore_index=True)
    return table[["dataset", "panel", "profile", "group", "seed", "source", "value"]]


def expected(tables: archive.Tables, model: str) -> dict[str, float]:
    """L1 and L2 ratio of an epoch in equilibrium, in layers that a norm follows, by data set: of the runs shown."""
    runs = at_largest_profiles(tables.runs[tables.runs["model"] == model]).to_dict("records")
    steps = [-(-int(run["images"]) // run["batch_size"]) for run in runs]
    return {
        run["dataset"]: theory.equilibrium(run["optimizer"], run).change(n) for run, n in zip(runs, steps, strict=True)
    }


def median_table(medians: pd.DataFrame) -> pd.DataFrame:
    """What `group_medians` draws, averaged over seeds on the log scale: a row per data set and group, a column per source."""
    logs = medians.assign(value=np.log(medians["value"]))
    return np.exp(logs.pivot_table("value", ["dataset", "group"], "source", sort=False))


def accuracy_table(epochs: pd.DataFrame, models: list[str] | None = None) -> pd.DataFrame:
    """Test top-1 (percent, last epoch, mean over seeds) beside the published, one row per model, data set and profile.

    Columns: model, dataset, profile, seeds, epochs, train_top1, test_top1, published, miss (ours less the published).
    What has no run at any profile has one row of profile `not run`.
    """
    published = {(model, on): top1 for model in models or NETWORKS for on, top1 in NETWORKS[model]["top1"].items()}
    table = captions.accuracies(epochs, published, ("train_top1", "test_top1"))
    table["published"] = [published[pair] for pair in zip(table["model"], table["dataset"], strict=True)]
    return table.assign(miss=table["test_top1"] - table["published"])

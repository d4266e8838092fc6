"""What every study does with its runs: train what is missing, load the archive, choose what is shown, say what it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pandas as pd

from rwclib import archive, data
from rwclib.config import PROFILES, RunConfig, check_profile
from rwclib.errors import ArchiveError, DataError
from rwclib.progress import SweepProgress
from rwclib.sweep import run_all

ACCURACIES = ("train_top1", "train_top5", "test_top1", "test_top5")


def load(
    runs: Callable[..., list[RunConfig]], results: str | Path | None = None, profile: str = "best", **which: object
) -> archive.Tables:
    """Finished runs of one profile, or of all profiles (`best`), with a column `profile` in each table.

    Args:
        runs: a study's `runs(profile, **which)`.
        results: archive folder; default as in `archive.default_results`.
        profile: a name in `rwclib.config.PROFILES`, or `best`.
        which: fewer, or other, than the study's own `models`, `datasets`, `seeds`.

    Raises:
        ConfigError: unknown profile, model or data set.
        ArchiveError: a run directory is damaged.
    """
    parts = {}
    for name in PROFILES if check_profile(profile, "best") == "best" else [profile]:
        configs = runs(name, **which)
        parts[name] = archive.load(configs, Path(results or archive.default_results()), status="done")

    def together(of: Callable[[archive.Tables], pd.DataFrame]) -> pd.DataFrame:
        tidy = [of(part).assign(profile=name) for name, part in parts.items()]
        return pd.concat([table for table in tidy if len(table)] or tidy[:1], ignore_index=True)

    extra = dict.fromkeys(name for part in parts.values() for name in part.extra)
    return archive.Tables(
        together(lambda part: part.runs), together(lambda part: part.layers), together(lambda part: part.epochs),
        {name: together(lambda part, name=name: part.extra.get(name, pd.DataFrame())) for name in extra},
        {key: array for part in parts.values() for key, array in part.arrays.items()},
    )  # fmt: skip


def prepare(
    runs: Callable[..., list[RunConfig]],
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
    return load(runs, results, profile, models=models, datasets=datasets, seeds=seeds), datasets


def only(found: archive.Tables, hashes: set[str]) -> archive.Tables:
    """The tables of these runs alone."""
    of_runs = (table[table["hash"].isin(hashes)] for table in (found.runs, found.layers, found.epochs))
    extra = {name: table[table["hash"].isin(hashes)] for name, table in found.extra.items()}
    return archive.Tables(*of_runs, extra, found.arrays)


LEARNED = 0.25  # of the way from guessing to no error: what a network must have learned to be judged


def learned(found: archive.Tables) -> tuple[archive.Tables, set[tuple[str, str, str]]]:
    """The tables without the runs that have hardly learned, and the (profile, model, dataset) of these.

    A run has learned if its training top-1 in the last epoch lies at least `LEARNED` of the way from guessing to 100%. How
    the weights of another move says little about learning, so claims are not judged on it; figures and accuracies show it.
    """
    if found.epochs.empty:
        return found, set()
    last = archive.last_epochs(found.epochs)
    hardly = last[learned_share(last["train_top1"], last["dataset"]) < LEARNED]
    return only(found, set(found.runs["hash"]) - set(hardly["hash"])), set(
        hardly[["profile", "model", "dataset"]].itertuples(index=False, name=None)
    )


def learned_share(top1: pd.Series, dataset: pd.Series) -> pd.Series:
    """How much of the way from guessing (0) to no error (1) accuracies in percent are."""
    guessing = 100 / dataset.map(lambda name: data.get(name).num_classes)
    return (top1 - guessing) / (100 - guessing)


def best(table: pd.DataFrame, model: str, dataset: str) -> pd.DataFrame:
    """The rows of `table` for one model and data set at the most telling profile it has (of the published order)."""
    rows = table[(table["model"] == model) & (table["dataset"] == dataset)]
    found = [name for name in PROFILES if name in set(rows["profile"])]
    return rows[rows["profile"] == found[-1]] if found else rows


def progress(last: pd.DataFrame, top1: str = "") -> str:
    """Training accuracy of runs at their end (rows of `archive.last_epochs`), their mean if not in words; who is not judged."""
    words = f"training top-1 {top1 or format(last['train_top1'].mean(), '.0f') + '%'}"
    hardly = (learned_share(last["train_top1"], last["dataset"]) < LEARNED).sum()
    if not hardly:
        return words
    who = "has" if hardly == len(last) else f"{hardly} of {len(last)} {'has' if hardly == 1 else 'have'}"
    return f"{words}; shown, not judged: {who} hardly learned"


def size(runs: pd.DataFrame) -> str:
    """Width and number of images of runs of one size, each of how many."""
    whole = runs["dataset"].map(lambda name: data.get(name).n_train)
    ours, total = (" or ".join(f"{count:,.0f}" for count in sorted(set(of))) for of in (runs["images"], whole))
    return f"width {runs['width'].iloc[0]:.0f} of 64, {f'all {ours}' if ours == total else f'{ours} of {total}'} images"


def together(lines: Iterable[tuple[str, str]]) -> list[str]:
    """`names: text` of (name, text); names of the same text in one line."""
    names: dict[str, list[str]] = {}
    for name, text in lines:
        names.setdefault(text, []).append(name)
    return [f"{', '.join(dict.fromkeys(of))}: {text}" for text, of in names.items()]


def copies(runs: pd.DataFrame) -> str:
    """The data copies of runs, each in few words."""
    notes = {
        (data.get(name).title, note.split(";")[0])
        for name, note in zip(runs["dataset"], runs["data_note"], strict=True)
    }
    return f"data copies: {'; '.join(together(sorted(notes)))}"


def caption(found: archive.Tables, model: str, dataset: str, length: str) -> str:
    """Profile, size, length, seeds, training accuracy and data copy of the runs that a figure of this model and data set shows.

    Args:
        length: the epochs in words, beside the published.
    """
    rows = best(found.runs, model, dataset)
    run, seeds, notes = rows.iloc[0], sorted(rows["seed"]), "; ".join(rows["data_note"].unique())
    several = len(seeds) > 1
    return (
        f"profile {run['profile']}: {size(rows)}, {length}, {run['precision']}, "
        f"seed{'s' * several} {', '.join(map(str, seeds))}\n"
        f"{progress(best(archive.last_epochs(found.epochs), model, dataset))}{'; band: range over seeds' * several}\n"
        f"data copy: {notes}"
    )


def shown(found: archive.Tables, model: str) -> pd.DataFrame:
    """The runs that the figures of a model show, one row per data set; `learned`: how many of them are judged."""
    result = []
    for dataset in dict.fromkeys(found.runs.loc[found.runs["model"] == model, "dataset"]):
        rows, last = (best(table, model, dataset) for table in (found.runs, archive.last_epochs(found.epochs)))
        run, share = rows.iloc[0], learned_share(last["train_top1"], last["dataset"])
        result.append({
            "dataset": dataset, "profile": run["profile"], "seeds": ", ".join(map(str, sorted(rows["seed"]))),
            "width": int(run["width"]), "images": int(run["images"]), "epochs": int(run["epochs"]),
            "train_top1": round(last["train_top1"].mean(), 1), "learned": f"{(share >= LEARNED).sum()} of {len(last)}",
            "device": run["device"], "data copy": run["data_note"],
        })  # fmt: skip
    return pd.DataFrame(result)


def accuracies(
    epochs: pd.DataFrame, published: Mapping[tuple[str, str], Mapping[str, float]], kinds: tuple[str, ...] = ACCURACIES
) -> pd.DataFrame:
    """Accuracies (percent, last epoch, mean over seeds), one row per model, data set and profile; unlike the published.

    Args:
        epochs: as in `archive.Tables`, with a column `profile`.
        published: of each (model, data set), the published values by kind.
        kinds: of `ACCURACIES`, in the table's order.

    Returns:
        model, dataset, profile, seeds, epochs, then each kind. What has no run has one row of profile `not run`.
    """
    columns = ["model", "dataset", "profile", "seeds", "epochs", *kinds]
    table = pd.DataFrame(list(published), columns=["model", "dataset"])
    if len(epochs):
        means = archive.last_epochs(epochs).groupby(["model", "dataset", "profile"], sort=False).agg(
            seeds=("seed", "nunique"), epochs=("epoch", "max"), **{kind: (kind, "mean") for kind in kinds},
        )  # fmt: skip
        table = table.merge(means.reset_index(), how="left")
    table = table.reindex(columns=columns).astype({"profile": "object"})
    return table.fillna({"profile": "not run", "seeds": 0, "epochs": 0}).astype({"seeds": int, "epochs": int})

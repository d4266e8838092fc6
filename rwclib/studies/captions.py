"""What figures and tables of every study say about their runs: which, how large, how far they have learned, on which data copy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd

from rwclib.runs import archive, data
from rwclib.runs.config import PROFILES
from rwclib.studies.study import LEARNED, learned_share

ACCURACIES = ("train_top1", "train_top5", "test_top1", "test_top5")


def at_largest_profile(table: pd.DataFrame, model: str, dataset: str) -> pd.DataFrame:
    """The rows of `table` for one model and data set at the most telling profile it has."""
    return at_largest_profiles(table[(table["model"] == model) & (table["dataset"] == dataset)])


def at_largest_profiles(table: pd.DataFrame, keys: Iterable[str | pd.Series] = ("model", "dataset")) -> pd.DataFrame:
    """The rows of each model and data set, or of what `keys` tell apart, at the most telling profile they have."""
    place = table["profile"].map(list(PROFILES).index)
    keys = [table[key] if isinstance(key, str) else key for key in keys]
    return table[place == place.groupby(keys).transform("max")]


def progress(last: pd.DataFrame, top1: str = "") -> str:
    """Training accuracy of runs at their end (rows of `archive.last_epochs`), their mean if not in words; who is not judged."""
    words = f"training top-1 {top1 or format(last['train_top1'].mean(), '.0f') + '%'}"
    hardly = (learned_share(last) < LEARNED).sum()
    if not hardly:
        return words
    who = "has" if hardly == len(last) else f"{hardly} of {len(last)} {'has' if hardly == 1 else 'have'}"
    return f"{words}; shown, not judged: {who} hardly learned"


def size(runs: pd.DataFrame) -> str:
    """Width and number of images of runs of one size, each of how many."""
    whole = runs["dataset"].map(lambda name: data.get(name).n_train)
    ours, total = (" or ".join(f"{count:,.0f}" for count in sorted(set(counts))) for counts in (runs["images"], whole))
    return f"width {runs['width'].iloc[0]:.0f} of 64, {f'all {ours}' if ours == total else f'{ours} of {total}'} images"


def merge_lines(lines: Iterable[tuple[str, str]]) -> list[str]:
    """`names: text` of (name, text); names of the same text in one line."""
    names: dict[str, list[str]] = {}
    for name, text in lines:
        names.setdefault(text, []).append(name)
    return [f"{', '.join(dict.fromkeys(same))}: {text}" for text, same in names.items()]


def copies(runs: pd.DataFrame) -> str:
    """The data copies of runs, each in few words."""
    notes = {
        (data.get(name).title, note.split(";")[0])
        for name, note in zip(runs["dataset"], runs["data_note"], strict=True)
    }
    return f"data copies: {'; '.join(merge_lines(sorted(notes)))}"


def caption(tables: archive.Tables, model: str, dataset: str, length: str) -> str:
    """Profile, size, length, seeds, training accuracy and data copy of the runs that a figure of this model and data set shows.

    Args:
        length: the epochs in words, beside the published.
    """
    rows = at_largest_profile(tables.runs, model, dataset)
    run, seeds, notes = rows.iloc[0], sorted(rows["seed"]), "; ".join(rows["data_note"].unique())
    plural, band = ("s", "; band: range over seeds") if len(seeds) > 1 else ("", "")
    return (
        f"profile {run['profile']}: {size(rows)}, {length}, {run['precision']}, "
        f"seed{plural} {', '.join(map(str, seeds))}\n"
        f"{progress(at_largest_profile(archive.last_epochs(tables.epochs), model, dataset))}{band}\n"
        f"data copy: {notes}"
    )


def runs_shown(tables: archive.Tables, model: str) -> pd.DataFrame:
    """The runs that the figures of a model show, one row per data set; `learned`: how many of them are judged."""
    result = []
    for dataset in dict.fromkeys(tables.runs.loc[tables.runs["model"] == model, "dataset"]):
        rows, last = (
            at_largest_profile(table, model, dataset) for table in (tables.runs, archive.last_epochs(tables.epochs))
        )
        run, share = rows.iloc[0], learned_share(last)
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

"""What figures and tables of every study say about their runs: which, how large, how far they have learned, on which data copy."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from rwclib.runs import archive, data
from rwclib.runs.config import PROFILES
from rwclib.studies.study import LEARNED, learned_share

ACCURACIES = ("train_top1", "train_top5", "test_top1", "test_top5")


def at_largest_profile(table: pd.DataFrame, model: str, dataset: str) -> pd.DataFrame:
    """The rows of `table` for one model and data set at the most telling profile it has."""
    return at_largest_profiles(table[(table["model"] == model) & (table["dataset"] == dataset)])


def at_largest_profiles(table: pd.DataFrame, keys: Iterable[str | pd.Series] = ("model", "dataset")) -> pd.DataFrame:
    """The rows of each model and data set, or of what `keys` tell apart, at the most telling profile they have.

    Rows of one are together, in the order in which they first come in the table.
    """
    number = table.groupby([*keys], sort=False).ngroup()
    place = pd.Series(pd.Categorical(table["profile"], list(PROFILES)).codes, table.index)  # -1: released
    kept = place == place.groupby(number).transform("max")
    return table.loc[number[kept].sort_values(kind="stable").index]


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
    notes = runs["dataset"].map(lambda name: data.get(name).title), runs["data_note"].str.partition(";")[0]
    return f"data copies: {'; '.join(merge_lines(sorted(set(zip(*notes, strict=True)))))}"


def caption(tables: archive.Tables, model: str, dataset: str, length: str) -> str:
    """Profile, size, length, seeds, training accuracy and data copy of the runs that a figure of this model and data set shows.

    `length` is the epochs in words, beside the published.
    """
    rows = at_largest_profile(tables.runs, model, dataset)
    last = at_largest_profile(archive.last_epochs(tables.epochs), model, dataset)
    run, seeds, notes = rows.iloc[0], ", ".join(map(str, sorted(rows["seed"]))), "; ".join(rows["data_note"].unique())
    plural, band = ("s", "; band: range over seeds") if len(rows) > 1 else ("", "")
    settings = f"profile {run['profile']}: {size(rows)}, {length}, {run['precision']}, seed{plural} {seeds}"
    return f"{settings}\n{progress(last)}{band}\ndata copy: {notes}"


def runs_shown(tables: archive.Tables, model: str) -> pd.DataFrame:
    """The runs that the figures of a model show, one row per data set; `learned`: how many of them are judged."""
    rows = at_largest_profiles(tables.runs[tables.runs["model"] == model])
    if rows.empty:
        return pd.DataFrame()
    rows = rows.merge(archive.last_epochs(tables.epochs)[["profile", "hash", "train_top1"]])
    rows["learned"] = learned_share(rows) >= LEARNED
    means = dict.fromkeys(("profile", "seed", "width", "images", "epochs", "train_top1", "learned", "device", "data_note"), "first") | {
        "seed": lambda seeds: ", ".join(map(str, sorted(seeds))), "train_top1": lambda top1: round(top1.mean(), 1),
        "learned": lambda learned: f"{learned.sum()} of {len(learned)}",
    }  # fmt: skip
    table = rows.groupby("dataset", sort=False).agg(means).reset_index()
    return table.rename(columns={"seed": "seeds", "data_note": "data copy"})


def accuracies(
    epochs: pd.DataFrame, published: Iterable[tuple[str, str]], kinds: tuple[str, ...] = ACCURACIES
) -> pd.DataFrame:
    """Accuracies of `kinds` (percent, last epoch, mean over seeds) of the published (model, data set), a row per profile.

    Columns: model, dataset, profile, seeds, epochs, then each kind. What has no run has one row of profile `not run`.
    """
    keys, means = ["model", "dataset", "profile"], {kind: (kind, "mean") for kind in kinds}
    last = archive.last_epochs(epochs).reindex(columns=[*keys, "seed", "epoch", *kinds])
    ours = last.groupby(keys, sort=False).agg(seeds=("seed", "nunique"), epochs=("epoch", "max"), **means).reset_index()
    table = pd.DataFrame(list(published), columns=keys[:2]).merge(ours, how="left").astype({"profile": "object"})
    return table.fillna({"profile": "not run", "seeds": 0, "epochs": 0}).astype({"seeds": int, "epochs": int})

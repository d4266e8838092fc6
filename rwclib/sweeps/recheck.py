"""Archived runs trained again, in a folder of their own, and compared: results that other code made are found out.

The rule. On the machine and versions that trained the archive, with the same number of threads, a run comes out the same bit for
bit, and `strict` demands that of every number. Elsewhere sums are added in another order, and training amplifies such rounding from
epoch to epoch until single numbers differ by half; only the first epoch tells rounding from other code. So without `strict`

1. epochs, layers, groups, sizes and whether the run diverged are equal;
2. in the first epoch, in every column, the median over the layers of the relative difference is at most `TOLERANCE`; of norms and
   cosines a tenth of that, of losses three times, of elementwise means, which single weights near zero decide, five times as much;
   accuracies lie within 100 `TOLERANCE` points. A run that starts from another's weights is left out of this: these have drifted.

Measured on archived runs of the quick profile with 1 and 2 threads, these medians were at most 0.9% (three ResNet-18; 2% in a toy
one, less in LeNet, AlexNet and VGG-19), on another processor a test loss differed by 6.8%, and between two seeds at least 10%. A change
that moves the first epoch by less than 5%, such as another weight decay, is found by `strict` alone, and so is an edited number
that was given new checksums.
"""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from rwclib.runs import archive, data
from rwclib.runs.config import RunConfig
from rwclib.sweeps.sweep import run_all

TOLERANCE = 0.05
FACTORS = {"norm": 0.1, "cosine": 0.1, "loss": 3, "elementwise": 5}  # of the tolerance, by a part of the column's name


@dataclass(frozen=True)
class Comparison:
    """An archived run beside the same run trained again.

    Attributes:
        run: study and name.
        seconds: of training, this time.
        first: the largest difference in the first epoch, in shares of what is allowed; None of a run that starts from another's weights.
        largest: the largest difference of all (relative).
        problem: one sentence on the first difference that is not allowed; empty if they agree.
        skipped: why they cannot be compared; empty if they were.
    """

    run: str
    seconds: float = 0.0
    first: float | None = None
    largest: float = 0.0
    problem: str = ""
    skipped: str = ""

    def line(self) -> str:
        """What `rwc results recheck` prints on it."""
        if self.skipped:
            return f"skipped  {self.run}: {self.skipped}"
        word = "differs" if self.problem else "agrees "
        first = "rows alone: starts from weights trained again"
        if self.first is not None:
            first = f"first epoch {self.first:.1%} of the tolerance"
        return f"{word}  {self.run}  {self.seconds:.0f} s  {first}; largest difference {self.largest:.1g}"


@dataclass(frozen=True)
class Choice:
    """Runs drawn for a recheck, the same with those they start from, and how many could not be drawn for each reason."""

    drawn: list[RunConfig]
    runs: list[RunConfig]
    left_out: dict[str, int]


def lineage(config: RunConfig, known: dict[str, RunConfig]) -> list[RunConfig] | None:
    """The run and those it starts from, the first last; None if one of these is not among the `known`, by hash."""
    runs = [config]
    while runs[-1].parent:
        if runs[-1].parent not in known:
            return None
        runs.append(known[runs[-1].parent])
    return runs


def choose(
    configs: Iterable[RunConfig],
    results: str | Path,
    count: int,
    seed: int,
    *,
    data_dir: str | Path | None = None,
    longest: float | None = None,
) -> Choice:
    """Draw `count` archived runs, or all if there are fewer; the same for the same archive, seed and image sets.

    Args:
        configs: the runs to draw from; those that are not in the archive are ignored.
        results, data_dir: folders as in `rwclib.runs.training.run`.
        longest: of runs that took more seconds than this, with those they start from, none is drawn.

    Raises:
        ArchiveError: a `run.json` is damaged.
    """
    records = {config: record["provenance"] for config, record in archive.records(Path(results))}
    known = {config.hash: config for config in records}
    pool, left_out = [], Counter()
    for config in sorted({*configs} & {*records}, key=lambda config: config.name):
        family = lineage(config, known)
        absent = [c.dataset for c in family or () if not data.path(c.dataset, data_dir).exists()]
        if family is None:
            left_out["since their parents are not in the archive"] += 1
        elif absent:
            left_out[f"since {absent[0]} is not here (`rwc data fetch {absent[0]}`)"] += 1
        elif records[config]["device"] != "cpu" and not torch.cuda.is_available():
            left_out["for want of a GPU"] += 1
        elif longest is not None and sum(records[c]["train_and_test_seconds"] for c in family) > longest:
            left_out[f"since they took more than {longest:g} s"] += 1
        else:
            pool.append(config)
    drawn = [pool[i] for i in np.random.default_rng(seed).permutation(len(pool))[:count]]
    return Choice(drawn, list(dict.fromkeys(c for config in drawn for c in lineage(config, known))), dict(left_out))


def recheck(
    chosen: Iterable[RunConfig],
    results: str | Path,
    *,
    data_dir: str | Path | None = None,
    jobs: int | None = None,
    executor: Executor | None = None,
    progress: Callable[[str, dict], None] | None = None,
    strict: bool = False,
) -> list[Comparison]:
    """Train archived runs again, and those they start from, and compare all of them; the archive is only read.

    Each is trained on the kind of device, with the engine and with the number of threads that its record names.

    Args:
        chosen: runs of the archive whose `lineage` is there too.
        results: the archive's folder.
        data_dir, jobs, executor, progress: as in `rwclib.sweeps.sweep.run_all`.
        strict: as in `compare`.

    Raises:
        ArchiveError: an archived run is damaged.
        DataError: an image set is missing or damaged.
    """
    results = Path(results)
    known = {config.hash: config for config, _ in archive.records(results)}
    groups, comparisons = defaultdict(dict), []
    for config in chosen:
        made = archive.read(results, config).record["provenance"]
        way = made["threads"], made.get("engine", "eager"), "cpu" if made["device"] == "cpu" else "cuda"
        groups[way] |= dict.fromkeys(lineage(config, known))
    for (threads, engine, device), configs in groups.items():
        with tempfile.TemporaryDirectory(prefix="rwclib-recheck-") as folder:
            report = run_all(
                configs, results=folder, data_dir=data_dir, device=device, engine=engine, threads=threads, jobs=jobs,
                executor=executor, progress=progress,
            )  # fmt: skip
            for config in configs:
                name = f"{config.study}/{config.name}"
                if config.name in report.failed:
                    why = f"{name} could not be trained again: {report.failed[config.name]}"
                    comparisons.append(Comparison(name, problem=why))
                else:
                    again = archive.read(Path(folder), config)
                    comparisons.append(compare(archive.read(results, config), again, strict))
    return comparisons


def compare(archived: archive.Run, again: archive.Run, strict: bool = False) -> Comparison:
    """Two trainings of one run; `strict` as in the module's rule."""
    name = f"{archived.config.study}/{archived.config.name}"
    old, new = archived.record, again.record
    if old["provenance"]["data_digest"] != new["provenance"]["data_digest"]:
        return Comparison(name, skipped=f"another copy of {archived.config.dataset} is here than it was trained on")
    seconds = new["provenance"]["train_and_test_seconds"]
    if old["status"] != new["status"]:
        unequal = f"run.json, status: {old['status']} in the archive, {new['status']} when trained again"
    else:
        unequal = _unequal(archived, again)
    if unequal:
        return Comparison(name, seconds, problem=f"{name} differs in {unequal}")
    table = differences(archived, again)
    drifted = bool(archived.config.parent)
    first = table[(table["epoch"] <= 1) & (not drifted)]
    beyond = table[table["largest"] > 0] if strict else first[first["typical"] > first["allowed"]]
    problem = ""
    if len(beyond):
        row = beyond.sort_values(["epoch", "largest"], ascending=[True, False], kind="stable").iloc[0]
        difference, allowed = (row["largest"], 0) if strict else (row["typical"], row["allowed"])
        problem = (
            f"{name} differs in {row['file']}, {row['column']} of epoch {row['epoch']}, by {difference:.2g} "
            f"where {allowed:g} is allowed"
        )
    share = None if drifted else max(first["typical"] / first["allowed"], default=0.0)
    return Comparison(name, seconds, share, max(table["largest"], default=0.0), problem)


def _files(archived: archive.Run, again: archive.Run) -> dict[str, tuple]:
    """Tables and arrays of the archived run beside the other's, by file name."""
    pairs = {"layers": (archived.layers, again.layers), "epochs": (archived.epochs, again.epochs)}
    pairs |= {name: (measured, again.extra.get(name)) for name, measured in archived.extra.items()}
    return {f"{name}.{'parquet' if isinstance(pair[0], pd.DataFrame) else 'npy'}": pair for name, pair in pairs.items()}


def _is_measured(column: pd.Series) -> bool:
    return column.dtype.kind == "f" or column.name == "varying"  # how many features vary is a result, too


def _unequal(archived: archive.Run, again: archive.Run) -> str:
    """What of the rows and shapes is unequal, in words; empty if nothing is."""
    for file, (old, new) in _files(archived, again).items():
        if not isinstance(new, type(old)):
            return f"{file}, which is not made any more"
        if isinstance(old, np.ndarray):
            if old.shape != new.shape:
                return f"{file}, shape: {old.shape} in the archive, {new.shape} when trained again"
            continue
        for column in old:
            same = column in new and len(old) == len(new)
            if not same or not (_is_measured(old[column]) or old[column].equals(new[column].astype(old[column].dtype))):
                return f"{file}, {column}: other rows than when trained again"
    return ""


def differences(archived: archive.Run, again: archive.Run) -> pd.DataFrame:
    """Every measured column, epoch by epoch: file, column, epoch, largest and typical (median) difference, and what is allowed.

    Differences are relative to the larger of two numbers; of accuracies points over 100; of an array that of its norm. Tables without a
    column `epoch`, and arrays, belong to the last epoch.
    """
    rows = []
    last = max(2, len(archived.epochs))  # never the first: what is measured at the end has drifted
    for file, (old, new) in _files(archived, again).items():
        if isinstance(old, np.ndarray):
            size = np.linalg.norm(old.astype(np.float64)) or 1.0
            apart = np.linalg.norm(new.astype(np.float64) - old.astype(np.float64)) / size
            rows.append((file, "values", last, apart, apart, np.inf))
            continue
        epochs = old["epoch"].to_numpy() if "epoch" in old else np.full(len(old), last)
        for column in filter(lambda column: _is_measured(old[column]), old):
            apart = pd.Series(_apart(old[column], new[column])).groupby(epochs)
            typical, largest = apart.median(), apart.max()
            allowed = TOLERANCE * next((factor for word, factor in FACTORS.items() if word in column), 1)
            rows += [(file, column, epoch, largest[epoch], typical[epoch], allowed) for epoch in largest.index]
    return pd.DataFrame(rows, columns=["file", "column", "epoch", "largest", "typical", "allowed"])


def _apart(old: pd.Series, new: pd.Series) -> np.ndarray:
    """|new - old| over the larger of the two (of accuracies over 100); 0 where both are NaN, infinite where one is."""
    a, b = old.to_numpy(np.float64), new.to_numpy(np.float64)
    scale = 100.0 if "_top" in str(old.name) else np.maximum(np.abs(a), np.abs(b))
    with np.errstate(all="ignore"):
        apart = np.nan_to_num(np.abs(b - a) / scale, nan=np.inf)
    return np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, apart)

"""Archived runs trained again, in a folder of their own, and compared: results that other code made are found out.

The tolerance. On the same machine with the same number of threads a run comes out the same, bit for bit. Elsewhere sums are
added in another order, and training amplifies such rounding from epoch to epoch until single numbers differ by half, in
some networks within three epochs; no fixed tolerance tells that from other code. So every run is its own measure. In each
epoch and column the difference is the largest over the layers (of `rwc_elementwise`, which a single weight near zero can
decide, the median), relative to the larger of the two numbers. How far the two trainings have come apart, their drift, is
the largest so far of two medians over the layers: that of the differences in `rwc`, `l2_ratio` and `rwc_median` (of these
three the middle one), and `NORMS` times that in `l2_norm`. Then

1. drift is at most `FLOOR * GROWTH` (5%) in the first epoch, grows at most `GROWTH`-fold in an epoch of up to 16 batches,
   accordingly more in a longer one, and stays below `FARTHEST`: another learning rate or another start shows before
   rounding does. Another order of the images alone need not; `strict`, for the machine and versions that trained the
   archive, allows no drift beyond `STRICT`;
2. no difference is more than `APART` times the drift, or `APART * FLOOR` (0.2%) where the drift is less than `FLOOR`: an
   edited table, or one measure that is computed differently, stands out (of accuracies the points beyond one, over 100);
3. epochs, layers, groups, sizes and whether the run diverged are equal.

Measured on archived runs of the quick profile with 1 and 2 threads, drift after the first epoch was at most 0.00001% (six
LeNets), 0.008% (four AlexNets), 0.3% (three VGG-19) and 0.9% (three ResNet-18; 2% in a toy one), and between two seeds at
least 10%; no difference was more than a quarter of what rule 2 allows.

A run that starts from another's weights begins with that one's drift.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from rwclib import archive, data
from rwclib.config import RunConfig
from rwclib.parents import generations
from rwclib.sweep import run_all

FLOOR, GROWTH, FARTHEST, APART, NORMS = 1e-6, 5e4, 0.9, 2e3, 100
STRICT = 1e-5
DRIFT = ("rwc", "l2_ratio", "rwc_median")  # the columns of `layers` that drift is taken from
KINDS = {  # of columns, by a pattern of their names; what is not here is called change
    "elementwise": "rwc_elementwise",
    "norms": "(l[12]_)?norm.*|cosine.*",
    "losses": ".*_loss",
    "accuracies": ".*_top[15]",
    "features": "correlation|paired|matched|cka|varying",
}
_BATCHES = 16
_SMALL = 1e-3  # numbers below this share of their column's largest count as that large: 0 beside 1e-12 is no difference


@dataclass(frozen=True)
class Comparison:
    """An archived run beside the same run trained again.

    Attributes:
        run: study and name.
        seconds: of training, this time.
        drift: how far the two came apart (relative, see above).
        largest: the largest difference by kind of column (relative; of accuracies points over 100).
        problem: one sentence on the first difference beyond the tolerance; empty if they agree.
        skipped: why they cannot be compared; empty if they were.
    """

    run: str
    seconds: float = 0.0
    drift: float = 0.0
    largest: dict[str, float] = field(default_factory=dict)
    problem: str = ""
    skipped: str = ""

    def line(self) -> str:
        """What `rwc results recheck` prints on it."""
        if self.skipped:
            return f"skipped  {self.run}: {self.skipped}"
        found = ", ".join(f"{kind} {value:.1g}" for kind, value in self.largest.items())
        return f"{'differs' if self.problem else 'agrees '}  {self.run}  {self.seconds:.0f} s  drift {self.drift:.1g}; largest: {found}"


@dataclass(frozen=True)
class Choice:
    """Runs drawn for a recheck, the same with those they start from, and how many could not be drawn for each reason."""

    drawn: list[RunConfig]
    runs: list[RunConfig]
    left_out: dict[str, int]


def lineage(config: RunConfig, known: dict[str, RunConfig]) -> list[RunConfig] | None:
    """The run and those it starts from, the first last; None if one of these is not among the `known`, by hash."""
    found = [config]
    while found[-1].parent:
        if found[-1].parent not in known:
            return None
        found.append(known[found[-1].parent])
    return found


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
        results, data_dir: folders as in `rwclib.training.run`.
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
        data_dir, jobs, executor, progress: as in `rwclib.sweep.run_all`.
        strict: as in `compare`.

    Raises:
        ArchiveError: an archived run is damaged.
        DataError: an image set is missing or damaged.
    """
    results = Path(results)
    known = {config.hash: config for config, _ in archive.records(results)}
    groups, found = defaultdict(dict), []
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
            drift: dict[str, float] = {}
            for config in (config for generation in generations(list(configs)) for config in generation):
                if config.name in report.failed:
                    name = f"{config.study}/{config.name}"
                    why = f"{name} could not be trained again: {report.failed[config.name]}"
                    found.append(Comparison(name, problem=why))
                    continue
                archived, again = (archive.read(place, config) for place in (results, Path(folder)))
                found.append(compare(archived, again, drift.get(config.parent, 0.0), strict))
                drift[config.hash] = found[-1].drift
    return found


def compare(archived: archive.Run, again: archive.Run, drift: float = 0.0, strict: bool = False) -> Comparison:
    """Two trainings of one run.

    Args:
        archived, again: the two.
        drift: that of the runs whose weights they start from.
        strict: both were trained on the same machine with the same versions, so that they must not drift apart.
    """
    name = f"{archived.config.study}/{archived.config.name}"
    old, new = archived.record, again.record
    if old["provenance"]["data_digest"] != new["provenance"]["data_digest"]:
        return Comparison(name, skipped=f"another copy of {archived.config.dataset} is here than it was trained on")
    seconds = new["provenance"]["train_and_test_seconds"]
    if old["status"] != new["status"]:
        problem = (
            f"{name} differs in run.json, status: {old['status']} in the archive, {new['status']} when trained again"
        )
        return Comparison(name, seconds, drift, problem=problem)
    table, unequal = differences(archived, again)
    if unequal:
        return Comparison(name, seconds, drift, problem=f"{name} differs in {unequal}")
    per_epoch = -(-new["provenance"]["n_train"] // archived.config.batch_size)
    growth = GROWTH ** max(1, per_epoch / _BATCHES)
    table["allowed"], drift = _allowed(table, drift, growth, STRICT if strict else FARTHEST)
    beyond = table[~(table["found"] <= table["allowed"])].sort_values("epoch", kind="stable")
    problem = ""
    if len(beyond):
        first = beyond[beyond["epoch"] == beyond["epoch"].iloc[0]].sort_values("found").iloc[-1]
        problem = (
            f"{name} differs in {first['table']}, {first['column']} of epoch {first['epoch']}, by {first['found']:.2g} "
            f"where {first['allowed']:.2g} is allowed"
        )
    largest = table.groupby("kind", sort=False)["found"].max().to_dict()
    return Comparison(name, seconds, drift, largest, problem)


def differences(archived: archive.Run, again: archive.Run) -> tuple[pd.DataFrame, str]:
    """Every difference of the two runs' tables and arrays, and what of their keys is unequal (empty: nothing).

    Returns:
        A table of `table` (file), `column`, `kind`, `epoch`, `found` (relative; of accuracies points over 100) and
        `typical` (in `layers`, of `l2_norm` and the columns of `DRIFT`, the median over the layers, else NaN). Tables without a column
        `epoch`, and arrays, belong to the last epoch.
    """
    rows = []
    last = int(archived.epochs["epoch"].max()) if len(archived.epochs) else 0
    pairs = {"layers": (archived.layers, again.layers), "epochs": (archived.epochs, again.epochs)}
    pairs |= {name: (found, again.extra.get(name)) for name, found in archived.extra.items()}
    for name, (old, new) in pairs.items():
        file = f"{name}.{'parquet' if isinstance(old, pd.DataFrame) else 'npy'}"
        if not isinstance(new, type(old)):
            return pd.DataFrame(rows), f"{file}, which is not made any more"
        if isinstance(old, np.ndarray):
            if old.shape != new.shape:
                return pd.DataFrame(rows), f"{file}, shape: {old.shape} in the archive, {new.shape} when trained again"
            size = np.linalg.norm(old.astype(np.float64))
            apart = np.linalg.norm(new.astype(np.float64) - old.astype(np.float64))
            found = apart / size if size else apart
            rows.append((file, "values", "arrays", last, found, np.nan))
            continue
        measured = [column for column in old if old[column].dtype.kind == "f" or _kind(column) == "features"]
        for column in old:
            same = column in new and len(old) == len(new)
            if same and column not in measured:
                same = bool((old[column].to_numpy() == new[column].to_numpy()).all())
            if not same:
                return pd.DataFrame(rows), f"{file}, {column}: other rows than when trained again"
        epochs = old["epoch"].to_numpy() if "epoch" in old else np.full(len(old), last)
        for column in measured:
            kind = _kind(column)
            apart = pd.Series(_apart(old[column], new[column], 100.0 if kind == "accuracies" else None)).groupby(epochs)
            typical = apart.median()
            found = typical if kind == "elementwise" else apart.max()
            drifts = typical if name == "layers" and column in (*DRIFT, "l2_norm") else typical * np.nan
            rows += [(file, column, kind, epoch, found[epoch], drifts[epoch]) for epoch in found.index]
    return pd.DataFrame(rows, columns=["table", "column", "kind", "epoch", "found", "typical"]), ""


def _kind(column: str) -> str:
    return next((kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, column)), "change")


def _apart(old: pd.Series, new: pd.Series, scale: float | None) -> np.ndarray:
    """|new - old| over the larger of the two, or over `scale`; 0 where both are NaN, infinite where one is."""
    old, new = old.to_numpy(np.float64), new.to_numpy(np.float64)
    largest = np.maximum(np.abs(old), np.abs(new))
    finite = largest[np.isfinite(largest)]
    if scale is None:
        scale = np.maximum(largest, _SMALL * finite.max(initial=0.0))
    with np.errstate(all="ignore"):
        found = np.abs(new - old) / scale
    same = (old == new) | (np.isnan(old) & np.isnan(new))
    return np.where(same, 0.0, np.where(np.isfinite(found), found, np.inf))


def _allowed(table: pd.DataFrame, drift: float, growth: float, farthest: float) -> tuple[pd.Series, float]:
    """What the tolerance allows for each row of `differences`, and the drift at the end."""
    allowed = pd.Series(0.0, index=table.index)
    for _, rows in table.groupby("epoch"):
        typical, norm = rows["typical"].dropna(), rows["column"] == "l2_norm"
        most = min(farthest, growth * max(FLOOR, drift))
        if len(typical):
            drift = max(drift, typical[~norm].median(), min(FARTHEST, NORMS * typical[norm].max()))
        allowed[rows.index] = APART * max(FLOOR, drift)
        if drift > most:
            allowed[typical.index] = np.where(norm[typical.index], most / NORMS, most)
        allowed[rows.index[rows["kind"] == "accuracies"]] += 0.01
    return allowed, float(drift)

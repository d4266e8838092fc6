"""The contract of a study, and what the four do alike: load and train runs, say which have learned, judge claims."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from rwclib.analysis import claims
from rwclib.analysis.claims import Claim
from rwclib.errors import ArchiveError, DataError
from rwclib.runs import archive, data
from rwclib.runs.config import PROFILES, RunConfig, check_profile
from rwclib.sweeps.progress import SweepProgress
from rwclib.sweeps.sweep import run_all

INCOMPLETE = "some of its trainings are missing or have hardly learned"


@dataclass(frozen=True)
class Study:
    """One paper: its runs, claims, and how it is judged. A study's package has one as `STUDY`.

    Attributes:
        name: of its package and of its folder in the archive.
        title, link: of the paper; the link may be empty.
        runs: `runs(profile, *, models, datasets, seeds)` gives all configs of the study at a profile, the last three to choose from them.
        claims: the paper's.
        values: what the runs say about the claims, from `archive.Tables`, as `rwclib.analysis.claims.details` wants it.
        grid: as `runs`, those that claims and figures speak of; default all.
        candidates: of `archive.Tables` the runs that may be judged; default those that have learned.
        why_not_run: a claim and the usual reason for not having been run, to the reason that is given.
        accuracies: from the table of epochs, accuracies beside the published ones; None if there are none.
    """

    name: str
    title: str
    link: str
    runs: Callable[..., list[RunConfig]]
    claims: Sequence[Claim]
    values: Callable[..., pd.DataFrame]
    grid: Callable[..., list[RunConfig]] | None = None
    candidates: Callable[[archive.Tables], archive.Tables] = lambda tables: learned(tables)[0]
    why_not_run: Callable[[Claim, str], str] = lambda claim, reason: reason
    accuracies: Callable[[pd.DataFrame], pd.DataFrame] | None = None

    def tables(self, results: str | Path | None = None, profile: str = "best", **which: object) -> archive.Tables:
        """The finished runs of the grid, as `load`."""
        return load(self.grid or self.runs, results, profile, **which)

    def prepare(self, profile: str, models: list[str], **options: object) -> tuple[archive.Tables, list[str]]:
        """What a notebook draws, as `prepare`."""
        return prepare(self.grid or self.runs, profile, models, **options)

    def about(self, models: Sequence[str] | None = None, metrics: Mapping[str, str] | None = None) -> list[Claim]:
        """The claims that speak of these models alone, under these definitions."""
        chosen = claims.about(self.claims, models) if models else self.claims
        return under(chosen, metrics) if metrics else list(chosen)

    def details(self, tables: archive.Tables, models: Sequence[str] | None = None, **options: object) -> pd.DataFrame:
        """Every comparison at every profile, as `rwclib.analysis.claims.details`; `options` are those of the study's `values`."""
        kept = self.candidates(tables) if len(tables.runs) else tables
        values = self.values(kept, **options) if len(kept.runs) else pd.DataFrame(columns=claims.VALUES)
        return claims.details(values, self.about(models, options.get("metrics")), list(PROFILES))

    def verdicts(
        self, tables: archive.Tables, models: Sequence[str] | None = None, profile: str = "best", **options: object
    ) -> pd.DataFrame:
        """The scorecard at one profile or at each that can judge (`best`), as `rwclib.analysis.claims.verdicts` with five more columns.

        `text`, the claim's sentence; `replicates`, what they are; `data`, a list of `title: data copy` of the runs used; `train_top1`, the
        lowest and the highest training accuracy (percent) among those that were not retrained; `reason`, why it was not run.
        """
        parts = self.details(tables, models, **options)
        table = claims.verdicts(parts[[check_profile(profile, "best") in ("best", name) for name in parts["profile"]]])
        candidates = self.candidates(tables) if len(tables.runs) else tables
        last = archive.last_epochs(candidates.epochs)
        if "perturbation" in candidates.runs:
            last = last[last["hash"].isin(candidates.runs.loc[candidates.runs["perturbation"] == "none", "hash"])]
        known, more = {claim.id: claim for claim in self.about(models)}, []
        for row in table.itertuples():
            claim = known[row.claim]
            top1 = _part(last, claim, row.profile)["train_top1"].astype(float)
            reason = ""
            if row.verdict == "not run":
                reason = self.why_not_run(claim, _reason(claim, tables, profile))
            copies = _copies(_part(tables.runs, claim, row.profile))
            more.append((claim.text, claim.replicates, copies, (top1.min(), top1.max()), reason))
        return table.join(pd.DataFrame(more, columns=["text", "replicates", "data", "train_top1", "reason"]))

    def scorecard(self, results: str | Path | None = None, profile: str = "best") -> pd.DataFrame:
        """The verdicts on the archive's runs."""
        return self.verdicts(self.tables(results), profile=profile)


def load(
    runs: Callable[..., list[RunConfig]], results: str | Path | None = None, profile: str = "best", **which: object
) -> archive.Tables:
    """Finished runs of one profile, or of all profiles (`best`), with a column `profile` in each table.

    Args:
        runs: a study's `runs(profile, **which)`.
        results: archive folder; default as in `archive.default_results`.
        profile: a name in `rwclib.runs.config.PROFILES`, or `best`.
        which: fewer, or other, than the study's own `models`, `datasets`, `seeds`.

    Raises:
        ConfigError: unknown profile, model or data set.
        ArchiveError: a run directory is damaged.
    """
    parts, folder = {}, archive.existing(results)
    for name in PROFILES if check_profile(profile, "best") == "best" else [profile]:
        configs = runs(name, **which)
        parts[name] = archive.load(configs, folder, status="done")

    def joined(choose: Callable[[archive.Tables], pd.DataFrame]) -> pd.DataFrame:
        with_profile = [choose(part).assign(profile=name) for name, part in parts.items()]
        return pd.concat([table for table in with_profile if len(table)] or with_profile[:1], ignore_index=True)

    extra = dict.fromkeys(name for part in parts.values() for name in part.extra)
    return archive.Tables(
        joined(lambda part: part.runs), joined(lambda part: part.layers), joined(lambda part: part.epochs),
        {name: joined(lambda part, name=name: part.extra.get(name, pd.DataFrame())) for name in extra},
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


def select(tables: archive.Tables, hashes: set[str]) -> archive.Tables:
    """The tables of these runs alone."""
    of_runs = (table[table["hash"].isin(hashes)] for table in (tables.runs, tables.layers, tables.epochs))
    extra = {name: table[table["hash"].isin(hashes)] for name, table in tables.extra.items()}
    return archive.Tables(*of_runs, extra, tables.arrays)


LEARNED = 0.25  # of the way from guessing to no error: what a network must have learned to be judged


def learned(tables: archive.Tables) -> tuple[archive.Tables, set[tuple[str, str, str]]]:
    """The tables without the runs that have hardly learned, and the (profile, model, dataset) of these.

    A run has learned if its training top-1 in the last epoch lies at least `LEARNED` of the way from guessing to 100%. How
    the weights of another move says little about learning, so claims are not judged on it; figures and accuracies show it.
    """
    if tables.epochs.empty:
        return tables, set()
    last = archive.last_epochs(tables.epochs)
    hardly = last[learned_share(last["train_top1"], last["dataset"]) < LEARNED]
    return select(tables, set(tables.runs["hash"]) - set(hardly["hash"])), set(
        hardly[["profile", "model", "dataset"]].itertuples(index=False, name=None)
    )


def learned_share(top1: pd.Series, dataset: pd.Series) -> pd.Series:
    """How much of the way from guessing (0) to no error (1) accuracies in percent are."""
    guessing = 100 / dataset.map(lambda name: data.get(name).num_classes)
    return (top1 - guessing) / (100 - guessing)


def under(about: Sequence[Claim], metrics: Mapping[str, str]) -> list[Claim]:
    """The claims judged under these definitions; those that know none (`-`) as they are."""
    names = tuple(metrics.values())
    return [claim if claim.definitions == ("-",) else replace(claim, definitions=names) for claim in about]


def _part(table: pd.DataFrame, claim: Claim, profile: str) -> pd.DataFrame:
    """The rows of a claim's networks and data sets at a profile."""
    if table.empty:
        return pd.DataFrame(columns=["model", "dataset", "data_note", "train_top1"])
    rows, runs = table[["profile", "model", "dataset"]].itertuples(index=False, name=None), claim.runs
    return table[[name == profile and (model, dataset) in runs for name, model, dataset in rows]]


def _reason(claim: Claim, tables: archive.Tables, profile: str) -> str:
    """Why a claim could not be judged on these tables."""

    def pairs(runs: pd.DataFrame, name: str) -> set[tuple[str, str]]:
        return set(_part(runs, claim, name)[["model", "dataset"]].itertuples(index=False, name=None))

    sizes = [name for name in PROFILES if profile in ("best", name) and pairs(tables.runs, name) == claim.runs]
    if not sizes or claim.profile not in (None, *sizes):
        return f"needs the {claim.profile} profile" if claim.profile else "no runs at one profile for all of it"
    hardly = ", ".join(map(" ".join, sorted(claim.runs - pairs(learned(tables)[0].runs, sizes[-1]))))
    return f"hardly learned: {hardly}" if hardly else INCOMPLETE


def _copies(runs: pd.DataFrame) -> list[str]:
    """Titles and notes of the data sets, in the order of `rwclib.runs.data.DATASETS`."""
    used = sorted(set(zip(runs["dataset"], runs["data_note"], strict=True)))
    return [f"{data.get(name).title}: {note}" for name in data.DATASETS for dataset, note in used if dataset == name]

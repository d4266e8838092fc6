"""The contract of a study, and what the four do alike: load and train runs, say which have learned, judge claims."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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
    """One paper: its runs, claims, and how it is judged. A study's package has one as `STUDY`."""

    name: str  # of its package and of its folder in the archive
    title: str
    link: str  # to the paper; may be empty
    runs: Callable[..., list[RunConfig]]  # by profile, *, models, datasets, seeds (the last three choose from all)
    claims: Sequence[Claim]
    values: Callable[..., pd.DataFrame]  # from `archive.Tables`, what `rwclib.analysis.claims.details` judges
    grid: Callable[..., list[RunConfig]] | None = None  # as `runs`, those that claims and figures speak of; default all
    candidates: Callable[[archive.Tables], archive.Tables] = lambda tables: learned(tables)[0]  # what may be judged
    why_not_run: Callable[[Claim, str], str] = lambda claim, reason: reason  # from the usual reason
    accuracies: Callable[[pd.DataFrame], pd.DataFrame] | None = None  # from `Tables.epochs`, beside the published ones

    def tables(self, results: str | Path | None = None, profile: str = "best", **which: object) -> archive.Tables:
        """The finished runs of the grid, as `load`."""
        return load(self.grid or self.runs, results, profile, **which)

    def prepare(
        self,
        profile: str,
        models: list[str],
        *,
        datasets: list[str],
        seeds: list[int] | None = None,
        results: str | Path,
        retrain: bool = False,
        **how: object,
    ) -> tuple[archive.Tables, list[str]]:
        """What a notebook draws: `tables`, after training what is missing if `retrain`, and their data sets.

        Data sets that are not on this machine and cannot be fetched are named and left out. If none can be had, the
        bundled Fashion-MNIST sample is trained under its own name instead, and that is said. `how` is for `run_all`.
        """
        if retrain:
            datasets = _obtainable(datasets)
            configs = (self.grid or self.runs)(profile, models=models, datasets=datasets, seeds=seeds)
            with SweepProgress(configs) as progress:
                report = run_all(configs, results=results, progress=progress, **how)
            for name, message in report.diverged.items():
                print(f"left out: {name}: {message}")
            if report.failed:
                raise ArchiveError("; ".join(f"{name} failed: {message}" for name, message in report.failed.items()))
        return self.tables(results, profile, models=models, datasets=datasets, seeds=seeds), datasets

    def about(self, models: Sequence[str] | None = None, metrics: Mapping[str, str] | None = None) -> list[Claim]:
        """The claims that speak of these models alone, judged under these definitions if they know any (`-` is none)."""
        chosen = claims.about(self.claims, models) if models else list(self.claims)
        names = tuple((metrics or {}).values())
        return [replace(c, definitions=names) if names and c.definitions != ("-",) else c for c in chosen]

    def details(self, tables: archive.Tables, models: Sequence[str] | None = None, **options: object) -> pd.DataFrame:
        """Every comparison at every profile, as `rwclib.analysis.claims.details`; `options` are those of `values`."""
        kept = self._judgeable(tables)
        values = self.values(kept, **options) if len(kept.runs) else pd.DataFrame(columns=claims.VALUES)
        return claims.details(values, self.about(models, options.get("metrics")), list(PROFILES))

    def verdicts(
        self, tables: archive.Tables, models: Sequence[str] | None = None, profile: str = "best", **options: object
    ) -> pd.DataFrame:
        """The scorecard at one profile or at each that can judge (`best`): `rwclib.analysis.claims.verdicts` and five columns.

        `text`, the claim's sentence; `replicates`, what they are; `data`, a list of `title: data copy` of the runs; `train_top1`,
        lowest and highest training accuracy (percent) of those that were not retrained; `reason`, why it was not run.
        """
        parts = self.details(tables, models, **options)
        names = PROFILES if check_profile(profile, "best") == "best" else [profile]
        table = claims.verdicts(parts[parts["profile"].isin(names)])
        kept = self._judgeable(tables)
        last = archive.last_epochs(kept.epochs)
        if "perturbation" in kept.runs:
            last = last[last["hash"].isin(kept.runs.loc[kept.runs["perturbation"] == "none", "hash"])]
        known = {claim.id: claim for claim in self.about(models)}
        rows = [(known[row.claim], row.profile, row.verdict == "not run") for row in table.itertuples()]
        top1 = [_part(last, claim, name)["train_top1"] for claim, name, _ in rows]
        return table.assign(
            text=[claim.text for claim, *_ in rows],
            replicates=[claim.replicates for claim, *_ in rows],
            data=[_copies(_part(tables.runs, claim, name)) for claim, name, _ in rows],
            train_top1=[(values.min(), values.max()) for values in top1],
            reason=[self.why_not_run(c, _reason(c, tables, profile)) if missing else "" for c, _, missing in rows],
        )

    def scorecard(self, results: str | Path | None = None, profile: str = "best") -> pd.DataFrame:
        """The verdicts on the archive's runs."""
        return self.verdicts(self.tables(results), profile=profile)

    def _judgeable(self, tables: archive.Tables) -> archive.Tables:
        return self.candidates(tables) if len(tables.runs) else tables


def load(
    runs: Callable[..., list[RunConfig]], results: str | Path | None = None, profile: str = "best", **which: object
) -> archive.Tables:
    """Finished runs among `runs(profile, **which)` at one profile, or at all (`best`), with a column `profile` in each table.

    `results` is the archive folder, by default `archive.default_results()`; `ArchiveError` if a run directory is damaged.
    """
    folder = archive.existing(results)
    names = PROFILES if check_profile(profile, "best") == "best" else [profile]
    parts = {name: archive.load(runs(name, **which), folder, status="done") for name in names}

    def joined(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
        tables = [table.assign(profile=name) for name, table in zip(parts, tables, strict=True)]
        return pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)

    main = [joined(getattr(part, kind) for part in parts.values()) for kind in ("runs", "layers", "epochs")]
    kinds = dict.fromkeys(kind for part in parts.values() for kind in part.extra)
    extra = {kind: joined(part.extra.get(kind, pd.DataFrame()) for part in parts.values()) for kind in kinds}
    arrays = {key: array for part in parts.values() for key, array in part.arrays.items()}
    return archive.Tables(*main, extra, arrays)


def _obtainable(datasets: Sequence[str]) -> list[str]:
    """Those of the data sets that can be had, or the bundled sample; what is left out is printed."""
    kept = []
    for dataset in datasets:
        try:
            data.load(dataset)
            kept.append(dataset)
        except DataError as error:
            print(f"not run: {error}")
    if not kept:
        print(f"none of the data sets can be had: training on the bundled {data.get(data.SAMPLE).title} instead")
    return kept or [data.SAMPLE]


def select(tables: archive.Tables, hashes: set[str]) -> archive.Tables:
    """The tables of these runs alone."""
    main = (table[table["hash"].isin(hashes)] for table in (tables.runs, tables.layers, tables.epochs))
    extra = {name: table[table["hash"].isin(hashes)] for name, table in tables.extra.items()}
    return archive.Tables(*main, extra, tables.arrays)


LEARNED = 0.25  # of the way from guessing to no error: what a network must have learned to be judged


def learned(tables: archive.Tables) -> tuple[archive.Tables, set[tuple[str, str, str]]]:
    """The tables without the runs that have hardly learned, and the (profile, model, dataset) of these.

    A run has learned if its training top-1 in the last epoch lies at least `LEARNED` of the way from guessing to 100%. How
    the weights of another move says little about learning, so claims are not judged on it; figures and accuracies show it.
    """
    if tables.epochs.empty:
        return tables, set()
    last = archive.last_epochs(tables.epochs)
    hardly = last[learned_share(last) < LEARNED]
    kept = select(tables, set(tables.runs["hash"]) - set(hardly["hash"]))
    return kept, set(hardly[["profile", "model", "dataset"]].itertuples(index=False, name=None))


def learned_share(last: pd.DataFrame) -> pd.Series:
    """How much of the way from guessing (0) to no error (1) the training top-1 of these rows is."""
    guessing = 100 / last["dataset"].map(lambda name: data.get(name).num_classes)
    return (last["train_top1"] - guessing) / (100 - guessing)


def _part(table: pd.DataFrame, claim: Claim, profile: str) -> pd.DataFrame:
    """The rows of a claim's networks and data sets at a profile."""
    if table.empty:
        return pd.DataFrame(columns=["model", "dataset", "data_note", "train_top1"], dtype=float)
    pairs = pd.MultiIndex.from_frame(table[["model", "dataset"]])
    return table[pairs.isin(claim.runs) & (table["profile"] == profile)]


def _reason(claim: Claim, tables: archive.Tables, profile: str) -> str:
    """Why a claim could not be judged on these tables."""

    def missing(runs: pd.DataFrame, name: str) -> set[tuple[str, str]]:
        return claim.runs - set(_part(runs, claim, name)[["model", "dataset"]].itertuples(index=False, name=None))

    sizes = [name for name in PROFILES if profile in ("best", name) and not missing(tables.runs, name)]
    if not sizes or claim.profile not in (None, *sizes):
        return f"needs the {claim.profile} profile" if claim.profile else "no runs at one profile for all of it"
    hardly = ", ".join(map(" ".join, sorted(missing(learned(tables)[0].runs, sizes[-1]))))
    return f"hardly learned: {hardly}" if hardly else INCOMPLETE


def _copies(runs: pd.DataFrame) -> list[str]:
    """Titles and notes of the data sets, in the order of `rwclib.runs.data.DATASETS`."""
    used, order = runs[["dataset", "data_note"]].drop_duplicates().sort_values("data_note"), list(data.DATASETS)
    used = used.sort_values("dataset", key=lambda names: names.map(order.index), kind="stable")
    return [f"{data.get(row.dataset).title}: {row.data_note}" for row in used.itertuples()]

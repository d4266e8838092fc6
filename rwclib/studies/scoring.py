"""A study's claims judged on its runs: every comparison, and the scorecard with what is needed to read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from rwclib import archive, claims, data
from rwclib.claims import Claim
from rwclib.config import PROFILES, check_profile
from rwclib.studies import base

INCOMPLETE = "some of its trainings are missing or have hardly learned"


def under(about: Sequence[Claim], metrics: Mapping[str, str]) -> list[Claim]:
    """The claims judged under these definitions; those that know none (`-`) as they are."""
    names = tuple(metrics.values())
    return [claim if claim.definitions == ("-",) else replace(claim, definitions=names) for claim in about]


@dataclass(frozen=True)
class Judge:
    """What judges one study; `judged` are the runs that may be, `reason` says why a claim was not run, given what `_reason` finds."""

    claims: Sequence[Claim]
    values: Callable[..., pd.DataFrame]
    tables: Callable[..., archive.Tables]
    judged: Callable[[archive.Tables], archive.Tables] = lambda found: base.learned(found)[0]
    reason: Callable[[Claim, str], str] = lambda claim, why: why

    def about(self, models: Sequence[str] | None = None, metrics: Mapping[str, str] | None = None) -> list[Claim]:
        """The claims that speak of these models alone, under these definitions."""
        about = claims.about(self.claims, models) if models else self.claims
        return under(about, metrics) if metrics else list(about)

    def details(self, found: archive.Tables, models: Sequence[str] | None = None, **options: object) -> pd.DataFrame:
        """Every comparison at every profile, as `rwclib.claims.details`; `options` are those of the study's `values`."""
        kept = self.judged(found) if len(found.runs) else found
        values = self.values(kept, **options) if len(kept.runs) else pd.DataFrame(columns=claims.VALUES)
        return claims.details(values, self.about(models, options.get("metrics")), list(PROFILES))

    def verdicts(
        self, found: archive.Tables, models: Sequence[str] | None = None, profile: str = "best", **options: object
    ) -> pd.DataFrame:
        """The scorecard at one profile or at each that can judge (`best`), as `rwclib.claims.verdicts` with five more columns.

        `text`, the claim's sentence; `replicates`, what they are; `data`, a list of `title: data copy` of the runs used; `train_top1`, the
        lowest and the highest training accuracy (percent) among those that were not retrained; `reason`, why it was not run.
        """
        parts = self.details(found, models, **options)
        table = claims.verdicts(parts[[check_profile(profile, "best") in ("best", name) for name in parts["profile"]]])
        judged = self.judged(found) if len(found.runs) else found
        last = archive.last_epochs(judged.epochs)
        if "perturbation" in judged.runs:
            last = last[last["hash"].isin(judged.runs.loc[judged.runs["perturbation"] == "none", "hash"])]
        known, more = {claim.id: claim for claim in self.about(models)}, []
        for row in table.itertuples():
            claim = known[row.claim]
            top1 = _part(last, claim, row.profile)["train_top1"].astype(float)
            missing = row.verdict == "not run"
            reason = self.reason(claim, _reason(claim, found, profile)) if missing else ""
            copies = _copies(_part(found.runs, claim, row.profile))
            accuracies = top1.min(), top1.max()
            more.append((claim.text, claim.replicates, copies, accuracies, reason))
        return table.join(pd.DataFrame(more, columns=["text", "replicates", "data", "train_top1", "reason"]))

    def scorecard(self, results: str | Path | None = None, profile: str = "best") -> pd.DataFrame:
        """The verdicts on the archive's runs."""
        return self.verdicts(self.tables(results), profile=profile)


def _part(table: pd.DataFrame, claim: Claim, profile: str) -> pd.DataFrame:
    """The rows of a claim's networks and data sets at a profile."""
    if table.empty:
        return pd.DataFrame(columns=["model", "dataset", "data_note", "train_top1"])
    rows, runs = table[["profile", "model", "dataset"]].itertuples(index=False, name=None), claim.runs
    return table[[name == profile and (model, dataset) in runs for name, model, dataset in rows]]


def _reason(claim: Claim, found: archive.Tables, profile: str) -> str:
    """Why a claim could not be judged on these tables."""

    def pairs(runs: pd.DataFrame, name: str) -> set[tuple[str, str]]:
        return set(_part(runs, claim, name)[["model", "dataset"]].itertuples(index=False, name=None))

    sizes = [name for name in PROFILES if profile in ("best", name) and pairs(found.runs, name) == claim.runs]
    if not sizes or claim.profile not in (None, *sizes):
        return f"needs the {claim.profile} profile" if claim.profile else "no runs at one profile for all of it"
    hardly = ", ".join(map(" ".join, sorted(claim.runs - pairs(base.learned(found)[0].runs, sizes[-1]))))
    return f"hardly learned: {hardly}" if hardly else INCOMPLETE


def _copies(runs: pd.DataFrame) -> list[str]:
    """Titles and notes of the data sets, in the order of `rwclib.data.DATASETS`."""
    used = sorted(set(zip(runs["dataset"], runs["data_note"], strict=True)))
    return [f"{data.get(name).title}: {note}" for name in data.DATASETS for of, note in used if of == name]

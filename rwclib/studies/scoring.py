"""A study's claims judged on its runs: every comparison, and the scorecard with what is needed to read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pandas as pd

from rwclib import archive, claims, data
from rwclib.claims import Claim
from rwclib.config import PROFILES, check_profile
from rwclib.studies import base


def under(about: Sequence[Claim], metrics: Mapping[str, str]) -> list[Claim]:
    """The claims judged under these definitions; those that know none (`-`) as they are."""
    names = tuple(metrics.values())
    return [claim if claim.definitions == ("-",) else replace(claim, definitions=names) for claim in about]


def details(
    found: archive.Tables, about: Sequence[Claim], values: Callable[[archive.Tables], pd.DataFrame]
) -> pd.DataFrame:
    """Every comparison of the claims, as `rwclib.claims.details`, on the runs that have learned (`base.learned`)."""
    kept = base.learned(found)[0]
    return judge(values(kept) if len(kept.runs) else None, about)


def judge(table: pd.DataFrame | None, about: Sequence[Claim]) -> pd.DataFrame:
    """`rwclib.claims.details` at every profile; without values all is `not run`."""
    return claims.details(pd.DataFrame(columns=claims.VALUES) if table is None else table, about, list(PROFILES))


def verdicts(
    found: archive.Tables,
    about: Sequence[Claim],
    parts: pd.DataFrame,
    profile: str = "best",
    judged: archive.Tables | None = None,
) -> pd.DataFrame:
    """The scorecard of these comparisons, with five more columns.

    `text`, the claim's sentence; `replicates`, what they are; `data`, a list of `title: data copy` of the runs used;
    `train_top1`, the lowest and the highest training accuracy (percent) among them; `reason`, why it was not run.

    Args:
        found: all runs.
        about: the claims.
        parts: as `details` gives them.
        profile: at which to judge; `best`: each that can judge a claim.
        judged: the runs that were judged, where these are not those that have learned.
    """
    if check_profile(profile, "best") != "best":
        parts = parts[parts["profile"] == profile]
    table, judged = claims.verdicts(parts), judged or base.learned(found)[0]
    known = {claim.id: claim for claim in about}
    of = [known[name] for name in table["claim"]]
    table.insert(1, "text", [claim.text for claim in of])
    table["replicates"] = [claim.replicates for claim in of]
    rows = list(zip(of, table["profile"], strict=True))
    table["data"] = [_copies(found.runs[found.runs["profile"] == name], claim.runs) for claim, name in rows]
    last = archive.last_epochs(judged.epochs)
    table["train_top1"] = [_range(last, name, claim.runs) for claim, name in rows]
    missing = table["verdict"] == "not run"
    table["reason"] = [_reason(claim, found, judged, profile) if none else "" for claim, none in zip(of, missing, strict=True)]
    return table


def _trained(runs: pd.DataFrame, profile: str) -> set[tuple[str, str]]:
    """The (model, data set) pairs that there are runs of at a profile."""
    return set(runs.loc[runs["profile"] == profile, ["model", "dataset"]].itertuples(index=False, name=None))


def _reason(claim: Claim, found: archive.Tables, judged: archive.Tables, profile: str) -> str:
    """Why a claim could not be judged on these tables."""
    if claim.profile and not (len(found.runs) and claim.profile in set(found.runs["profile"])):
        return f"needs the {claim.profile} profile"
    for name in reversed([name for name in PROFILES if profile in ("best", name)]) if len(found.runs) else ():
        if claim.runs <= _trained(found.runs, name):
            hardly = sorted(claim.runs - _trained(judged.runs, name))
            if hardly:
                return "hardly learned: " + ", ".join(" ".join(pair) for pair in hardly)
            return "some of its trainings or layers are missing"
    return "no runs at one profile for all of it"


def _range(last: pd.DataFrame, profile: str, needed: set[tuple[str, str]]) -> tuple[float, float]:
    """Lowest and highest training top-1 of the runs needed; NaN if there are none."""
    if last.empty:
        return float("nan"), float("nan")
    of_profile = last[last["profile"] == profile].set_index(["model", "dataset"])["train_top1"]
    used = of_profile[of_profile.index.isin(needed)]
    return used.min(), used.max()


def _copies(runs: pd.DataFrame, needed: set[tuple[str, str]]) -> list[str]:
    rows = runs.to_dict("records")
    used = {(row["dataset"], row["data_note"]) for row in rows if (row["model"], row["dataset"]) in needed}
    return [f"{data.get(name).title}: {note}" for name in data.DATASETS for of, note in sorted(used) if of == name]

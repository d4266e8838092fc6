"""A study's claims judged on its runs: every comparison, and the scorecard with what is needed to read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from rwclib import archive, claims, data
from rwclib.claims import Claim
from rwclib.config import PROFILES
from rwclib.studies import base


def details(
    found: archive.Tables, about: Sequence[Claim], metrics: Mapping[str, str] = claims.DEFINITIONS
) -> pd.DataFrame:
    """Every comparison of the claims, as `rwclib.claims.details`; runs at chance are not judged on (`base.learned`)."""
    judged, _ = base.learned(found)
    return claims.details(judged.layers, judged.epochs, about, list(PROFILES), metrics)


def verdicts(
    found: archive.Tables,
    about: Sequence[Claim],
    metrics: Mapping[str, str] = claims.DEFINITIONS,
    parts: pd.DataFrame | None = None,
    judged: tuple[archive.Tables, set[tuple[str, str, str]]] | None = None,
) -> pd.DataFrame:
    """The scorecard of these tables, with four more columns; of `parts` where the comparisons are made already, on the runs
    `judged` (as `base.learned` gives them).

    `text`, the claim's sentence; `data`, a list of `title: data copy` of the runs used; `train_top1`, the lowest and the
    highest training accuracy (percent) among them; `reason`, why it was not run.
    """
    table = claims.scorecard(details(found, about, metrics) if parts is None else parts)
    known = {claim.id: claim for claim in about}
    table.insert(1, "text", table["claim"].map({claim_id: claim.text for claim_id, claim in known.items()}))
    table["data"] = [
        _copies(found.runs[found.runs["profile"] == row.profile], known[row.claim].runs) for row in table.itertuples()
    ]
    judged, at_chance = judged or base.learned(found)
    last = archive.last_epochs(judged.epochs)
    table["train_top1"] = [_range(last, row.profile, known[row.claim].runs) for row in table.itertuples()]
    table["reason"] = [
        _reason(known[row.claim], found, at_chance) if row.verdict == "not run" else "" for row in table.itertuples()
    ]
    return table


def _reason(claim: Claim, found: archive.Tables, at_chance: set[tuple[str, str, str]]) -> str:
    """Why a claim could not be judged on these tables."""
    if claim.profile and claim.profile not in set(found.epochs.get("profile", ())):
        return f"needs the {claim.profile} profile"
    chance = sorted({(model, dataset) for _, model, dataset in at_chance} & claim.runs)
    if chance:
        return "still at chance: " + ", ".join(" ".join(pair) for pair in chance)
    trained = found.runs[["profile", "model", "dataset"]] if len(found.runs) else pd.DataFrame(columns=["profile"])
    for _, of in trained.groupby("profile"):
        if claim.runs <= set(of[["model", "dataset"]].itertuples(index=False, name=None)):
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

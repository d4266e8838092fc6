"""The six claims of study 4, and their scorecard.

Definitions are the two readings of what the second layer is applied to (`rwclib.studies.softness.filtered`); S1, which is
about layer 1 (figures 1 and 2), has but one. S1 and S2 compare the filters that the longer sessions had after 2,000
iterations and after 30,000, each session with itself. S3 to S6 are about the design of one profile and its sessions'
deviations, drawn again: 95% intervals, of S6's p-values the middle 80%, because a slope that is not there has a p below 0.025
in one case of 40. The limits are ours: the paper says "strongly" (S3), and "below 0.8" of all but two R^2 near 0.9 (S4, S5).
Eleven sessions can rarely decide on which side of a limit an R^2 lies.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from rwclib import archive, claims
from rwclib import softness as measures
from rwclib.claims import Claim
from rwclib.comparisons import Difference, Group, Level
from rwclib.studies import scoring, softness
from rwclib.studies.softness import EARLY, LATE

READINGS = {"through": "through layer 1", "image": "on the image"}
STRONGLY = 0.5  # spread within lengths over that between
GOOD, LOW = 0.85, 0.8  # R^2
SIGNIFICANT = 0.05
RESAMPLES = 2000
_PAIR = "softness_cnn", "cifar10"


def _level(name: str, low: float, high: float) -> Level:
    return Level(a=Group(*_PAIR, name), low=low, high=high, over="sessions")


def _later(quantity: str, **limits: float) -> Difference:
    return Difference(a=Group(*_PAIR, f"{quantity} after {LATE:,}"), b=Group(*_PAIR, f"{quantity} after {EARLY:,}"),
                      over="sessions", **limits)  # fmt: skip


def _r2(low: float, high: float, which: Callable[[str, str, str], bool]) -> tuple[Level, ...]:
    return tuple(
        _level(f"R2, {layer} {model} {image}", low, high)
        for layer in softness.LAYERS for model in measures.MODELS for image in softness.IMAGES if which(layer, model, image)
    )  # fmt: skip


def _best(layer: str, model: str, _: str) -> bool:
    return layer == "conv2" and model == "power"


def _p(low: float, high: float, which: Callable[[str, str, str], bool]) -> tuple[Level, ...]:
    return tuple(_level(part.a.group.replace("R2", "p"), low, high) for part in _r2(0, 0, which))


def _significant(layer: str, model: str, image: str) -> bool:
    return layer == "conv1" or model == "power" or (model == "exponential" and image == "static")


CLAIMS = (
    Claim("S1", f"Strong weights cluster as training goes on (layer 1: Moran's I of the filters grows from {EARLY:,} to {LATE:,} iterations)",
          (_later("Moran's I, conv1", high=2.0),)),
    Claim("S2", f"More training, softer images (the score falls from {EARLY:,} to {LATE:,} iterations)",
          tuple(_later(f"score, {layer} {image}", low=-1e9, high=0.0) for layer in softness.LAYERS for image in softness.IMAGES)),
    Claim("S3", "Sessions of the same length differ strongly (their scores' standard deviation at least half of that between lengths)",
          tuple(_level(f"within / between, {layer} {image}", STRONGLY, 1e9) for layer in softness.LAYERS for image in softness.IMAGES)),
    Claim("S4", f"Layer 2: the power model fits best (R2 of {GOOD:g} or more, and above the two others')",
          (*_r2(GOOD, 1.01, _best), *(_level(f"power's R2 lead, conv2 {image}", 0.0, 2.0) for image in softness.IMAGES))),
    Claim("S5", f"Every other R2 is below {LOW:g}", _r2(-0.01, LOW, lambda *of: not _best(*of))),
    Claim("S6", "Slopes are significant at 0.05 in layer 1, in layer 2 only of the power model and of the exponential on static",
          (*_p(-1.0, SIGNIFICANT, _significant), *_p(SIGNIFICANT, 2.0, lambda *of: not _significant(*of)))),
)  # fmt: skip


def _draws(table: pd.DataFrame, way: str) -> dict[str, np.ndarray]:
    """What S3 to S6 speak of, of one set of sessions' scores under one reading: each quantity, then `RESAMPLES` draws of it.

    A draw keeps each length's mean of log scores and adds, to each session, a deviation from such a mean drawn from all
    sessions' (scaled up for the mean's own error): so the one session of a length varies too. Of the spread within lengths
    over that between them, only the former is drawn, as normal sampling has it, from chi squared. Without two sessions of
    one length every draw is NaN.
    """
    rng = np.random.default_rng(0)
    found: dict[str, np.ndarray] = {}
    for layer in softness.LAYERS:
        for image in softness.IMAGES:
            ways = [way] if layer == "conv2" else ["image"]
            of = table[(table["layer"] == layer) & (table["image"] == image) & table["way"].isin(ways)]
            lengths = of.groupby("iterations")["score"]
            logs, count = np.log(of["score"]), lengths.transform("size")
            means = logs.groupby(of["iterations"]).transform("mean")
            apart = ((logs - means) * np.sqrt(count / (count - 1).clip(1)))[count > 1].to_numpy()
            apart = apart if len(apart) else np.full(1, np.nan)
            drawn = np.exp(means.to_numpy() + apart[rng.integers(0, len(apart), (RESAMPLES, len(of)))])
            scores, r2 = np.vstack([of["score"], drawn]), {}
            for model in measures.MODELS:
                r2[model] = measures.r_squared(of["iterations"], scores, model)
                found[f"R2, {layer} {model} {image}"] = r2[model]
                found[f"p, {layer} {model} {image}"] = measures.p_of_r2(r2[model], len(of))
            found[f"power's R2 lead, {layer} {image}"] = r2.pop("power") - np.maximum(*r2.values())
            free = len(of) - lengths.ngroups
            within = np.sqrt((lengths.var() * (lengths.size() - 1)).sum() / free) if free else np.nan
            wider = np.sqrt(free / np.append(free, rng.chisquare(free, RESAMPLES))) if free else np.ones(RESAMPLES + 1)
            found[f"within / between, {layer} {image}"] = within / lengths.mean().std() * wider
    return found


def _interval(draws: np.ndarray, share: float = 0.95) -> tuple[float, float, float]:
    """The quantity itself and the middle share of its draws."""
    return float(draws[0]), *np.quantile(draws[1:], [(1 - share) / 2, (1 + share) / 2])


def _label(part: Level) -> str:
    """The comparison in words; of S1 and S2 with the iterations once."""
    late, early = f" after {LATE:,}", f", {LATE:,} - {EARLY:,} iterations"
    return part.a.name.replace(late, early) if part.b else part.label


def details(found: archive.Tables) -> pd.DataFrame:
    """Every comparison of the claims, as `rwclib.claims.details`, on the profile that `softness.judged` names."""
    profile, rows = softness.judged(found), []
    if profile:
        found = softness.only(found, profile, _PAIR[1])
        scores, morans = softness.scores(found, all_iterations=True), softness.clustering(found, all_iterations=True)
        last = scores[scores["iteration"] == scores["iterations"]]
    for way, definition in READINGS.items():
        if profile:
            pairs, draws = _pairs(scores, morans, way), _draws(last, way)
        for claim in CLAIMS if way == "through" else CLAIMS[1:]:
            for part in claim.comparisons:
                if not profile:
                    result = claims.NOT_RUN
                elif claim.id in ("S1", "S2"):
                    result = claims.compare(pairs, part, "value")
                else:
                    share = 0.8 if claim.id == "S6" else 0.95
                    effect, low, high = _interval(draws[part.a.group], share)
                    result = {"effect": effect, "low": low, "high": high, "verdict": part.verdict(low, high),
                              "seeds": len(found.runs), "resampled": f"{share:.0%} of sessions"}  # fmt: skip
                rows.append(
                    {"claim": claim.id, "definition": "-" if claim.id == "S1" else definition, "comparison": _label(part),
                     "unit": part.unit, **result, "profile": profile or "-", "part": part}
                )  # fmt: skip
    return pd.DataFrame(rows)


def r_squared(found: archive.Tables) -> pd.DataFrame:
    """The fits of `softness.fits` with a `panel` (layer and reading) and R^2's 95% interval, `low` and `high`."""
    table = softness.scores(found)
    draws = {way: _draws(table, way) for way in READINGS}
    lines = softness.fits(table)
    names = zip(lines["way"], lines["layer"], lines["model"], lines["image"], strict=True)
    limits = [_interval(draws[way][f"R2, {layer} {model} {image}"])[1:] for way, layer, model, image in names]
    lines.insert(0, "panel", softness.panel(lines))
    return lines.assign(low=[low for low, _ in limits], high=[high for _, high in limits])


def _pairs(scores: pd.DataFrame, morans: pd.DataFrame, way: str) -> pd.DataFrame:
    """The long sessions' scores and Moran's I after `EARLY` and `LATE` iterations, as `rwclib.claims.compare` reads them."""
    chosen = scores[scores["way"].eq(way) | scores["layer"].eq("conv1")]
    tables = [
        chosen.assign(quantity="score, " + chosen["layer"] + " " + chosen["image"], value=chosen["score"]),
        morans.assign(quantity="Moran's I, " + morans["layer"], value=morans["morans_i"]),
    ]
    table = pd.concat(tables, ignore_index=True)
    table = table[table["iteration"].isin([EARLY, LATE]) & (table["iterations"] >= LATE)]
    group = [f"{quantity} after {at:,}" for quantity, at in zip(table["quantity"], table["iteration"], strict=True)]
    columns = ["profile", "seed", "value"]
    return table[columns].assign(model=_PAIR[0], dataset=_PAIR[1], group=group, layer="all")


def verdicts(found: archive.Tables) -> pd.DataFrame:
    """The scorecard of these tables, as `scoring.verdicts`."""
    table = scoring.verdicts(
        found, CLAIMS, parts=details(found), judged=(found, set())
    )  # chance is the shortest sessions' lot
    table.loc[table["verdict"] == "not run", "reason"] = f"needs CIFAR-10 sessions of {LATE:,} iterations"
    return table


def scorecard(results: str | Path | None = None, profile: str = "best") -> pd.DataFrame:
    """The claims on the archive's sessions of one profile, or of the most telling that has long ones."""
    return verdicts(softness.tables(results, profile))

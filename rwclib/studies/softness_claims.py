"""The six claims of study 4, and how their values are had from its tables.

Definitions are the two readings of what the second layer is applied to (`rwclib.studies.softness.filtered`); S1 and S3, which are
about layer 1, have but one. S1 to S3 compare the filters that the longer sessions had after 2,000 iterations and after 30,000: the
replicates are sessions. S4 and S5 are about fits over one profile's sessions; their replicates are the pictures that the filters
are applied to, 17 birds and 12 of noise. S6 is about single fits on the pictures of the figures, which are what they are. The limits are
ours: the paper says "far more" of S3, "below 0.8" of all but two R2 near 0.9 (S4, S5) and "very low" (S6).
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd

from rwclib import archive, claims
from rwclib import softness as measures
from rwclib.claims import SHARE_MARGIN, Cell, Claim, Comparison, level, ratio
from rwclib.studies import scoring, softness
from rwclib.studies.softness import EARLY, IMAGES, LATE, LAYERS

READINGS = {"through": "through layer 1", "image": "on the image"}
STRONGLY = 0.5  # spread of the sessions over what they gain by training
GOOD, FAIR, LOW = 0.85, 0.8, 0.3  # R2: of the power model, of the others at most, "very low"
SIGNIFICANT = 0.05
NOISES = 12
_FITS = list(itertools.product(LAYERS, measures.MODELS, IMAGES))
_POWER = [fit for fit in _FITS if fit[:2] == ("conv2", "power")]
_IS_SIGNIFICANT = [fit for fit in _FITS if fit[0] == "conv1" or fit in [*_POWER, ("conv2", "exponential", "static")]]


def _cell(quantity: str, group: str = "all") -> Cell:
    return Cell("softness_cnn", softness.DATASETS[0], group, quantity)


def _later(quantity: str) -> tuple[Cell, Cell]:
    return _cell(quantity, f"{LATE:,}"), _cell(quantity, f"{EARLY:,}")


def _levels(quantity: str, fits: list[tuple[str, str, str]], low: float, high: float, exact: bool = False) -> tuple[Comparison, ...]:
    names = [f"{quantity}, {' '.join(fit)}" for fit in fits]
    return tuple(level(_cell(name), name, low, high, exact=exact) for name in names)


_BETWEEN = f"{LATE:,} - {EARLY:,} iterations"
_MORAN, _SPREAD = "Moran's I, layer 1", "soft images, layer 1 bird: sessions' spread / gain"

CLAIMS = (
    Claim("S1", f"Strong weights cluster as training goes on (layer 1: Moran's I of the filters grows from {EARLY:,} to {LATE:,} iterations)",
          (Comparison(f"{_MORAN}: {_BETWEEN}", tuple(zip((1.0, -1.0), _later(_MORAN), strict=True)), unit="difference", margin=SHARE_MARGIN),), ("-",), "sessions"),
    Claim("S2", f"More training, softer images (the score falls from {EARLY:,} to {LATE:,} iterations)",
          tuple(ratio(*_later(f"score, {layer} {image}"), f"score, {layer} {image}: {_BETWEEN.replace(' - ', ' / ')}", low=-claims.INFINITY, high=0.0)
                for layer in LAYERS for image in IMAGES), tuple(READINGS.values()), "sessions"),
    Claim("S3", f"Sessions of the same length differ strongly (number of soft images, layer 1, {LATE:,} iterations: standard deviation at least half of the gain since {EARLY:,})",
          (level(_cell(_SPREAD), _SPREAD, STRONGLY, unit="spread"),), ("-",), "sessions"),
    Claim("S4", f"Layer 2: the power model fits best (R2 of {GOOD:g} or more, and above the two others')",
          (*_levels("R2", _POWER, GOOD, claims.INFINITY), *(level(_cell(f"power's lead, conv2 {image}"), f"power's lead, conv2 {image}", 0.0) for image in IMAGES)),
          tuple(READINGS.values()), "pictures"),
    Claim("S5", f"Every other R2 is below {FAIR:g}", _levels("R2", [fit for fit in _FITS if fit not in _POWER], -claims.INFINITY, FAIR), tuple(READINGS.values()), "pictures"),
    Claim("S6", f"Single fits: slopes significant at {SIGNIFICANT:g} in layer 1 with very low R2 (below {LOW:g}), in layer 2 only of the power model and of the exponential on static",
          (*_levels("p", _IS_SIGNIFICANT, -claims.INFINITY, SIGNIFICANT, True), *_levels("p", [fit for fit in _FITS if fit not in _IS_SIGNIFICANT], SIGNIFICANT, claims.INFINITY, True),
           *_levels("R2 of the single fit", [fit for fit in _FITS if fit[0] == "conv1"], -claims.INFINITY, LOW, True)), tuple(READINGS.values())),
)  # fmt: skip


def r_squared(found: archive.Tables) -> pd.DataFrame:
    """The lines of `softness.fits` on every picture, of one profile's sessions.

    Columns: panel (layer and reading), layer, way, model, image, picture (number), printed (whether it is the figures'), n, r, r2, slope, p.
    """
    pictures = {("bird", k): bird for k, bird in enumerate(softness.birds())}
    pictures |= {("static", k): softness.noise(k) for k in range(NOISES)}
    lines = softness.fits(softness.scores(found, pictures=pictures))
    lines[["image", "picture"]] = pd.DataFrame(lines["image"].tolist(), lines.index)
    lines["printed"] = lines["picture"] == lines["image"].map(softness.PRINTED)
    lines.insert(0, "panel", softness.panel(lines))
    return lines


def _of_fits(lines: pd.DataFrame) -> pd.DataFrame:
    """What S4 to S6 speak of, from `r_squared` of one reading: quantity, picture (as `seed`) and value."""
    fit = lines["layer"] + " " + lines["model"] + " " + lines["image"]
    single = lines[lines["printed"]]
    by_model = lines[lines["layer"] == "conv2"].pivot(index=["image", "picture"], columns="model", values="r2")
    lead = (by_model["power"] - by_model[["linear", "exponential"]].max(axis=1)).reset_index(name="value")
    parts = [
        lines.assign(quantity="R2, " + fit, value=lines["r2"]),
        single.assign(quantity="p, " + fit, value=single["p"]),
        single.assign(quantity="R2 of the single fit, " + fit, value=single["r2"]),
        lead.assign(quantity="power's lead, conv2 " + lead["image"]),
    ]
    return pd.concat(parts)[["quantity", "picture", "value"]].rename(columns={"picture": "seed"}).assign(group="all")


def _of_sessions(scores: pd.DataFrame, morans: pd.DataFrame) -> pd.DataFrame:
    """What S1 to S3 speak of, of the long sessions: quantity, group (iterations), seed and value."""
    soft = scores[(scores["layer"] == "conv1") & (scores["image"] == "bird")].pivot(index="seed", columns="iteration", values="soft")
    gain = (soft[LATE] / (soft[LATE] - soft[EARLY]).mean()).reset_index(name="value")
    first = morans[morans["layer"] == "conv1"]
    parts = [
        scores.assign(quantity="score, " + scores["layer"] + " " + scores["image"], value=np.log(scores["score"])),
        first.assign(quantity=_MORAN, value=first["morans_i"]),
        gain.assign(quantity=_SPREAD, group="all"),
    ]
    table = pd.concat(parts)
    return table.assign(group=table["group"].fillna(table["iteration"].map("{:,.0f}".format)))[["quantity", "group", "seed", "value"]]


def values(found: archive.Tables) -> pd.DataFrame:
    """What the sessions of every profile that can be judged say, as `rwclib.claims.details` wants it."""
    parts = []
    for profile in softness.judgeable(found):
        of = softness.only(found, profile, softness.DATASETS[0])
        scores, morans = softness.scores(of, all_iterations=True), softness.clustering(of, all_iterations=True)
        scores, morans = (table[table["iteration"].isin([EARLY, LATE]) & (table["iterations"] >= LATE)] for table in (scores, morans))
        lines = r_squared(of)
        for way, definition in READINGS.items():
            here = [table[(table["layer"] == "conv1") | (table["way"] == way)] for table in (scores, lines)]
            tables = [_of_sessions(here[0], morans), _of_fits(here[1])]
            parts += [table.assign(profile=profile, definition=name, model="softness_cnn", dataset=softness.DATASETS[0])
                      for table in tables for name in ([definition, "-"] if way == "image" else [definition])]  # fmt: skip
    return pd.concat(parts, ignore_index=True)[claims.VALUES]


def details(found: archive.Tables) -> pd.DataFrame:
    """Every comparison of the claims, as `rwclib.claims.details`."""
    return scoring.judge(values(found) if softness.judgeable(found) else None, CLAIMS)


def verdicts(found: archive.Tables, profile: str = "best") -> pd.DataFrame:
    """The scorecard of these tables, as `scoring.verdicts`; untrained filters are part of the design, so that all sessions count."""
    table = scoring.verdicts(found, CLAIMS, details(found), profile, found)
    table.loc[table["verdict"] == "not run", "reason"] = f"needs CIFAR-10 sessions of {LATE:,} iterations"
    return table


def scorecard(results: str | Path | None = None, profile: str = "best") -> pd.DataFrame:
    """The claims on the archive's sessions, at one profile or at each that has long ones (`best`)."""
    return verdicts(softness.tables(results), profile)

"""The six claims of study 4, and how their values are had from its tables.

Definitions are the two readings of what the second layer is applied to (`rwclib.studies.softness.filtered`); S1 and S3 are about layer 1.
Replicates are the longer sessions, after 2,000 iterations and after 30,000 (S1 to S3), and the pictures that the filters of one profile's
sessions are applied to (S4, S5); S6 is about single fits. The limits are ours: the paper says "far more" (S3) and "very low" (S6).
"""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd

from rwclib.analysis import claims
from rwclib.analysis import softness as measures
from rwclib.analysis.claims import INFINITY, SHARE_MARGIN, Cell, Claim, Comparison, level, ratio
from rwclib.runs import archive
from rwclib.studies.softness import figures
from rwclib.studies.softness.figures import EARLY, IMAGES, LATE, LAYERS
from rwclib.studies.softness.runs import DATASETS, runs
from rwclib.studies.study import Study

READINGS = ("through layer 1", "on the image")
STRONGLY = 0.5  # spread of the sessions over what they gain by training
GOOD, FAIR, LOW, SIGNIFICANT = 0.85, 0.8, 0.3, 0.05  # R2: of the power model, of the others at most, "very low"; p
_FITS = [" ".join(fit) for fit in itertools.product(LAYERS, measures.LAWS, IMAGES)]
_FIRST = [fit for fit in _FITS if fit.startswith("conv1")]
_POWER = [fit for fit in _FITS if fit.startswith("conv2 power")]
_SIGNIFICANT = [*_FIRST, *_POWER, "conv2 exponential static"]


def _cell(quantity: str, group: str = "all") -> Cell:
    return Cell("softness_cnn", DATASETS[0], group, quantity)


def _gain(quantity: str) -> tuple[Cell, Cell]:
    return _cell(quantity, f"{LATE:,}"), _cell(quantity, f"{EARLY:,}")


def _levels(names: list[str], low: float, high: float, exact: bool = False) -> tuple[Comparison, ...]:
    return tuple(level(_cell(name), name, low, high, exact=exact) for name in names)


_BETWEEN = f"{LATE:,} - {EARLY:,} iterations"
_MORAN, _SPREAD = "Moran's I, layer 1", "soft images, layer 1 bird: sessions' spread / gain"

CLAIMS = (
    Claim("S1", f"Strong weights cluster as training goes on (layer 1: Moran's I of the filters grows from {EARLY:,} to {LATE:,} iterations)",
          (Comparison(f"{_MORAN}: {_BETWEEN}", tuple(zip((1.0, -1.0), _gain(_MORAN), strict=True)), unit="difference", margin=SHARE_MARGIN),), ("-",), "sessions"),
    Claim("S2", f"More training, softer images (the score falls from {EARLY:,} to {LATE:,} iterations)",
          tuple(ratio(*_gain(f"score, {layer} {image}"), f"score, {layer} {image}: {_BETWEEN.replace(' - ', ' / ')}", low=-INFINITY, high=0.0)
                for layer in LAYERS for image in IMAGES), READINGS, "sessions"),
    Claim("S3", f"Sessions of the same length differ strongly (number of soft images, layer 1, {LATE:,} iterations: standard deviation at least half of the gain since {EARLY:,})",
          (level(_cell(_SPREAD), _SPREAD, STRONGLY, unit="spread"),), ("-",), "sessions"),
    Claim("S4", f"Layer 2: the power model fits best (R2 of {GOOD:g} or more, and above the two others')",
          (*_levels([f"R2, {fit}" for fit in _POWER], GOOD, INFINITY), *_levels([f"power's lead, conv2 {image}" for image in IMAGES], 0.0, INFINITY)),
          READINGS, "pictures"),
    Claim("S5", f"Every other R2 is below {FAIR:g}", _levels([f"R2, {fit}" for fit in _FITS if fit not in _POWER], -INFINITY, FAIR), READINGS, "pictures"),
    Claim("S6", f"Single fits: slopes significant at {SIGNIFICANT:g} in layer 1 with very low R2 (below {LOW:g}), in layer 2 only of the power model and of the exponential on static",
          (*_levels([f"p, {fit}" for fit in _SIGNIFICANT], -INFINITY, SIGNIFICANT, True), *_levels([f"p, {fit}" for fit in _FITS if fit not in _SIGNIFICANT], SIGNIFICANT, INFINITY, True),
           *_levels([f"R2 of the single fit, {fit}" for fit in _FIRST], -INFINITY, LOW, True)), READINGS),
)  # fmt: skip


def _of_fits(lines: pd.DataFrame) -> list[pd.DataFrame]:
    """What S4 to S6 speak of, from `figures.r_squared` of one reading; a picture is a `seed`."""
    fit = lines[["layer", "model", "image"]].agg(" ".join, axis=1)
    lines = lines.assign(fit=fit, seed=lines["picture"], group="all")
    second = lines[lines["layer"] == "conv2"].pivot(index=["image", "seed", "group"], columns="model", values="r2")
    lead = (second["power"] - second[["linear", "exponential"]].max(axis=1)).reset_index(name="value")
    single = lines[lines["printed"]]
    return [
        lines.assign(quantity="R2, " + lines["fit"], value=lines["r2"]),
        single.assign(quantity="p, " + single["fit"], value=single["p"]),
        single.assign(quantity="R2 of the single fit, " + single["fit"], value=single["r2"]),
        lead.assign(quantity="power's lead, conv2 " + lead["image"]),
    ]


def _of_sessions(scores: pd.DataFrame, morans: pd.DataFrame) -> list[pd.DataFrame]:
    """What S1 to S3 speak of, of the long sessions."""
    scores, morans = (
        rows[rows["iteration"].isin([EARLY, LATE]) & (rows["iterations"] >= LATE)].assign(group=rows["iteration"].map("{:,}".format))
        for rows in (scores, morans[morans["layer"] == "conv1"])
    )  # fmt: skip
    birds = scores[(scores["layer"] == "conv1") & (scores["image"] == "bird")]
    soft = birds.pivot(index="seed", columns="iteration", values="soft")
    gain = (soft[LATE] / (soft[LATE] - soft[EARLY]).mean()).reset_index(name="value")
    return [
        scores.assign(quantity="score, " + scores["layer"] + " " + scores["image"], value=np.log(scores["score"])),
        morans.assign(quantity=_MORAN, value=morans["morans_i"]),
        gain.assign(quantity=_SPREAD, group="all"),
    ]


def values(tables: archive.Tables) -> pd.DataFrame:
    """What the sessions of every profile that can be judged say, as `rwclib.analysis.claims.details` wants it."""
    parts, network = [], {"model": "softness_cnn", "dataset": DATASETS[0]}
    for profile in figures.judgeable(tables):
        sessions = figures.select_profile(tables, profile, DATASETS[0])
        scores, morans = (measure(sessions, all_iterations=True) for measure in (figures.scores, figures.clustering))
        fits = figures.r_squared(sessions)
        for way, names in (("through", ["through layer 1"]), ("image", ["on the image", "-"])):
            seen, lines = (rows[(rows["layer"] == "conv1") | (rows["way"] == way)] for rows in (scores, fits))
            values = pd.concat([*_of_sessions(seen, morans), *_of_fits(lines)]).assign(profile=profile, **network)
            parts += [values.assign(definition=name) for name in names]
    return pd.concat(parts or [pd.DataFrame(columns=claims.VALUES)], ignore_index=True)[claims.VALUES]


STUDY = Study(
    "softness", "Varying training and softness of filters", "https://emerginginvestigators.org", runs, CLAIMS, values,
    candidates=lambda tables: tables,  # untrained filters are part of the design, so that all sessions count
    why_not_run=lambda claim, reason: f"needs CIFAR-10 sessions of {LATE:,} iterations",
)  # fmt: skip

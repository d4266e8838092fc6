"""Claims of the papers made measurable: comparisons of mean relative weight change, and their verdicts.

The quantity compared is a group's mean RWC: over its layers, and over all epochs after the first, of the finite values.
A comparison's effect is the ratio of two such means, averaged over seeds on the log scale; its interval is the 95%
percentile bootstrap over seeds, or over the layers of the groups when there is one seed (the table says which). Of two or
three seeds the bootstrap's interval is just their range, and the table calls it that. Where there is nothing to draw from
(one seed and a group of one layer, or one accuracy) there is no interval and the comparison is `unclear`.

Quantities of whole runs (study 3) are judged in the same way: a `Level` against a fixed range, a `Difference` on the linear
scale. There `seed` may name any unit that is drawn from, such as the trainings of a cell of a grid; `over` says what.

Verdicts. A comparison `holds` when its whole interval lies on the claimed side, `fails` when all of it lies on the
other, and is `unclear` otherwise. A claim `holds` when all its comparisons hold, `fails` when one fails, is `not run`
when a run that it needs is missing, and `unclear` otherwise. It is shown with that comparison of its verdict that is least
favourable to it, and with how many hold, are unclear and fail. Claims about accuracy are judged in the same way, in
percentage points, and only at the profile they speak of.

Few seeds decide easily: if two groups did not differ at all, the range of two seeds would still lie on one side of 1 in
half of the cases, that of three in a quarter, and a claim of twelve comparisons would then fail almost surely. Read a
`fails` beside its counts and its effect.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from rwclib.comparisons import Accuracy, Comparison, Group

DEFINITIONS = {"rwc": "Eq. 1", "rwc_elementwise": "elementwise"}
RESAMPLES = 2000
READING_ERROR = 0.1  # of a published figure's median
_THIRDS = ("early", "middle", "late")


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper and the comparisons that make it measurable.

    Attributes:
        id, text: as the scorecard names and states it.
        comparisons: all must hold.
        profile: the one profile at which it can be judged; any, if None.
    """

    id: str
    text: str
    comparisons: tuple[Comparison | Accuracy, ...]
    profile: str | None = None

    @property
    def runs(self) -> set[tuple[str, str]]:
        """The (model, data set) pairs that it needs."""
        return {pair for part in self.comparisons for pair in part.runs}

    def label(self, part: Comparison | Accuracy) -> str:
        """The comparison in words; with model and data set where the claim speaks of several."""
        model, dataset = part.runs[0]
        several = [len({pair[i] for pair in self.runs}) > 1 for i in (0, 1)]
        words = [model] * several[0] + [dataset] * (several[1] and len(set(part.runs)) == 1)
        return f"{' '.join(words)}: {part.label}" if words else part.label


def rising(claim_id: str, text: str, model: str, dataset: str, *groups: str) -> Claim:
    """The claim that mean RWC rises from each of `groups` to the next."""
    named = [Group(model, dataset, group) for group in groups]
    return Claim(claim_id, text, tuple(Comparison(b, a) for a, b in itertools.pairwise(named)))


def about(claims: Sequence[Claim], models: Sequence[str]) -> list[Claim]:
    """The claims as far as they speak of nothing but these models."""
    parts = {
        claim: tuple(part for part in claim.comparisons if {model for model, _ in part.runs} <= set(models))
        for claim in claims
    }
    return [replace(claim, comparisons=kept) for claim, kept in parts.items() if kept]


def _of_group(layers: pd.DataFrame, group: Group) -> pd.DataFrame:
    same = (layers["model"] == group.model) & (layers["dataset"] == group.dataset) & (layers["group"] == group.group)
    return layers[same]


def _layer_means(rows: pd.DataFrame, third: str, metric: str) -> pd.DataFrame:
    """(seeds, layers) means of the rows of a group, or of a third of its layers.

    Over the epochs after the first, finite values only; all-infinite layers are left out. Tables of whole runs have no
    epochs, and keep all rows.
    """
    if "epoch" in rows:
        rows = rows[rows["epoch"] > 1]
    if third:
        thirds = np.array_split(np.sort(rows["depth"].unique()), 3)
        rows = rows[rows["depth"].isin(thirds[_THIRDS.index(third)])]
    finite = rows[metric].where(np.isfinite(rows[metric]))
    return finite.groupby([rows["seed"], rows["layer"]]).mean().unstack().dropna(axis=1, how="all")


def compare(layers: pd.DataFrame, comparison: Comparison, metric: str) -> dict:
    """Effect, interval and verdict of one comparison.

    Args:
        layers: tidy table of one profile with columns model, dataset, seed, group, layer, epoch and `metric`.
        metric: `rwc`, `rwc_elementwise` or another column.

    Returns:
        effect, low, high (ratios; NaN if not run), verdict, seeds (number), resampled (`comparison.over`, `layers` or `-`).
    """
    rows = [_of_group(layers, group) for group in comparison.groups]
    means = [_layer_means(of, group.third, metric) for of, group in zip(rows, comparison.groups, strict=True)]
    return _compare(rows, means, comparison, metric)


def _compare(
    of_groups: Sequence[pd.DataFrame], tables: Sequence[pd.DataFrame], comparison: Comparison, metric: str
) -> dict:
    """`compare`, of the rows of each of its groups and their `_layer_means`."""
    seeds = sorted(set.intersection(*(set(table.index) for table in tables)))
    if not seeds:
        return NOT_RUN
    tables, rng, (forward, back) = [t.loc[seeds] for t in tables], np.random.default_rng(0), comparison.scales
    weights = [
        rows.groupby("layer")["size"].first()[t.columns].to_numpy() if comparison.weighted else np.ones(t.shape[1])
        for t, rows in zip(tables, of_groups, strict=True)
    ]
    means = [
        np.nansum(t * w, axis=1) / (~np.isnan(t) * w).sum(axis=1)
        for t, w in zip((t.to_numpy() for t in tables), weights, strict=True)
    ]
    scaled = forward(means)  # (groups, seeds)
    effect = float(back(comparison.effect(scaled.mean(1))))
    without = any(  # a run without a value must not simply be missing
        "epoch" not in rows and rows[metric].isna().any() for rows in of_groups
    )
    if without or (len(seeds) == 1 and min(table.shape[1] for table in tables) == 1):
        return _NO_INTERVAL | {"effect": effect, "seeds": len(seeds)}
    if len(seeds) > 1:
        drawn = scaled[:, rng.integers(0, len(seeds), (RESAMPLES, len(seeds)))].mean(-1)
    else:  # the same layers on two data sets are drawn in pairs
        rows = {tuple(t.columns): rng.integers(0, t.shape[1], (RESAMPLES, t.shape[1])) for t in tables}
        drawn = [
            (t.to_numpy()[0][chosen] * w[chosen]).sum(-1) / w[chosen].sum(-1)
            for t, w in zip(tables, weights, strict=True)
            for chosen in [rows[tuple(t.columns)]]
        ]
        drawn = forward(drawn)
    low, high = back(np.quantile(comparison.effect(drawn), [0.025, 0.975]))
    return {
        "effect": effect, "low": float(low), "high": float(high), "verdict": comparison.verdict(low, high),
        "seeds": len(seeds), "resampled": comparison.over if len(seeds) > 1 else "layers",
    }  # fmt: skip


NOT_RUN = {"effect": np.nan, "low": np.nan, "high": np.nan, "verdict": "not run", "seeds": 0, "resampled": "-"}
_NO_INTERVAL = NOT_RUN | {"verdict": "unclear", "seeds": 1}


def compare_accuracy(epochs: pd.DataFrame, part: Accuracy) -> dict:
    """As `compare`, in percentage points.

    Args:
        epochs: tidy table of one profile with columns model, dataset, seed, epoch and `part.kind` (percent).
    """
    rows = epochs[(epochs["model"] == part.model) & (epochs["dataset"] == part.dataset)]
    if rows.empty:
        return NOT_RUN
    misses = rows.sort_values("epoch").groupby("seed")[part.kind].last().to_numpy() - part.published
    if len(misses) == 1:
        return _NO_INTERVAL | {"effect": float(misses[0])}
    drawn = misses[np.random.default_rng(0).integers(0, len(misses), (RESAMPLES, len(misses)))].mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {
        "effect": float(misses.mean()), "low": float(low), "high": float(high), "verdict": part.verdict(low, high),
        "seeds": len(misses), "resampled": "seeds",
    }  # fmt: skip


def details(
    layers: pd.DataFrame,
    epochs: pd.DataFrame,
    claims: Sequence[Claim],
    profiles: Sequence[str],
    metrics: Mapping[str, str] = DEFINITIONS,
) -> pd.DataFrame:
    """One row per claim, definition and comparison.

    Args:
        layers, epochs: tidy tables as in `compare` and `compare_accuracy`, with a column `profile`.
        claims: the claims.
        profiles: names from the least to the most telling; each claim is judged on the last one that has all its runs (in
            tables of whole runs, which have no epochs: all its groups).
        metrics: columns of `layers` and what to call them. Claims about accuracy have one row each, of definition `-`.
    """
    rows = []
    keys = ["model", "dataset"] if "epoch" in layers else ["model", "dataset", "group"]
    here = {p: set(layers.loc[layers["profile"] == p, keys].itertuples(index=False, name=None)) for p in profiles}
    split = dict(
        iter(layers.groupby(["profile", "model", "dataset", "group"]))
    )  # searched once, not for every comparison

    @functools.cache
    def means(key: tuple[str, str, str, str], third: str, metric: str) -> pd.DataFrame:
        return _layer_means(split.get(key, layers.iloc[:0]), third, metric)

    for claim in claims:
        groups = {(g.model, g.dataset, g.group) for part in claim.comparisons for g in getattr(part, "groups", ())}
        needed = claim.runs if "epoch" in layers else groups
        able = [p for p in profiles if needed <= here[p] and claim.profile in (None, p)]
        of_epochs = epochs[epochs["profile"] == able[-1]] if able else epochs.iloc[:0]
        for metric, definition in metrics.items():
            for part in claim.comparisons:
                if isinstance(part, Accuracy):
                    if metric != next(iter(metrics)):
                        continue
                    found, definition = compare_accuracy(of_epochs, part), "-"
                else:
                    keys = [(able[-1] if able else "", g.model, g.dataset, g.group) for g in part.groups]
                    of_groups = [split.get(key, layers.iloc[:0]) for key in keys]
                    tables = [means(key, group.third, metric) for key, group in zip(keys, part.groups, strict=True)]
                    found = _compare(of_groups, tables, part, metric)
                rows.append(
                    {"claim": claim.id, "definition": definition, "comparison": claim.label(part), "unit": part.unit}
                    | found
                    | {"profile": able[-1] if able else "-", "part": part}
                )
    return pd.DataFrame(rows)


def scorecard(parts: pd.DataFrame) -> pd.DataFrame:
    """One row per claim and definition: its verdict, and its comparisons' counts and the one least favourable to the claim.

    Args:
        parts: as `details` gives them.

    Returns:
        claim, definition, verdict; the numbers of comparisons that hold, are unclear and fail; and of the
        comparison with that verdict that is least favourable to the claim: its label (`weakest`), effect, low, high, unit, seeds, resampled, profile.
    """
    rows = []
    for (claim_id, definition), of_claim in parts.groupby(["claim", "definition"], sort=False):
        verdict = of_all(set(of_claim["verdict"]))
        deciding = of_claim[of_claim["verdict"] == verdict]
        margins = [part.margin(effect) for part, effect in zip(deciding["part"], deciding["effect"], strict=True)]
        weakest = deciding.iloc[0 if verdict == "not run" else int(np.argmin(margins))]
        counts = {name: int((of_claim["verdict"] == name).sum()) for name in ("holds", "unclear", "fails")}
        kept = ("effect", "low", "high", "unit", "seeds", "resampled", "profile")
        rows.append(
            {"claim": claim_id, "definition": definition, "verdict": verdict}
            | counts
            | {"weakest": weakest["comparison"]}
            | {column: weakest[column] for column in kept}
        )
    return pd.DataFrame(rows)


def of_all(verdicts: set[str]) -> str:
    """The verdict of a claim from those of its comparisons."""
    for decisive in ("not run", "fails", "unclear"):
        if decisive in verdicts:
            return decisive
    return "holds"


def of_medians(part: Comparison | Accuracy, medians: Mapping[Group, float]) -> tuple[float, str]:
    """Effect and verdict that published medians give one comparison; (NaN, `-`) without all of its medians.

    For the interval, each median's `READING_ERROR` enters independently: their logs' errors add up in quadrature.
    """
    if isinstance(part, Accuracy) or not all(group in medians for group in part.groups):
        return np.nan, "-"
    effect = float(np.exp(part.effect(np.log([medians[group] for group in part.groups]))))
    error = np.exp(READING_ERROR * len(part.groups) ** 0.5)
    return effect, part.verdict(effect / error, effect * error)

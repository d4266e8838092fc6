"""Claims of the papers made measurable, and the rules by which they are judged.

**Value.** A study gives one value per replicate and group: tidy rows of `profile`, `definition`, `model`, `quantity`, `dataset`,
`group`, `seed`, `value`. In studies 1 and 2 that is the logarithm of a group's median relative weight change over its layers
and epochs. `seed` names the replicate: a seed, an initialisation, a session, a picture. Layers are never replicates.

**Effect.** A weighted sum of cells, each the mean of one group's values over the replicates on one data set: a ratio is a
difference of two logarithms.

**Interval.** A value is group + run + e, where run is shared by all groups of one replicate. The variances of e and of run are
mean squares pooled over a network's data sets, with (groups - 1)(replicates - 1) and (replicates - 1) degrees of freedom from each.
Within a run its effect cancels: then the variance of a difference of two groups is twice that of e over the number of
replicates. Otherwise both mean squares enter, with Satterthwaite's degrees of freedom. With one replicate, the spread is that of
the nearest smaller profile that has two or more; without any there is no interval. What is counted in full is `exact`.

**Verdict of a comparison.** `equal`: the 90% interval lies within the margin, 10% for ratios and 0.05 for correlations and
shares. A claim of similarity then holds; a claim of a difference is refuted, however sure the small difference is. `holds`: the 95%
interval lies on the claimed side. `fails`: the interval at 95%, Bonferroni-corrected for the claim's comparisons, lies on
the other side. Else `unclear`; without runs that have learned, `not run`.

**Verdict of a claim.** `fails` if one comparison fails, or claims a difference and is `equal`; else `not run` if one was not
run; `holds` if all hold; else `unclear`. A sentence that says "in general" or "usually" is judged by the mean of its cells alone.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

DEFINITIONS = {"rwc": "Eq. 1", "rwc_elementwise": "elementwise"}
RATIO_MARGIN = float(np.log(1.1))
SHARE_MARGIN = 0.05  # of correlations and shares
INFINITY = float("inf")
VALUES = ["profile", "definition", "model", "quantity", "dataset", "group", "seed", "value"]


@dataclass(frozen=True)
class Cell:
    """One group of layers, or one kind of run, of a network on a data set; `quantity` is what was measured of it."""

    model: str
    dataset: str
    group: str
    quantity: str = "change"


@dataclass(frozen=True)
class Comparison:
    """The claim that a weighted sum of cells lies between `low` and `high`.

    Attributes:
        label: as tables show it.
        terms: weights and cells.
        low, high: the claimed range, of a `ratio` on the logarithmic scale.
        unit: `ratio` (the effect is a logarithm), `difference`, `value`, `points` or `spread` (the standard deviation of the
            first cell's values over its replicates).
        margin: below which a difference counts as none; None where the claim is about a level.
        similar: whether it claims that there is no difference.
        less: terms of a second sum; the effect is then |first| - |second|, and its interval the delta method's.
        exact: of values that are counted in full: no interval.
    """

    label: str
    terms: tuple[tuple[float, Cell], ...]
    low: float = 0.0
    high: float = INFINITY
    unit: str = "ratio"
    margin: float | None = RATIO_MARGIN
    similar: bool = False
    less: tuple[tuple[float, Cell], ...] = ()
    exact: bool = False

    @property
    def cells(self) -> list[Cell]:
        return [cell for _, cell in self.terms + self.less]


def ratio(a: Cell, b: Cell, label: str = "", **settings: object) -> Comparison:
    """The claim that `a` is above `b`."""
    if not label and a.dataset == b.dataset:
        label = f"{a.model} {a.dataset}: {a.group} / {b.group}"
    label = label or f"{a.model} {a.group}: {a.dataset} / {b.dataset}"
    return Comparison(label, ((1.0, a), (-1.0, b)), **settings)


def similar(a: Cell, b: Cell) -> Comparison:
    """The claim that `a` and `b` differ by less than 10%."""
    return ratio(a, b, low=-RATIO_MARGIN, high=RATIO_MARGIN, similar=True)


def farther(a: Comparison, b: Comparison, label: str) -> Comparison:
    """The claim that `a` is farther from 1 than `b`, on whichever side."""
    return Comparison(label, a.terms, less=b.terms)


def level(cell: Cell, label: str, low: float, high: float = INFINITY, **settings: object) -> Comparison:
    """The claim that a cell's own value lies between `low` and `high`."""
    return Comparison(label, ((1.0, cell),), low, high, **{"unit": "value", "margin": None} | settings)


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper and the comparisons that make it measurable.

    Attributes:
        id, text: as the scorecard names and states it.
        comparisons: all must hold, or with `in_general` their mean.
        definitions: under which it is judged.
        replicates: what its replicates are, in words.
        profile: the one profile at which it can be judged; any, if None.
        in_general: whether the sentence says "in general" or "usually".
    """

    id: str
    text: str
    comparisons: tuple[Comparison, ...]
    definitions: tuple[str, ...] = tuple(DEFINITIONS.values())
    replicates: str = "seeds"
    profile: str | None = None
    in_general: bool = False

    @property
    def runs(self) -> set[tuple[str, str]]:
        """The (model, data set) pairs that it needs."""
        return {(cell.model, cell.dataset) for part in self.comparisons for cell in part.cells}

    @property
    def mean(self) -> Comparison:
        """The mean of all comparisons, which are of one kind."""
        terms = [(weight / len(self.comparisons), cell) for part in self.comparisons for weight, cell in part.terms]
        return replace(self.comparisons[0], label="mean of the cells", terms=tuple(terms))


def about(claims: Sequence[Claim], models: Sequence[str]) -> list[Claim]:
    """The claims as far as they speak of nothing but these models; the text of one that is cut down says so."""
    kept = []
    for claim in claims:
        parts = tuple(part for part in claim.comparisons if {cell.model for cell in part.cells} <= set(models))
        note = "" if len(parts) == len(claim.comparisons) else f" (here: {', '.join(models)} alone)"
        kept += [replace(claim, comparisons=parts, text=claim.text + note)] if parts else []
    return kept


@dataclass(frozen=True)
class Spread:
    """Mean squares of one network's values within runs and of whole runs, their degrees of freedom, and where they are from."""

    within: float
    within_df: float
    runs: float
    runs_df: float
    profile: str = ""


NO_SPREAD = Spread(0.0, INFINITY, 0.0, INFINITY)  # of what is counted in full


def spread(tables: Iterable[pd.DataFrame], profile: str = "") -> Spread | None:
    """The spread pooled over data sets, or None without replicates.

    Args:
        tables: one per data set, (replicates, groups) values; incomplete and infinite rows do not count.
        profile: where they are from.
    """
    squares, free = np.zeros(2), np.zeros(2)
    for table in tables:
        x = table.to_numpy(float)
        x = x[np.isfinite(x).all(1)]
        if len(x) < 2:
            continue
        e = x - x.mean(0)
        run = e.mean(1, keepdims=True)
        squares += np.square(e - run).sum(), x.shape[1] * np.square(run).sum()
        free += (x.shape[1] - 1) * (len(x) - 1), len(x) - 1
    if not free[1]:
        return None
    within, runs = squares / np.maximum(free, 1)
    return Spread(within, free[0], runs, free[1], profile)


@dataclass(frozen=True)
class Interval:
    """An effect with its standard error (NaN without a spread) and degrees of freedom; `seeds` is the least number of replicates."""

    effect: float
    error: float
    df: float
    seeds: int
    spread: str = ""
    chi2: bool = False  # the effect is a standard deviation

    def bounds(self, share: float = 0.95) -> tuple[float, float]:
        """Lower and upper end of the interval that covers this share."""
        if self.chi2:
            tails = stats.chi2.ppf([(1 + share) / 2, (1 - share) / 2], self.df)
            return tuple(self.effect * np.sqrt(self.df / tails))
        half = stats.t.ppf((1 + share) / 2, self.df) * self.error
        return self.effect - half, self.effect + half


def interval(
    part: Comparison, tables: Mapping[tuple, pd.DataFrame], spreads: Mapping[tuple, Spread | None]
) -> Interval | None:
    """Effect and interval of one comparison; None where a cell has no value.

    Args:
        part: the comparison.
        tables: (replicates, groups) values by (model, quantity, dataset).
        spreads: by (model, quantity).
    """
    values = {cell: _values(tables, cell) for cell in part.cells}
    seeds = min((~np.isnan(x)).sum() if len(x) else 0 for x in values.values())
    if not seeds:
        return None
    if part.unit == "spread":
        sd = float(np.nanstd(values[part.cells[0]], ddof=1))
        return Interval(sd, np.nan, seeds - 1, seeds, chi2=True)
    first, second = (sum(weight * np.nanmean(values[cell]) for weight, cell in each) for each in (part.terms, part.less))
    terms, effect = part.terms, first
    if part.less:
        effect = abs(first) - abs(second)
        terms = [(np.sign(first) * weight, cell) for weight, cell in part.terms]
        terms += [(-np.sign(second) * weight, cell) for weight, cell in part.less]
    weights: dict[tuple, np.ndarray] = {}  # of every value, by table
    for weight, cell in terms:
        key, present = (cell.model, cell.quantity, cell.dataset), ~np.isnan(values[cell])
        of = weights.setdefault(key, np.zeros(tables[key].shape))
        of[:, tables[key].columns.get_loc(cell.group)] += weight * present / present.sum()
    pieces, known = [], NO_SPREAD
    for key, of in weights.items():
        known = NO_SPREAD if part.exact else spreads.get(key[:2])
        if known is None:
            return Interval(float(effect), np.nan, np.nan, seeds)
        whole = np.square(of.sum(1)).sum() / of.shape[1]
        pieces.append((known.within * max(np.square(of).sum() - whole, 0.0), known.within_df, key[:2], "within"))
        pieces.append((known.runs * whole, known.runs_df, key[:2], "runs"))
    return _pooled(float(effect), pieces, int(seeds), "exact" if part.exact else known.profile)


def _values(tables: Mapping[tuple, pd.DataFrame], cell: Cell) -> np.ndarray:
    table = tables.get((cell.model, cell.quantity, cell.dataset))
    return np.zeros(0) if table is None or cell.group not in table else table[cell.group].to_numpy(float)


def _pooled(effect: float, pieces: list[tuple], seeds: int, profile: str) -> Interval:
    """The interval whose variance is the sum of the pieces; those of the same mean square add up before they are squared."""
    sums: dict[tuple, list] = {}
    for variance, df, *square in pieces:
        sums.setdefault(tuple(square), [0.0, df])[0] += variance
    parts = [(variance, df) for variance, df in sums.values() if variance > 0]
    variance = sum(part for part, _ in parts)
    df = variance**2 / sum(part**2 / df for part, df in parts) if parts and parts[0][1] < INFINITY else INFINITY
    return Interval(effect, float(np.sqrt(variance)), df, seeds, profile)


def verdict(part: Comparison, found: Interval | None, comparisons: int = 1) -> tuple[str, float]:
    """The verdict of a comparison, one of so many of its claim, and by how much: the distance to the edge that decides it."""
    if found is None:
        return "not run", np.nan
    if part.margin is not None:
        low, high = found.bounds(0.9)
        inside = min(low + part.margin, part.margin - high)
        if inside > 0:
            return "holds" if part.similar else "equal", inside
    low, high = found.bounds(0.95)
    inside = min(low - part.low, part.high - high)
    if inside > 0 and not part.similar:
        return "holds", inside
    low, high = found.bounds(1 - 0.05 / comparisons)
    outside = max(part.low - high, low - part.high)
    if outside >= 0:
        return "fails", outside
    return "unclear", min(found.effect - part.low, part.high - found.effect)


def of_all(verdicts: Iterable[str]) -> str:
    """The verdict of a claim from those of its comparisons."""
    found = {"fails" if each == "equal" else each for each in verdicts}
    return next((each for each in ("fails", "not run", "unclear") if each in found), "holds")


def details(
    values: pd.DataFrame,
    claims: Sequence[Claim],
    profiles: Sequence[str],
    spreads: Mapping[str, Spread] | None = None,
) -> pd.DataFrame:
    """One row per claim, definition, profile and comparison: the one function that judges.

    Args:
        values: tidy rows, columns `VALUES`.
        claims: the claims.
        profiles: names from the smallest size to the largest.
        spreads: a given spread by profile, of values that have no replicates.

    Returns:
        claim, definition, profile, comparison, verdict, effect, low and high (95%, ratios as ratios), unit, seeds, spread
        (the profile that it is from, `exact`, or nothing), margin, decides (whether the claim's verdict rests on it).
    """
    tables = {
        key: rows.pivot(index="seed", columns="group", values="value")
        for key, rows in values.groupby(["profile", "definition", "model", "quantity", "dataset"], sort=False)
    }

    @functools.cache
    def pooled(definition: str, profile: str) -> dict[tuple, Spread | None]:
        found: dict[tuple, Spread | None] = {}
        for name in [profile, *reversed(profiles[: list(profiles).index(profile)])]:
            families: dict[tuple, list] = {}
            for (of, by, model, quantity, _), table in tables.items():
                if (of, by) == (name, definition):
                    families.setdefault((model, quantity), []).append(table)
            for family, parts in families.items():
                known = (spreads or {}).get(name) or spread(parts, name)
                if found.get(family) is None:
                    found[family] = known
        return found

    rows = []
    for claim in claims:
        parts = [*claim.comparisons, claim.mean] if claim.in_general else claim.comparisons
        for definition in claim.definitions:
            for profile in profiles:
                here = {key[2:]: table for key, table in tables.items() if key[:2] == (profile, definition)}
                for number, part in enumerate(parts):
                    mean = claim.in_general and number == len(claim.comparisons)
                    able = claim.profile in (None, profile)
                    found = interval(part, here, pooled(definition, profile)) if able else None
                    word, margin = verdict(part, found, 1 if mean else len(claim.comparisons))
                    low, high = found.bounds() if found else (np.nan, np.nan)
                    effect = found.effect if found else np.nan
                    if part.unit == "ratio":
                        effect, low, high = np.exp([effect, low, high])
                    rows.append((
                        claim.id, definition, profile, part.label, word, effect, low, high, part.unit,
                        found.seeds if found else 0, found.spread if found else "", margin, mean or not claim.in_general,
                    ))  # fmt: skip
    columns = [
        "claim", "definition", "profile", "comparison", "verdict", "effect", "low", "high", "unit", "seeds", "spread", "margin", "decides",
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def verdicts(parts: pd.DataFrame) -> pd.DataFrame:
    """The scorecard: one row per claim, definition and profile that can judge it, the largest first; one `not run` if none can.

    Args:
        parts: as `details` gives it.

    Returns:
        claim, definition, profile, verdict; the numbers of comparisons that hold, are equal, unclear, fail and were not run;
        and of that deciding comparison which is closest to another verdict: closest, effect, low, high, unit, seeds, spread.
    """
    rows = []
    for (claim, definition), both in parts.groupby(["claim", "definition"], sort=False):
        judged = []
        for profile, of in both.groupby("profile", sort=False):
            deciding = of[of["decides"]]
            word = of_all(deciding["verdict"])
            alike = deciding[[of_all([each]) == word for each in deciding["verdict"]]]
            closest = alike.loc[alike["margin"].idxmin()] if word != "not run" else alike.iloc[0]
            shown = of if deciding["verdict"].size == of["verdict"].size else of[~of["decides"]]
            counts = {name: int((shown["verdict"] == name).sum()) for name in COUNTED}
            kept = {name: closest[name] for name in ("effect", "low", "high", "unit", "seeds", "spread")}
            judged.append(
                {"claim": claim, "definition": definition, "profile": profile, "verdict": word}
                | counts
                | {"closest": closest["comparison"]}
                | kept
            )
        able = [row for row in judged[::-1] if row["verdict"] != "not run"]
        rows += able or [judged[-1] | {"profile": "-"}]
    return pd.DataFrame(rows)


COUNTED = ("holds", "equal", "unclear", "fails", "not run")

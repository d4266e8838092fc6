"""Claims of the papers made measurable, and the rules by which they are judged (docs/claims.md has them at length).

A study gives one *value* per replicate and group (`VALUES`): in studies 1 and 2 the logarithm of a group's median relative weight change. A
replicate (`seed`) is a seed, training, session or picture, never a layer. An *effect* is a weighted sum of cells, the means of groups.

*Interval.* A value is group + run + e, where run is shared by all groups of a replicate. The mean squares of e and of run are pooled over a
network's data sets, with (groups - 1)(replicates - 1) and (replicates - 1) degrees of freedom from each. Within a run its effect cancels;
otherwise both enter, with Satterthwaite's degrees of freedom. One replicate borrows the spread of the nearest smaller profile that has more.

*Verdict of a comparison.* `equal`: the 90% interval lies within the margin; this settles a claim of similarity, and refutes one of a difference. `holds`:
the 95% interval lies on the claimed side. `fails`: that at 95%, Bonferroni-corrected for the claim's comparisons, lies on the other. Else
`unclear`; without runs that have learned, `not run`. *Of a claim*: `fails` if one comparison fails, or claims a difference and is `equal`; else `not run`
if one was not; `holds` if all do; else `unclear`. A sentence that says "in general" or "usually" is judged by the mean of its cells alone.
"""

from __future__ import annotations

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
DETAILS = ["claim", "definition", "profile", "comparison", "verdict", "effect", "low", "high", "unit", "seeds", "spread",
           "margin", "decides"]  # fmt: skip
COUNTED = ("holds", "equal", "unclear", "fails", "not run")


@dataclass(frozen=True)
class Cell:
    """One group of layers, or one kind of run, of a network on a data set; `quantity` is what was measured of it."""

    model: str
    dataset: str
    group: str
    quantity: str = "change"

    table = property(lambda self: (self.model, self.quantity, self.dataset))


@dataclass(frozen=True)
class Comparison:
    """The claim that a weighted sum of cells (`terms`) lies between `low` and `high`, of a `ratio` on the logarithmic scale.

    Attributes:
        unit: `ratio` (of bounds), `difference`, `value`, `points` or `spread` (the standard deviation of a cell's values).
        margin: below which a difference counts as none; None where the claim is about a level. `similar`: that there is none.
        less: terms of a second sum; the effect is then |first| - |second|, and its interval the delta method's.
        exact: of values that are counted in full: no interval.
        error: standard error of a constant in the values, such as a number read off a figure; part of the interval.
        covers: the claim that the interval covers `low`, and no more.
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
    error: float = 0.0
    covers: bool = False

    cells = property(lambda self: [cell for _, cell in self.terms + self.less])


def ratio(a: Cell, b: Cell, label: str = "", **settings: object) -> Comparison:
    """The claim that `a` is above `b`."""
    within = f"{a.model} {a.dataset}: {a.group} / {b.group}"
    across = f"{a.model} {a.group}: {a.dataset} / {b.dataset}"
    return Comparison(label or (within if a.dataset == b.dataset else across), ((1.0, a), (-1.0, b)), **settings)


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
    """A sentence of a paper and comparisons that must all hold, or with `in_general` their mean; at one `profile` or at any."""

    id: str
    text: str
    comparisons: tuple[Comparison, ...]
    definitions: tuple[str, ...] = tuple(DEFINITIONS.values())
    replicates: str = "seeds"
    profile: str | None = None
    in_general: bool = False

    runs = property(lambda self: {(cell.model, cell.dataset) for part in self.comparisons for cell in part.cells})

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
    """Mean squares of one network's values within runs and of whole runs, degrees of freedom, and the profile they are from."""

    within: float
    within_df: float
    runs: float
    runs_df: float
    profile: str = ""

    squares = property(lambda self: ((self.within, self.within_df), (self.runs, self.runs_df)))


NO_SPREAD = Spread(0.0, INFINITY, 0.0, INFINITY, "exact")  # of what is counted in full


def spread(tables: Iterable[pd.DataFrame], profile: str = "") -> Spread | None:
    """The spread pooled over data sets of (replicates, groups) values, complete rows alone; None without replicates."""
    squares, free = np.zeros(2), np.zeros(2)
    for table in tables:
        x = table.to_numpy(float)
        x = x[np.isfinite(x).all(1)]
        if len(x) > 1:
            e = x - x.mean(0)
            run = e.mean(1, keepdims=True)
            squares += np.square(e - run).sum(), x.shape[1] * np.square(run).sum()
            free += (x.shape[1] - 1) * (len(x) - 1), len(x) - 1
    within, runs = squares / np.maximum(free, 1)
    return Spread(within, free[0], runs, free[1], profile) if free[1] else None


@dataclass(frozen=True)
class Interval:
    """An effect with standard error (NaN without a spread) and degrees of freedom; `seeds` is the least number of replicates."""

    effect: float
    error: float
    df: float
    seeds: int
    spread: str = ""

    def bounds(self, share: float = 0.95) -> tuple[float, float]:
        """Lower and upper end of the interval that covers this share."""
        if self.spread == "chi squared":  # the effect is a standard deviation
            return tuple(self.effect * np.sqrt(self.df / stats.chi2.ppf([(1 + share) / 2, (1 - share) / 2], self.df)))
        half = float(stats.t.ppf((1 + share) / 2, self.df)) * self.error
        return self.effect - half, self.effect + half


def interval(
    part: Comparison, tables: Mapping[tuple, pd.DataFrame], spreads: Mapping[tuple, Spread | None]
) -> Interval | None:
    """Effect and interval, from (replicates, groups) values by (model, quantity, dataset); None where a cell has no value."""
    tables = {key: tables.get(key, pd.DataFrame()) for key in {cell.table for cell in part.cells}}
    if len(tables) == 1:  # replicates that have all groups, so that the effect of the run cancels
        ((key, table),) = tables.items()
        tables = {key: table.dropna(subset=[cell.group for cell in part.cells if cell.group in table])}
    values = {cell: tables[cell.table].get(cell.group, pd.Series(dtype=float)).to_numpy(float) for cell in part.cells}
    seeds = min(int((~np.isnan(x)).sum()) for x in values.values())
    if seeds < (2 if part.unit == "spread" else 1):
        return None
    first = values[part.cells[0]]
    if part.unit == "spread":
        with np.errstate(invalid="ignore"):  # of infinite values
            return Interval(float(np.nanstd(first, ddof=1)), np.nan, seeds - 1, seeds, "chi squared")
    if part.exact:  # the replicate that speaks least for the claim
        worst = int(np.nanargmin(np.minimum(first - part.low, part.high - first)))
        return Interval(float(first[worst]), part.error, INFINITY, seeds, "reading error" if part.error else "exact")
    means = {cell: float(np.nanmean(x)) for cell, x in values.items()}
    sums = [sum(weight * means[cell] for weight, cell in terms) for terms in (part.terms, part.less)]
    effect, signs = (abs(sums[0]) - abs(sums[1]), np.sign(sums)) if part.less else (sums[0], (1, 1))
    weights: dict[tuple, np.ndarray] = {}  # of every value, by table
    for sign, terms in ((signs[0], part.terms), (-signs[1], part.less)):
        for weight, cell in terms:
            present, table = ~np.isnan(values[cell]), tables[cell.table]
            of_values = weights.setdefault(cell.table, np.zeros(table.shape))
            of_values[:, table.columns.get_loc(cell.group)] += sign * weight * present / present.sum()
    variances: dict[tuple, float] = {}  # by mean square
    used = {key: spreads.get(key[:2]) for key in weights}
    if None in used.values():
        return Interval(effect, np.nan, np.nan, seeds)
    for key, of_values in weights.items():
        whole = np.square(of_values.sum(1)).sum() / of_values.shape[1]
        alone = max(np.square(of_values).sum() - whole, 0.0)
        for (size, df), share in zip(used[key].squares, (alone, whole), strict=True):
            variances[size, df, key[0]] = variances.get((size, df, key[0]), 0.0) + size * share
    total = float(sum(variances.values())) + part.error**2
    lost = float(sum(variance**2 / df for (_, df, _), variance in variances.items() if variance))
    names = ", ".join(dict.fromkeys(known.profile for known in used.values()))
    return Interval(effect, total**0.5, total**2 / lost if lost else INFINITY, seeds, names)


def verdict(part: Comparison, estimate: Interval | None, comparisons: int = 1) -> tuple[str, float]:
    """The verdict of a comparison, one of so many of its claim, and by how much: the distance to the edge that decides it."""
    if estimate is None:
        return "not run", np.nan
    if part.covers:
        (low, high), (lowest, highest) = estimate.bounds(0.95), estimate.bounds(1 - 0.05 / comparisons)
        reach, beyond = min(part.low - low, high - part.low), max(part.low - highest, lowest - part.low)
        return ("holds", reach) if reach >= 0 else ("fails", beyond) if beyond > 0 else ("unclear", reach)
    low, high = estimate.bounds(0.9)
    inside = -INFINITY if part.margin is None else min(low + part.margin, part.margin - high)
    if inside > 0:
        return "holds" if part.similar else "equal", inside
    low, high = estimate.bounds(0.95)
    inside = min(low - part.low, part.high - high)
    if inside >= 0 and not part.similar:
        return "holds", inside
    low, high = estimate.bounds(1 - 0.05 / comparisons)
    outside = max(part.low - high, low - part.high)
    return (
        ("fails", outside) if outside > 0 else ("unclear", min(estimate.effect - part.low, part.high - estimate.effect))
    )


def of_all(verdicts: Iterable[str]) -> str:
    """The verdict of a claim from those of its comparisons."""
    counted = {"fails" if each == "equal" else each for each in verdicts}
    return next((each for each in ("fails", "not run", "unclear") if each in counted), "holds")


def details(
    values: pd.DataFrame, claims: Sequence[Claim], profiles: Sequence[str], known: Spread | None = None
) -> pd.DataFrame:
    """One row per claim, definition, profile and comparison; columns as below, low and high at 95%, ratios as ratios.

    `values` are tidy rows (`VALUES`), `profiles` the sizes from the smallest on, `known` is the spread of values without replicates.
    """
    tables: dict[tuple, dict] = {}
    for (profile, definition, *key), rows in values.groupby(VALUES[:5], sort=False):
        wide = rows.pivot(index="seed", columns="group", values="value")
        tables.setdefault((profile, definition), {})[tuple(key)] = wide
    spreads: dict[tuple, dict] = {}  # of the nearest profile, from the smallest on
    for definition in {name for claim in claims for name in claim.definitions}:
        nearest: dict[tuple, Spread | None] = {}
        for profile in profiles:
            here = tables.get((profile, definition), {})
            for family in {key[:2] for key in here}:
                pooled = known or spread((table for key, table in here.items() if key[:2] == family), profile)
                nearest = nearest | {family: pooled or nearest.get(family)}
            spreads[profile, definition] = nearest
    rows = []
    for claim in claims:
        parts = [*claim.comparisons, claim.mean] if claim.in_general else claim.comparisons
        for key in ((profile, definition) for definition in claim.definitions for profile in profiles):
            for number, part in enumerate(parts):
                alone = claim.in_general and number == len(claim.comparisons)
                able = claim.profile in (None, key[0])
                each = interval(part, tables.get(key, {}), spreads[key]) if able else None
                word, margin = verdict(part, each, 1 if alone else len(claim.comparisons))
                estimates = (each.effect, *each.bounds()) if each else (np.nan,) * 3
                effect, low, high = np.exp(estimates) if part.unit == "ratio" else estimates
                row = (each.seeds, each.spread) if each else (0, "")
                rows.append((
                    claim.id, key[1], key[0], part.label, word, effect, low, high, part.unit, *row, margin, alone or not claim.in_general,
                ))  # fmt: skip
    return pd.DataFrame(rows, columns=DETAILS)


def verdicts(parts: pd.DataFrame) -> pd.DataFrame:
    """The scorecard of `details`: a row per claim, definition and profile that can judge it, the largest first; one `not run` if none can.

    Columns: claim, definition, profile, verdict; the numbers of comparisons with each verdict (`COUNTED`); and of the deciding
    comparison with the smallest margin in the verdict's direction: closest, effect, low, high, unit, seeds, spread.
    """
    rows = []
    for (claim, definition), both in parts.groupby(["claim", "definition"], sort=False):
        by_profile = []
        for profile, comparisons in both.groupby("profile", sort=False):
            deciding, cells = comparisons[comparisons["decides"]], comparisons[~comparisons["decides"]]
            word = of_all(deciding["verdict"])
            alike = deciding[[of_all([each]) == word for each in deciding["verdict"]]]
            closest = alike.iloc[0 if word == "not run" else int(alike["margin"].fillna(INFINITY).argmin())]
            counts = (
                (cells if len(cells) else comparisons)["verdict"]
                .value_counts()
                .reindex(COUNTED, fill_value=0)
                .to_dict()
            )
            by_profile.append(
                {"claim": claim, "definition": definition, "profile": profile, "verdict": word, **counts, "closest": closest["comparison"]}
                | closest[["effect", "low", "high", "unit", "seeds", "spread"]].to_dict()
            )  # fmt: skip
        rows += [row for row in by_profile[::-1] if row["verdict"] != "not run"] or [by_profile[-1] | {"profile": "-"}]
    return pd.DataFrame(rows)

"""Claims of the papers made measurable: comparisons of mean relative weight change, and their verdicts.

The quantity compared is a group's mean RWC: over its layers, and over all epochs after the first, of the finite values.
A comparison's effect is the ratio of two such means, averaged over seeds on the log scale; its interval is the 95%
percentile bootstrap over seeds, or over the layers of both groups when there is one seed (the table says which). With two
or three seeds a bootstrap can give little more than their range: read such an interval as that.

Verdicts. A comparison `holds` when its whole interval lies on the claimed side, `fails` when all of it lies on the
other, and is `unclear` otherwise. A claim `holds` when all its comparisons hold, `fails` when one fails, is `not run`
when a run that it needs is missing, and `unclear` otherwise. Its effect is that of its weakest comparison.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

DEFINITIONS = {"rwc": "Eq. 1", "rwc_elementwise": "elementwise"}
RESAMPLES = 2000
_INFINITY = float("inf")


@dataclass(frozen=True)
class Group:
    """The layers of one group of one model trained on one data set."""

    model: str
    dataset: str
    group: str


@dataclass(frozen=True)
class Comparison:
    """The claim that mean RWC of `a` over mean RWC of `b` lies between `low` and `high` (ratios)."""

    a: Group
    b: Group
    low: float = 1.0
    high: float = _INFINITY

    @property
    def label(self) -> str:
        a, b = (self.a.group, self.b.group) if self.a.dataset == self.b.dataset else (self.a.dataset, self.b.dataset)
        return (
            f"{a} / {b}"
            if self.a.group != self.b.group or self.a.dataset == self.b.dataset
            else f"{a} / {b}, {self.a.group}"
        )

    def verdict(self, low: float, high: float) -> str:
        if self.low < low and high < self.high:
            return "holds"
        return "fails" if high <= self.low or low >= self.high else "unclear"

    def margin(self, effect: float) -> float:
        """Distance on the log scale from the effect to the nearer edge of the claimed range; negative outside it."""
        return min(np.log(effect / self.low), np.log(self.high / effect) if self.high < _INFINITY else _INFINITY)


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper and the comparisons that make it measurable."""

    id: str
    text: str
    comparisons: tuple[Comparison, ...]


def rising(claim_id: str, text: str, model: str, dataset: str, *groups: str) -> Claim:
    """The claim that mean RWC rises from each of `groups` to the next."""
    named = [Group(model, dataset, group) for group in groups]
    return Claim(claim_id, text, tuple(Comparison(b, a) for a, b in itertools.pairwise(named)))


def _layer_means(layers: pd.DataFrame, group: Group, metric: str) -> pd.DataFrame:
    """(seeds, layers) means over the epochs after the first, finite values only."""
    of_group = (
        (layers["model"] == group.model) & (layers["dataset"] == group.dataset) & (layers["group"] == group.group)
    )
    rows = layers[of_group & (layers["epoch"] > 1)]
    return rows.assign(value=rows[metric].where(np.isfinite(rows[metric]))).pivot_table("value", "seed", "layer")


def compare(layers: pd.DataFrame, comparison: Comparison, metric: str) -> dict:
    """Effect, interval and verdict of one comparison.

    Args:
        layers: tidy table of one profile with columns model, dataset, seed, group, layer, epoch and `metric`.
        metric: `rwc` or `rwc_elementwise`.

    Returns:
        effect, low, high (ratios; NaN if not run), verdict, seeds (number), resampled (`seeds`, `layers` or `-`).
    """
    a, b = (_layer_means(layers, group, metric) for group in (comparison.a, comparison.b))
    seeds = a.index.intersection(b.index)
    if not len(seeds):
        return {"effect": np.nan, "low": np.nan, "high": np.nan, "verdict": "not run", "seeds": 0, "resampled": "-"}
    same_layers = list(a.columns) == list(b.columns)
    a, b, rng = a.loc[seeds].to_numpy(), b.loc[seeds].to_numpy(), np.random.default_rng(0)
    ratios = np.log(a.mean(1) / b.mean(1))
    if len(seeds) > 1:
        drawn = ratios[rng.integers(0, len(seeds), (RESAMPLES, len(seeds)))].mean(1)
    else:
        rows = [rng.integers(0, x.shape[1], (RESAMPLES, x.shape[1])) for x in (a, b)]
        if same_layers:  # of one group on two data sets: drawn in pairs
            rows[1] = rows[0]
        means = [x[0][drawn].mean(1) for x, drawn in zip((a, b), rows, strict=True)]
        drawn = np.log(means[0] / means[1])
    low, high = np.exp(np.quantile(drawn, [0.025, 0.975]))
    return {
        "effect": float(np.exp(ratios.mean())), "low": float(low), "high": float(high),
        "verdict": comparison.verdict(low, high), "seeds": len(seeds), "resampled": "seeds" if len(seeds) > 1 else "layers",
    }  # fmt: skip


def details(layers: pd.DataFrame, claims: Sequence[Claim], profiles: Sequence[str]) -> pd.DataFrame:
    """One row per claim, definition and comparison.

    Args:
        layers: tidy table as in `compare`, with a column `profile`.
        claims: the claims.
        profiles: names from the least to the most telling; each claim is judged on the last one that has all its runs.
    """
    rows = []
    for claim in claims:
        groups = {group for comparison in claim.comparisons for group in (comparison.a, comparison.b)}
        needed = {(group.model, group.dataset) for group in groups}
        able = [p for p in profiles if needed <= set(zip(*_columns(layers[layers["profile"] == p]), strict=True))]
        of_profile = layers[layers["profile"] == able[-1]] if able else layers.iloc[:0]
        for metric, definition in DEFINITIONS.items():
            for comparison in claim.comparisons:
                rows.append(
                    {"claim": claim.id, "definition": definition, "comparison": comparison.label}
                    | compare(of_profile, comparison, metric)
                    | {"profile": able[-1] if able else "-", "part": comparison}
                )
    return pd.DataFrame(rows)


def _columns(layers: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    return layers["model"], layers["dataset"]


def scorecard(layers: pd.DataFrame, claims: Sequence[Claim], profiles: Sequence[str]) -> pd.DataFrame:
    """One row per claim and definition: verdict, and effect and interval of the claim's weakest comparison.

    Arguments as in `details`.
    """
    rows = []
    for (claim_id, definition), parts in details(layers, claims, profiles).groupby(["claim", "definition"], sort=False):
        verdicts = set(parts["verdict"])
        if "not run" in verdicts:
            verdict, weakest = "not run", parts.iloc[0]
        else:
            verdict = "fails" if "fails" in verdicts else "holds" if verdicts == {"holds"} else "unclear"
            margins = [part.margin(effect) for part, effect in zip(parts["part"], parts["effect"], strict=True)]
            weakest = parts.iloc[int(np.argmin(margins))]
        rows.append({
            "claim": claim_id, "definition": definition, "verdict": verdict, "weakest": weakest["comparison"],
            "effect": weakest["effect"], "low": weakest["low"], "high": weakest["high"], "seeds": weakest["seeds"],
            "resampled": weakest["resampled"], "profile": weakest["profile"],
        })  # fmt: skip
    return pd.DataFrame(rows)


_HEAD = ["claim", "statement", "definition", "verdict", "weakest comparison", "ratio [95%]", "interval", "profile"]


def _cells(table: pd.DataFrame) -> list[list[str]]:
    rows = []
    for row in table.itertuples():
        interval = f"{row.effect:.2f} [{row.low:.2f}, {row.high:.2f}]" if row.seeds else "-"
        over = f"{row.seeds} {'seed' if row.seeds == 1 else 'seeds'}, over {row.resampled}" if row.seeds else "-"
        rows.append([row.claim, row.text, row.definition, row.verdict, row.weakest, interval, over, row.profile])
    return rows


def to_text(table: pd.DataFrame) -> str:
    """A scorecard with the column `text` (the claims' sentences) as aligned text."""
    rows = [_HEAD, *_cells(table)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def to_markdown(table: pd.DataFrame) -> str:
    """The same as a Markdown table."""
    rows = [_HEAD, ["---"] * len(_HEAD), *_cells(table)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)

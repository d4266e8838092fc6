"""What claims are made of: comparisons of groups of layers, or of whole runs, each with its claimed range.

Quantities are means: of a group's layers over all epochs after the first, of the finite values. A `Level` is judged against
a fixed range, a `Difference` on the linear scale, all else by ratios.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_INFINITY = float("inf")


@dataclass(frozen=True)
class Group:
    """The layers of one group of one model trained on one data set; of them the `early`, `middle` or `late` third.

    Thirds are by depth, as equal as can be; every layer lies in one.
    """

    model: str
    dataset: str
    group: str
    third: str = ""

    @property
    def name(self) -> str:
        """Group and third in words."""
        return f"{self.third} {self.group}".strip()


@dataclass(frozen=True)
class Comparison:
    """The claim that mean RWC of `a` over mean RWC of `b` lies between `low` and `high` (ratios)."""

    a: Group
    b: Group
    low: float = 1.0
    high: float = _INFINITY
    over: str = "seeds"
    unit = "ratio"
    scales = (np.log, np.exp)  # means are compared on the first's scale, and brought back by the second
    weighted = False  # by the layers' numbers of weights

    @property
    def groups(self) -> tuple[Group, ...]:
        return self.a, self.b

    @property
    def runs(self) -> list[tuple[str, str]]:
        """The (model, data set) pairs of its groups."""
        return [(group.model, group.dataset) for group in self.groups]

    @property
    def label(self) -> str:
        if self.a.dataset == self.b.dataset:
            return f"{self.a.name} / {self.b.name}"
        return f"{self.a.dataset} / {self.b.dataset}, {self.a.name}"

    def effect(self, logs: np.ndarray) -> np.ndarray:
        """Effect of the means (groups, ...), both on the comparison's scale."""
        return logs[0] - logs[1]

    def verdict(self, low: float, high: float) -> str:
        return _verdict(low, high, self.low, self.high)

    def margin(self, effect: float) -> float:
        """Distance on the log scale from the effect to the nearer edge of the claimed range; negative outside it."""
        return min(np.log(effect / self.low), np.log(self.high / effect) if self.high < _INFINITY else _INFINITY)


@dataclass(frozen=True, kw_only=True)
class Nearer(Comparison):
    """The claim that `a` over `b` lies nearer to 1 than `c` over `d`.

    The effect is the one ratio's distance from 1 over the other's, both taken upwards: max(c/d, d/c) / max(a/b, b/a).
    """

    c: Group
    d: Group

    @property
    def groups(self) -> tuple[Group, ...]:
        return self.a, self.b, self.c, self.d

    @property
    def label(self) -> str:
        return f"{self.a.name} / {self.b.name} nearer to 1 than on {self.c.dataset}"

    def effect(self, logs: np.ndarray) -> np.ndarray:
        return abs(logs[2] - logs[3]) - abs(logs[0] - logs[1])


@dataclass(frozen=True, kw_only=True)
class Difference(Comparison):
    """The claim that `a` less `b` lies between `low` and `high`, for quantities that can be negative."""

    low: float = 0.0
    unit = "difference"
    scales = (np.asarray, np.asarray)

    @property
    def label(self) -> str:
        return f"{self.a.name} - {self.b.name}"

    def margin(self, effect: float) -> float:
        """Distance from the effect to the nearer edge of the claimed range; negative outside it."""
        return min(effect - self.low, self.high - effect)


@dataclass(frozen=True, kw_only=True)
class Level(Difference):
    """The claim that `a` itself lies between `low` and `high`; with `weighted`, the mean over weights, not over layers."""

    b: Group | None = None
    weighted: bool = False
    unit = "value"

    @property
    def groups(self) -> tuple[Group, ...]:
        return (self.a,)

    @property
    def label(self) -> str:
        return self.a.name

    def effect(self, means: np.ndarray) -> np.ndarray:
        return means[0]


@dataclass(frozen=True)
class Accuracy:
    """The claim that an accuracy (percent, last epoch; by default test top-1) lies within points of the published value."""

    model: str
    dataset: str
    published: float
    within: float = 2.0
    kind: str = "test_top1"
    unit = "points"

    @property
    def runs(self) -> list[tuple[str, str]]:
        return [(self.model, self.dataset)]

    @property
    def label(self) -> str:
        return f"{self.kind.replace('_top', ' top-')} - published"

    def verdict(self, low: float, high: float) -> str:
        return _verdict(low, high, -self.within, self.within)

    def margin(self, effect: float) -> float:
        return self.within - abs(effect)


def _verdict(low: float, high: float, claimed_low: float, claimed_high: float) -> str:
    """The rule of the module's docstring for one interval and one claimed range."""
    if claimed_low < low and high < claimed_high:
        return "holds"
    return "fails" if high <= claimed_low or low >= claimed_high else "unclear"

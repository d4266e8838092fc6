"""How sure are the verdicts? Coverage of the 95% interval by simulation, and how often equal groups are found equal.

The first table simulates runs of four groups on four data sets with no difference between any of them, under an effect of the
whole run as large as that of its groups, with normal values and with heavy tails (Student's t with 3 degrees of freedom). The second takes
the spread of the archive's runs of study 1 and simulates how often two groups that do not differ are found `equal`, that is
within 10%, by the number of seeds.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from rwclib import claims
from rwclib.analysis.claims import Cell, Comparison, ratio
from rwclib.studies.layerwise import STUDY
from rwclib.studies.study import learned

GROUPS, SETS = 4, 4
PAIRS = tuple(
    ratio(Cell("m", f"d{i % SETS}", f"g{a}"), Cell("m", f"d{i % SETS}", f"g{b}"))
    for i, (a, b) in enumerate(itertools.permutations(range(GROUPS), 2))
)  # twelve, within runs
ACROSS = tuple(ratio(Cell("m", f"d{a}", "g0"), Cell("m", f"d{b}", "g0")) for a, b in ((0, 1), (2, 3)))


def worlds(
    count: int, seeds: int, sigma: float, tail: str = "normal", groups: int = GROUPS, sets: int = SETS
) -> Iterator[tuple[dict, dict]]:
    """Tables and spread of simulated runs, as `claims.interval` takes them, without any difference between groups."""
    rng = np.random.default_rng(0)
    draw = rng.standard_normal if tail == "normal" else lambda size: rng.standard_t(3, size) / np.sqrt(3)
    for _ in range(count):
        values = sigma * (draw((sets, seeds, groups)) + draw((sets, seeds, 1)))
        tables = {
            ("m", "change", f"d{i}"): pd.DataFrame(x, columns=[f"g{j}" for j in range(groups)])
            for i, x in enumerate(values)
        }
        yield tables, {("m", "change"): claims.spread(tables.values())}


def coverage(count: int, within: Sequence[Comparison] = PAIRS[::3]) -> pd.DataFrame:
    """Share of 95% intervals that hold the truth: a row per number of seeds and tail, within runs and across data sets."""
    rows = {}
    for seeds, tail in itertools.product((2, 3, 4, 5), ("normal", "heavy")):
        hits = []
        for world in worlds(count, seeds, 1.0, tail):
            bounds = [claims.interval(part, *world).bounds() for part in (*within, *ACROSS)]
            hits.append([low <= 0 <= high for low, high in bounds])
        share = np.mean(hits, 0)
        rows[seeds, tail] = share[: len(within)].mean(), share[len(within) :].mean()
    return pd.DataFrame(rows, ["within runs", "across data sets"]).T


def found_equal(sigma: float, seeds: int, count: int, groups: int = GROUPS, sets: int = SETS) -> float:
    """How often two groups that do not differ are found equal."""
    each = worlds(count, seeds, sigma, groups=groups, sets=sets)
    return float(np.mean([claims.verdict(PAIRS[0], claims.interval(PAIRS[0], *world))[0] == "equal" for world in each]))


def false_failures(seeds: int, count: int) -> float:
    """How often at least one of twelve comparisons that do not differ is found on the wrong side."""
    words = (
        [claims.verdict(part, claims.interval(part, *world), len(PAIRS))[0] for part in PAIRS]
        for world in worlds(count, seeds, 0.3)
    )
    return float(np.mean(["fails" in each for each in words]))


def power(count: int, seeds: Sequence[int] = (2, 3, 5)) -> pd.DataFrame:
    """Spread of study 1's runs by network, profile and definition, and how often equal groups would be found equal."""
    values = STUDY.values(learned(STUDY.tables())[0]).query("quantity == 'change'")
    rows = []
    for (model, profile, definition), of in values.groupby(["model", "profile", "definition"], sort=False):
        tables = [table.pivot(index="seed", columns="group", values="value") for _, table in of.groupby("dataset")]
        known, groups = claims.spread(tables), tables[0].shape[1]
        sigma = known.within**0.5
        row = {"model": model, "profile": profile, "definition": definition, "data sets": len(tables), "sigma": sigma}
        rows.append(row | {f"{n} seeds": found_equal(sigma, n, count, groups, len(tables)) for n in seeds})
    return pd.DataFrame(rows).sort_values(["profile", "model"], ascending=[False, True])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000, help="simulated worlds per row")
    count = parser.parse_args().count
    print(coverage(count).round(3).to_string(), end="\n\n")
    print({f"{n} seeds": round(false_failures(n, count // 4), 3) for n in (2, 3, 4, 5)}, end="\n\n")
    print(power(count).round(3).to_string(index=False))


if __name__ == "__main__":
    main()

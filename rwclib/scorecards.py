"""A scorecard as text and as Markdown.

Both take a table as `rwclib.studies.scoring.verdicts` gives it: one row per claim, definition and profile that can judge it, the
largest first.
"""

from __future__ import annotations

import html

import numpy as np
import pandas as pd

from rwclib.claims import COUNTED

VERDICTS = {"holds": "hold", "unclear": "unclear", "fails": "fail", "not run": "not run"}  # and their plural


def counts(row: pd.Series) -> str:
    """How many of a claim's comparisons have which verdict, in words; of a single one nothing."""
    parts = [f"{row[name]} {name if row[name] == 1 else VERDICTS.get(name, name)}" for name in COUNTED if row[name]]
    return ", ".join(parts) if sum(row[name] for name in COUNTED) > 1 else ""


def closest(row: pd.Series) -> str:
    """The deciding comparison that is closest to another verdict: its label, effect and interval."""
    sign, unit = ("+", " points") if row["unit"] == "points" else ("", "")
    bounds = f" [{row['low']:{sign}.2f}, {row['high']:{sign}.2f}]" if row["high"] > row["low"] else ""
    return f"{row['closest']} {row['effect']:{sign}.2f}{bounds}{unit}"


def finding(row: pd.Series) -> str:
    """Verdict, counts and closest comparison of one claim under one definition at one profile."""
    if row["verdict"] == "not run":
        return f"not run ({row['reason']})" if row["reason"] else "not run"
    return f"{row['verdict']} ({counts(row)})".replace(" ()", "") + f": {closest(row)}"


def circumstances(row: pd.Series) -> str:
    """Replicates and spread, training accuracies and data sets behind one row."""
    low, high = row["train_top1"]
    accuracy = "" if np.isnan(low) else f"{low:.0f}%" if round(low) == round(high) else f"{low:.0f}-{high:.0f}%"
    sets = ", ".join(dict.fromkeys(copy.partition(":")[0] for copy in row["data"]))
    return "; ".join(part for part in (basis(row), accuracy and f"training top-1 {accuracy}", sets) if part)


def basis(row: pd.Series) -> str:
    """What an interval rests on, in words."""
    if row["spread"] == "exact":
        return "exact, no interval"
    count = f"{row['seeds']} {row['replicates'].removesuffix('s') if row['seeds'] == 1 else row['replicates']}"
    if row["spread"] not in ("", row["profile"]):
        return f"{count}, spread of `{row['spread']}`"
    return count if np.isfinite(row["high"]) else f"{count}, no interval"


def families(table: pd.DataFrame) -> list[tuple[list[str], list[tuple[str, list[pd.DataFrame]]]]]:
    """The claims by the set of their definitions (`finding` where these are no matter): its names, each claim's id and, for each
    definition, its rows.
    """
    found: dict[tuple[str, ...], list] = {}
    for claim_id, of in table.groupby("claim", sort=False):
        by_definition = dict(list(of.groupby("definition", sort=False)))
        names = tuple("finding" if name == "-" else name for name in by_definition)
        found.setdefault(names, []).append((claim_id, list(by_definition.values())))
    return [(list(names), claims) for names, claims in found.items()]


def sizes(by_definition: list[pd.DataFrame]) -> list[pd.Series]:
    """One row per profile at which a claim is judged under any definition."""
    rows = pd.concat(by_definition)
    return [row for _, row in rows[rows["verdict"] != "not run"].drop_duplicates("profile").iterrows()]


def tallies(table: pd.DataFrame) -> list[str]:
    """Which claims have which verdict at the largest size that judges them: `Eq. 1: 2 hold (L1, L2), 1 fails (L3)`."""
    lines = []
    largest = table.drop_duplicates(["claim", "definition"])
    for name, of in largest.groupby(largest["definition"].replace("-", "finding"), sort=False):
        parts = []
        for verdict, plural in VERDICTS.items():
            ids = list(of.loc[of["verdict"] == verdict, "claim"])
            parts += [f"{len(ids)} {verdict if len(ids) == 1 else plural} ({', '.join(ids)})"] if ids else []
        lines.append(f"{name}: {', '.join(parts)}")
    return lines


def copies(table: pd.DataFrame) -> list[str]:
    """What the table's data sets are copies of, one line each."""
    return sorted({copy for copies in table["data"] for copy in copies})


def to_text(table: pd.DataFrame) -> str:
    """A scorecard as text, a few lines to a claim; at the end which claims have which verdict, and the data copies."""
    lines = []
    width = table["definition"].replace("-", "finding").map(len).max() + 1
    for names, claims in families(table):
        for claim_id, by_definition in claims:
            lines.append(f"{claim_id:<4}{by_definition[0].iloc[0]['text']}")
            for size in sizes(by_definition):
                lines.append(f"    {size['profile']}: {circumstances(size)}")
                for name, of in zip(names, by_definition, strict=True):
                    rows = of[of["profile"] == size["profile"]]
                    lines += [f"      {name:<{width}}{finding(row)}" for _, row in rows.iterrows()]
            for name, of in zip(names, by_definition, strict=True):
                if of.iloc[0]["verdict"] == "not run":
                    lines.append(f"      {name:<{width}}{finding(of.iloc[0])}")
    return "\n".join([*lines, "", *tallies(table), "", *copies(table)]).rstrip()


def to_markdown(table: pd.DataFrame) -> str:
    """The same in Markdown: which claims have which verdict, a table to each set of definitions (one for what is no matter of
    these) with one row to a claim, and a list of the data copies.
    """
    lead = "By definition or reading (*finding*: where there is only one), each claim at the largest size that can judge it:"
    lines = [lead, "", *(f"- {line}" for line in tallies(table)), "", "<details><summary>Every claim</summary>", ""]
    for names, claims in families(table):
        rows = [["claim", "statement", *names, "runs"]]
        rows.append(["---"] * len(rows[0]))
        for claim_id, by_definition in claims:
            cells = [[_at(row, finding(row)) for _, row in of.iterrows()] for of in by_definition]
            runs = [_at(row, circumstances(row)) for row in sizes(by_definition)] or ["-"]
            rows.append([claim_id, by_definition[0].iloc[0]["text"], *map("<br>".join, [*cells, runs])])
        lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows] + [""]
    lines += ["</details>", ""]
    return "\n".join([*lines, *(f"- Data copy: {html.escape(copy, quote=False)}" for copy in copies(table))]).rstrip()


def _at(row: pd.Series, words: str) -> str:
    return words if row["verdict"] == "not run" else f"`{row['profile']}`: {words}"

"""A scorecard as text and as Markdown, from a table of `rwclib.studies.study.Study.verdicts`: one row per claim, definition and profile."""

from __future__ import annotations

import html
from collections.abc import Callable

import numpy as np
import pandas as pd

from rwclib.analysis.claims import COUNTED

PLURALS = {"holds": "hold", "unclear": "unclear", "fails": "fail", "not run": "not run"}


def _number(count: int, verdict: str) -> str:
    return f"{count} {verdict if count == 1 else PLURALS.get(verdict, verdict)}"


def counts(row: pd.Series) -> str:
    """How many of a claim's comparisons have which verdict, in words; of a single one nothing."""
    several = sum(row[name] for name in COUNTED) > 1
    return ", ".join(_number(row[name], name) for name in COUNTED if row[name] and several)


def closest(row: pd.Series) -> str:
    """The deciding comparison that is closest to another verdict: its label, effect and interval."""
    sign, unit = ("+", " points") if row["unit"] == "points" else ("", "")
    bounds = f" [{row['low']:{sign}.2f}, {row['high']:{sign}.2f}]" if row["high"] > row["low"] else ""
    return f"{row['closest']} {row['effect']:{sign}.2f}{bounds}{unit}"


def finding(row: pd.Series) -> str:
    """Verdict, counts and closest comparison of one claim under one definition at one profile."""
    if row["verdict"] == "not run":
        return f"not run ({row['reason']})"
    return f"{row['verdict']} ({counts(row)})".replace(" ()", "") + f": {closest(row)}"


def basis(row: pd.Series) -> str:
    """What an interval rests on, in words."""
    if row["spread"] == "exact":
        return "exact, no interval"
    count = f"{row['seeds']} {row['replicates'].removesuffix('s') if row['seeds'] == 1 else row['replicates']}"
    borrowed = [f"`{name}`" for name in row["spread"].split(", ") if name not in ("", "chi squared", row["profile"])]
    return count + (
        f", spread of {', '.join(borrowed)}" if borrowed else "" if row["high"] == row["high"] else ", no interval"
    )


def circumstances(row: pd.Series) -> str:
    """Replicates and spread, training accuracies and data sets behind one row."""
    low, high = row["train_top1"]
    accuracy = "" if np.isnan(low) else f"{low:.0f}%" if round(low) == round(high) else f"{low:.0f}-{high:.0f}%"
    sets = ", ".join(dict.fromkeys(copy.partition(":")[0] for copy in row["data"]))
    return "; ".join(part for part in (basis(row), accuracy and f"training top-1 {accuracy}", sets) if part)


def families(table: pd.DataFrame) -> list[tuple[list[str], list[tuple[str, list[pd.DataFrame]]]]]:
    """The claims by the set of their definitions: its names, each claim's id and its rows by definition."""
    by_names: dict[tuple[str, ...], list] = {}
    for claim_id, rows_of_claim in table.replace({"definition": {"-": "finding"}}).groupby("claim", sort=False):
        names, rows = zip(*rows_of_claim.groupby("definition", sort=False), strict=True)
        by_names.setdefault(names, []).append((claim_id, list(rows)))
    return [(list(names), claims) for names, claims in by_names.items()]


def sizes(by_definition: list[pd.DataFrame]) -> pd.DataFrame:
    """One row per profile at which a claim is judged under any definition."""
    return pd.concat(by_definition).query("verdict != 'not run'").drop_duplicates("profile")


def tallies(table: pd.DataFrame) -> list[str]:
    """Which claims have which verdict at the largest size that judges them: `Eq. 1: 2 hold (L1, L2), 1 fails (L3)`."""
    largest, lines = table.drop_duplicates(["claim", "definition"]), []
    for name, rows in largest.groupby(largest["definition"].replace("-", "finding"), sort=False):
        ids = rows.groupby("verdict")["claim"].agg(list).reindex(PLURALS).dropna()
        parts = [f"{_number(len(each), verdict)} ({', '.join(each)})" for verdict, each in ids.items()]
        lines.append(f"{name}: {', '.join(parts)}")
    return lines


def copies(table: pd.DataFrame) -> list[str]:
    """What the table's data sets are copies of, one line each."""
    return sorted({copy for copies in table["data"] for copy in copies})


def to_text(table: pd.DataFrame) -> str:
    """A scorecard as text, a few lines to a claim and size; at the end which claims have which verdict, and the data copies."""
    names = table["definition"].replace("-", "finding")
    width, lines = names.map(len).max() + 1, []
    for claim_id, rows in table.assign(name=names).groupby("claim", sort=False):
        lines.append(f"{claim_id:<4}{rows.iloc[0]['text']}")
        for profile, rows_of_profile in rows.groupby("profile", sort=False):
            lines += [f"    {profile}: {circumstances(rows_of_profile.iloc[0])}"] if profile != "-" else []
            lines += [f"      {row['name']:<{width}}{finding(row)}" for _, row in rows_of_profile.iterrows()]
    return "\n".join([*lines, "", *tallies(table), "", *copies(table)]).rstrip()


def _lines(rows: pd.DataFrame, words: Callable[[pd.Series], str]) -> str:
    each = [f"`{row['profile']}`: {words(row)}".removeprefix("`-`: ") for _, row in rows.iterrows()]
    return "<br>".join(each) or "-"


def tally_to_markdown(table: pd.DataFrame) -> str:
    """Which claims have which verdict, as a Markdown list."""
    lead = "By definition or reading (*finding*: where there is only one), each claim at the largest size that can judge it:"
    return "\n".join([lead, "", *(f"- {line}" for line in tallies(table))])


def to_markdown(table: pd.DataFrame) -> str:
    """The same in Markdown, a table to each set of definitions with one row to a claim."""
    lines = [tally_to_markdown(table), "", "<details><summary>Every claim</summary>", ""]
    for names, claims in families(table):
        rows = [["claim", "statement", *names, "runs"], ["---"] * (len(names) + 3)]
        for claim_id, parts in claims:
            cells = [_lines(part, finding) for part in parts]
            rows.append([claim_id, parts[0].iloc[0]["text"], *cells, _lines(sizes(parts), circumstances)])
        lines += [f"| {' | '.join(row)} |" for row in rows] + [""]
    lines += ["</details>", "", *(f"- Data copy: {html.escape(copy, quote=False)}" for copy in copies(table))]
    return "\n".join(lines).rstrip()

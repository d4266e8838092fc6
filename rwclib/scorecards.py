"""A scorecard as text and as Markdown.

Both take a table as `rwclib.claims.scorecard` gives it, with four more columns: `text`, the claims' sentences; `data`,
lists of `title: data copy`; `train_top1`, the lowest and the highest training accuracy (percent) of the runs; `reason`,
why a claim was not run.
"""

from __future__ import annotations

import html

import numpy as np
import pandas as pd

CIRCUMSTANCES = ("interval is", "profile", "training top-1", "data")


def interval_text(seeds: int, resampled: str) -> str:
    """What an interval is, in words."""
    if resampled == "-":
        return f"none ({seeds} seed)" if seeds else "-"
    if resampled == "layers":
        return f"95%, over layers of {seeds} seed"
    share, _, what = resampled.rpartition(" of ")
    return f"range of {seeds} {what}" if seeds < 4 else f"{share or '95%'}, over {seeds} {what}"


def _finding(row: pd.Series) -> str:
    """Verdict, counts and least favourable comparison of one claim under one definition."""
    if row["verdict"] == "not run":
        return f"not run ({row['reason']})" if row["reason"] else "not run"
    return f"{row['verdict']} {row['holds']}/{row['unclear']}/{row['fails']}, {weakest(row)}"


def weakest(row: pd.Series) -> str:
    """The comparison of its verdict that is least favourable to the claim: its label, effect and interval."""
    sign, unit = ("+", " points") if row["unit"] == "points" else ("", "")
    interval = f" [{row['low']:{sign}.2f}, {row['high']:{sign}.2f}]" if row["resampled"] != "-" else ""
    return f"{row['weakest']} {row['effect']:{sign}.2f}{interval}{unit}"


def circumstances(row: pd.Series) -> list[str]:
    """Interval, profile, training accuracies and data sets behind one claim."""
    low, high = row["train_top1"]
    accuracy = "-" if np.isnan(low) else f"{low:.0f}%" if round(low) == round(high) else f"{low:.0f}-{high:.0f}%"
    sets = ", ".join(dict.fromkeys(copy.partition(":")[0] for copy in row["data"])) or "-"
    return [interval_text(row["seeds"], row["resampled"]), row["profile"], accuracy, sets]


def families(table: pd.DataFrame) -> list[tuple[list[str], list[tuple[str, pd.DataFrame]]]]:
    """The claims by the set of their definitions (`finding` where these are no matter): its names, each claim's id and rows."""
    found: dict[tuple[str, ...], list[tuple[str, pd.DataFrame]]] = {}
    for claim_id, of_claim in table.groupby("claim", sort=False):
        found.setdefault(tuple(name for name in of_claim["definition"] if name != "-"), []).append((claim_id, of_claim))
    return [(list(names) or ["finding"], claims) for names, claims in found.items()]


def tallies(table: pd.DataFrame) -> list[str]:
    """Which claims have which verdict, a line to each definition: `Eq. 1: 2 hold (L1, L2), 1 fails (L3)`."""
    names = table["definition"].replace("-", "finding")
    lines = []
    for name, of in table.groupby(names, sort=False):
        parts = []
        for verdict, plural in {"holds": "hold", "unclear": "unclear", "fails": "fail", "not run": "not run"}.items():
            ids = list(of.loc[of["verdict"] == verdict, "claim"])
            parts += [f"{len(ids)} {verdict if len(ids) == 1 else plural} ({', '.join(ids)})"] * bool(ids)
        lines.append(f"{name}: {', '.join(parts)}")
    return lines


def copies(table: pd.DataFrame) -> list[str]:
    """What the table's data sets are copies of, one line each."""
    return sorted({copy for copies in table["data"] for copy in copies})


def to_text(table: pd.DataFrame) -> str:
    """A scorecard as text, a few lines to a claim; at the end which claims have which verdict, and the data copies.

    Args:
        table: a scorecard with four more columns: `text`, the claims' sentences; `data`, lists of `title: data copy`;
            `train_top1`, the lowest and the highest training accuracy (percent) of the runs; `reason`, why a claim was
            not run.
    """
    table = table.assign(definition=table["definition"].replace("-", "finding"))
    lines, width = [], table["definition"].map(len).max() + 1
    for claim_id, rows in table.groupby("claim", sort=False):
        first = rows.iloc[0]
        interval, profile, accuracy, sets = circumstances(first)
        lines.append(f"{claim_id:<4}{first['text']}")
        if first["seeds"]:
            lines.append(f"    {profile}; interval: {interval}; training top-1 {accuracy}; {sets}")
        lines += [f"    {row['definition']:<{width}}{_finding(row)}" for _, row in rows.iterrows()]
    return "\n".join([*lines, "", *tallies(table), "", *copies(table)]).rstrip()


def to_markdown(table: pd.DataFrame) -> str:
    """The same in Markdown: which claims have which verdict, a table to each set of definitions (one for what is no matter of
    these) with one row to a claim, and a list of the data copies.
    """
    lead = "By definition or reading (*finding*: where there is only one):"
    lines = [lead, "", *(f"- {line}" for line in tallies(table)), "", "<details><summary>Every claim</summary>", ""]
    for names, claims in families(table):
        rows = [["claim", "statement", *names, *CIRCUMSTANCES]]
        rows.append(["---"] * len(rows[0]))
        for claim_id, of_claim in claims:
            findings = [_finding(row) for _, row in of_claim.iterrows()]
            first = of_claim.iloc[0]
            rows.append([claim_id, first["text"], *findings, *circumstances(first)])
        lines += ["| " + " | ".join(row) + " |" for row in rows] + [""]
    lines += ["</details>", ""]
    return "\n".join([*lines, *(f"- Data copy: {html.escape(copy, quote=False)}" for copy in copies(table))]).rstrip()

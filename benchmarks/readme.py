"""Put the tables of `benchmarks/results/*.json` between the marks of docs/speed.md and docs/faults.md: of speed ratios only, with where and when they were
measured, and of faults what was done to processes and files.

python benchmarks/readme.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TITLES = {
    "tracker": "Cost of `tracker.step()`, in copies of the weights and beside TensorBoard's histograms",
    "training": "Training with data pipeline, tracking and checkpoints against the bare loop (quarter-width ResNet-18)",
    "engines": "One training process by engine and precision, over the classical loop; seconds of compiling with an empty cache and with a full one",
    "sweep": "Sweeps, of eight eighth-width AlexNet runs unless a row names others: images/s of two processes over those of each way",
    "scheduling": "Each study's published-size grid on many workers like those that trained the archive, planned",
    "clustering": "Clustering of 2,000 layers by 500 epochs on one core",
    "memory": "Peak memory of a full-width VGG-19 run with snapshots, over that of its weights and optimizer state",
    "compare": "Two checkpoints of 500 MB compared, over reading both files once and beside loading both",
    "gpu": "The published size on one GPU",
}
PAGES = {"speed": "speed.md", "targets": "speed.md", "faults": "faults.md"}
# Of the CPU tables; printed by the scripts, a shared machine is too noisy to quote them.
ABSOLUTE = {"ms", "s", "mb", "images_per_s", "copies_fastest", "gb_per_s"}


def section(results: Path = ROOT / "benchmarks" / "results") -> str:
    """The Markdown of every stored table in the order of `TITLES`."""
    parts = []
    for name, title in TITLES.items():
        if not (results / f"{name}.json").exists():
            parts.append(f"{title} (`benchmarks/{name}.py`): not measured yet.")
            continue
        stored = json.loads((results / f"{name}.json").read_text())
        hidden = ABSOLUTE if name != "gpu" else set()
        columns = list(dict.fromkeys(column for row in stored["rows"] for column in row if column not in hidden))
        rows = [row for row in stored["rows"] if any(isinstance(row.get(column), float) for column in columns)]
        head = [column.replace("_", " ") for column in columns]
        if name == "scheduling":
            head = [f"{words[0]}, {words[1]} first" if len(words) > 1 else words[0] for words in map(str.split, head)]
        lines = [head, ["---"] * len(columns), *([_cell(row.get(column)) for column in columns] for row in rows)]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        parts.append(f"{title} (`benchmarks/{name}.py`; {stored['environment'].replace(' | ', ', ')}):\n\n{table}")
    return "\n\n".join(parts)


def targets(results: Path = ROOT / "benchmarks" / "results") -> str:
    """How many of the targets in the stored tables are met, and what was never measured."""
    stored = {name: results / f"{name}.json" for name in TITLES}
    rows = [row for file in stored.values() if file.exists() for row in json.loads(file.read_text())["rows"]]
    verdicts = [row["verdict"] for row in rows if row.get("verdict")]
    absent = [f"`benchmarks/{name}.py`" for name, file in stored.items() if not file.exists()]
    never = f"; never measured: {', '.join(absent)}" if absent else ""
    return f"{verdicts.count('met')} of {len(verdicts)} targets are met{never}."


def faults(results: Path = ROOT / "benchmarks" / "results") -> str:
    """The Markdown of what a green `make test-long` stored about the faults it made."""
    if not (results / "faults.json").exists():
        return "Not tested yet: `make test-long` does."
    stored = json.loads((results / "faults.json").read_text())
    grouped: dict[tuple[str, str, str], list[str]] = {}
    for row in stored["rows"]:
        times = f"{row['during']} {row['in_the_middle']}/{row['tried']}"
        grouped.setdefault((row["fault"], row["how"], row["then"]), []).append(times)
    lines = [["fault", "what was done", "took effect / times tried", "afterwards"], ["---"] * 4]
    lines += [[fault, how, ", ".join(times), then] for (fault, how, then), times in grouped.items()]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    kills = sum(row["in_the_middle"] for row in stored["rows"] if row["fault"] == "killed")
    return (
        f"`make test-long` did all this to real processes ({stored['environment']}); `make test` does a few of each. {kills} kills "
        f"struck in the middle of work. {stored['checked']}\n\n<details><summary>All faults</summary>\n\n{table}\n\n</details>"
    )


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def main() -> None:
    for name, content in {"speed": section(), "targets": targets(), "faults": faults()}.items():
        page = ROOT / "docs" / PAGES[name]
        text = page.read_text()
        parts = re.split(f"(<!-- /?{name} -->)", text)
        assert parts[1::2] == [f"<!-- {name} -->", f"<!-- /{name} -->"], f"{page.name} has no {name} marks"
        parts[2] = f"\n{content}\n"
        page.write_text("".join(parts))


if __name__ == "__main__":
    main()

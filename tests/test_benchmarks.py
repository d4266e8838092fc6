"""The benchmark scripts run at toy size and write the rows that their tables print."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = {
    "tracker": {
        "copy of the weights": None,
        "RWCTracker.step(), 7 metrics": "<= 6 copies",
        "per-tensor PyTorch with .item(), 2 metrics": None,
        "the papers' NumPy code, 1 metric": None,
        "epoch of 2,000 images, extrapolated from 8": None,
        "one RWCTracker.step() per epoch of 2,000 images": "<= 1 %",
    },
    "training": {
        "bare loop, one resident batch": None,
        "training.run, recorded epochs": None,
        "training.run, strict, with checkpoints": ">= 0.95",
        "training.run, strict, CPU seconds": None,
    },
    "sweep": {
        "rwc sweep, two processes": None,
        "rwc sweep, one process": ">= 1.7",
        "classical loop, two threads": ">= 1.5",
    },
}


@pytest.mark.parametrize("name", ROWS)
def test_benchmark_prints_a_table_and_writes_its_rows(name: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    command = [sys.executable, ROOT / "benchmarks" / f"{name}.py", "--quick", "--json", file]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RWC_DATA_DIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    written = json.loads(file.read_text())
    rows = {row["what"]: row for row in written["rows"]}
    assert {what: row["target"] for what, row in rows.items()} == ROWS[name]
    assert all((row["verdict"] in ("met", "missed")) == (row["target"] is not None) for row in rows.values())
    assert all(row["ms" if name == "tracker" else "images_per_s"] > 0 for row in rows.values())
    assert done.stdout.startswith(written["environment"])
    assert all(what in done.stdout for what in rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.json"]


def test_the_readme_quotes_the_stored_tables():
    spec = importlib.util.spec_from_file_location("readme", ROOT / "benchmarks" / "readme.py")
    spec.loader.exec_module(readme := importlib.util.module_from_spec(spec))
    assert readme.section() in (ROOT / "README.md").read_text()
    for name in readme.TITLES:
        verdicts = [
            row["verdict"] for row in json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())["rows"]
        ]
        assert set(verdicts) - {None} <= {"met", "missed"}

"""The benchmark scripts run at toy size and write the rows that their tables print."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rwclib.studies import STUDIES

ROOT = Path(__file__).parents[1]
COMPARE_TARGET = "<= 1.5 times the reading, no slower than the loop, <= two tensors and 200 MB"
STEP_TARGET = "<= 4 copies, >= 10 times cheaper than histograms"
TWO, CLASSICAL, WORKERS = "rwc sweep, two processes", "classical loop", "classical loop, a DataLoader worker per core"
ROWS = {
    "tracker": [
        *[
            ("copy of the weights", None), ("RWCTracker.step(), 7 metrics", STEP_TARGET),
            ("RWCTracker(start=True).step(), 12 columns", "<= 1.6 times step()"), ("TensorBoard add_histogram", None),
            ("per-tensor PyTorch with .item(), 2 metrics", None), ("the papers' NumPy code, 1 metric", None),
        ] * 2,
        ("epoch of 2,000 images, extrapolated from 8", None),
        ("one RWCTracker.step() per epoch of 2,000 images", "<= 1 %"),
    ],
    "training": [
        ("bare loop, one resident batch", None), ("training.run, recorded epochs", None),
        ("training.run, strict, with checkpoints", ">= 0.95"), ("training.run, strict, CPU seconds", None),
    ],
    "engines": [
        ("classical loop, fp32", None), ("eager, fp32", None),
        ("eager, bf16 (auto)", ">= 3.0 times the classical loop"),
    ],
    "clustering": [
        ("clean, choose_k (k = 1 to 17), cluster, project", "<= 10 s"), ("stability of k-means, k = 5", None),
        ("labels, k-means", None), ("labels, agglomerative", None), ("labels, hdbscan", None),
    ],
    "memory": [
        ("training.run, with snapshots and checkpoints", "< 3"), ("the same, retraining after a sign flip", "< 3"),
        ("training.run, without snapshots", None), ("plain loop, snapshots in memory", None),
        ("training.run, with snapshots and checkpoints", "< 3"), ("training.run, with snapshots and checkpoints", "< 3"),
    ],
    "compare": [
        ("reading both files once", None), ("rwclib.compare", COMPARE_TARGET), ("load both, loop over the tensors", None),
    ] * 2,
    "sweep": [
        (TWO, None), ("rwc sweep, one process", ">= 1.7"), (CLASSICAL, ">= 1.5"),
        ("bare loop, one process: two bare over one", None),
        (TWO, None), (CLASSICAL, ">= 4.0"), (WORKERS, None), ("bare loop, two processes", None),
    ],
    "gpu": [
        ("bare, eager, fp32", None), ("run, eager, fp32", ">= 0.9 of bare"), ("epoch, eager, fp32", "<= 2.5 s"),
        ("copy of the weights", None), ("metrics of the tracker", ">= 0.6 of the copy"),
        ("forward and backward, contiguous", None), ("forward and backward, channels_last", None),
        ("jobs 2, eager", None),
        ("classical loop, 0 workers", ">= 10"), (f"classical loop, {os.cpu_count()} workers", ">= 2"),
    ],
}  # fmt: skip


def bench(name: str, folder: Path) -> tuple[dict, str]:
    """What a benchmark writes and prints at toy size, on the bundled images."""
    file = folder / "rows.json"
    command = [sys.executable, "-m", "rwclib", "bench", name, "--quick", "--json", file]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RWC_DATA_DIR": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["rows.json"]
    return json.loads(file.read_text()), done.stdout


@pytest.mark.long
@pytest.mark.parametrize("name", ROWS)
def test_benchmark_prints_a_table_and_writes_its_rows(name: str, tmp_path: Path) -> None:
    written, printed = bench(name, tmp_path)
    rows = written["rows"]
    assert [(row["what"], row["target"]) for row in rows] == ROWS[name]
    assert all((row["verdict"] in ("met", "missed")) == (row["target"] is not None) for row in rows)
    times = ("ms", "s")
    known = {"memory": ("mb",), "tracker": times, "clustering": times, "compare": times}
    measured = known.get(name, ("images_per_s", "gb_per_s", "seconds"))
    assert all(max(row.get(column) or 0 for column in measured) > 0 for row in rows)
    assert written["environment"] in printed


@pytest.mark.long
def test_the_plan_of_the_grid_gets_shorter_with_workers_and_wastes_more_of_them(tmp_path: Path) -> None:
    rows = bench("scheduling", tmp_path)[0]["rows"]
    assert [row["workers"] for row in rows] == [4**k for k in range(6)] * len(STUDIES)
    for study, priority in itertools.product(STUDIES, ("seeds", "longest")):
        hours = [row[f"hours_{priority}"] for row in rows if row["study"] == study]
        efficiency = [row[f"efficiency_{priority}"] for row in rows if row["study"] == study]
        assert efficiency[0] == pytest.approx(1)
        assert hours == sorted(hours, reverse=True)
        assert efficiency == sorted(efficiency, reverse=True)


def test_a_benchmark_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "rwclib", "bench", "magic"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        "unknown benchmark 'magic'; known: clustering, compare, engines, gpu, memory, scheduling, sweep, tracker, training"
        in done.stderr
    )


def test_the_docs_quote_the_stored_tables():
    spec = importlib.util.spec_from_file_location("readme", ROOT / "benchmarks" / "readme.py")
    spec.loader.exec_module(readme := importlib.util.module_from_spec(spec))
    assert readme.section() in (ROOT / "docs" / "speed.md").read_text()
    assert f"<!-- targets -->\n{readme.targets()}\n<!-- /targets -->" in (ROOT / "docs" / "speed.md").read_text()
    assert f"<!-- faults -->\n{readme.faults()}\n<!-- /faults -->" in (ROOT / "docs" / "faults.md").read_text()
    for name in readme.TITLES:
        if not (ROOT / f"benchmarks/results/{name}.json").exists():
            assert "not measured" in readme.section()
            continue
        verdicts = [
            row.get("verdict") for row in json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())["rows"]
        ]
        assert set(verdicts) - {None} <= {"met", "missed"}

"""What the tests share: small real runs on the bundled images, and the command as a real process."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # small products on a busy machine: several times faster so

import pytest
import torch
from filelock import SoftFileLease

from rwclib import RunConfig

ROOT = Path(__file__).parents[1]
FAULTS_FILE = ROOT / "benchmarks" / "results" / "faults.json"
FAULTS: list[dict] = []
FAULTS_SKIPPED: list[str] = []
ORDER = ["killed", "disk full", "made read-only", "frozen", "clock set back", "race", "out of memory", "damaged file"]
CHECKED = "No finished run was lost, and every table in the archive afterwards was byte for byte an undisturbed run's."
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def config() -> RunConfig:
    """A run of about two seconds."""
    return RunConfig(
        model="resnet18",
        dataset="fashion_mnist_sample",
        width=8,
        epochs=3,
        n_train=200,
        n_test=100,
        batch_size=64,
        flip=True,
    )


def command(*arguments: object, env: dict[str, str] | None = None, **options: object) -> subprocess.Popen:
    """`rwc` as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "rwclib", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, **(env or {})}, **options,
    )  # fmt: skip


def rwc(*arguments: object, env: dict[str, str] | None = None, timeout: float = 300) -> subprocess.CompletedProcess:
    """`rwc` run to its end: returncode, stdout, stderr."""
    process = command(*arguments, env=env)
    out, err = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def sweep_process(configs: list[RunConfig], results: Path) -> subprocess.Popen:
    """`run_all` of these runs in a process of its own, with a checkpoint after every batch and one thread."""
    text = (
        "import sys, json\nfrom concurrent.futures import ThreadPoolExecutor\nfrom rwclib import RunConfig\n"
        "from rwclib.sweeps.sweep import run_all\nconfigs = [RunConfig(**c) for c in json.loads(sys.argv[1])]\n"
        "with ThreadPoolExecutor(1) as pool:\n"
        "    run_all(configs, results=sys.argv[2], executor=pool, checkpoint_seconds=0)\n"
    )
    settings = json.dumps([config.to_dict() for config in configs])
    return subprocess.Popen([sys.executable, "-c", text, settings, str(results)], cwd=ROOT)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Collect the rows that tests of faults note, from all workers."""
    if report.skipped and "test_faults" in report.nodeid:
        FAULTS_SKIPPED.append(report.nodeid)
    if report.when == "call" and report.passed:
        FAULTS.extend(row for name, row in report.user_properties if name == "fault")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """After a green, whole `pytest -m long` store the table of faults that docs/faults.md shows."""
    options = session.config.option
    chosen = options.keyword or options.file_or_dir
    if (
        exitstatus == 0
        and FAULTS
        and not FAULTS_SKIPPED
        and options.markexpr == "long"
        and not chosen
        and not hasattr(session.config, "workerinput")
    ):
        rows = sorted(FAULTS, key=lambda row: (ORDER.index(row["fault"]), row["during"], row["how"]))
        stored = {"environment": f"{platform.system()}, Python {platform.python_version()}, torch {torch.__version__}, "
                  f"{date.today()}", "checked": CHECKED, "rows": rows}  # fmt: skip
        FAULTS_FILE.write_text(json.dumps(stored, indent=1) + "\n")


def holder(lock: Path) -> int | None:
    """Number of the process that holds a run's lock file; None without one."""
    return SoftFileLease(lock).pid


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def tables(place: Path) -> dict[str, bytes]:
    """The bytes of a run's two tables."""
    return {name: (place / name).read_bytes() for name in ("layers.parquet", "epochs.parquet")}

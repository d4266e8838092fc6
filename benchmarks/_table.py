"""What the benchmark scripts share: their options, interleaved timing, a process per thread count, and the table."""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import platform
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import pandas as pd

T = TypeVar("T")


def options(doc: str) -> argparse.Namespace:
    """`--json FILE` and `--quick`, under the script's docstring."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the environment and the rows here too")
    parser.add_argument("--quick", action="store_true", help="toy size: shows that the script runs, measures nothing")
    args = parser.parse_args()
    if args.quick:
        os.environ[_TOY] = "1"
    return args


_TOY = "RWC_BENCH_QUICK"


def in_fresh_process(threads: int, function: Callable[..., T], *args: object) -> T:
    """`function(*args)` in a new process where PyTorch and every BLAS have `threads` threads.

    A waiting thread sleeps unless `OMP_WAIT_POLICY` says otherwise: spinning, it keeps the core from the thread that it
    waits for when other processes are busy (a copy on two threads then takes 30 times as long as on one). At toy size it runs
    in this process.
    """
    if _TOY in os.environ:
        return function(*args)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def verdict(met: bool, target: str) -> dict[str, str]:
    """The columns `target` and `verdict` of a row."""
    return {"target": target, "verdict": "met" if met else "missed"}


def seconds(function: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def interleaved(
    functions: dict[str, Callable[[], object]], repetitions: int, between: Callable[[], None]
) -> pd.DataFrame:
    """Seconds (repetitions, functions) of calling all in turn, `between` before each turn; two turns warm up."""
    turns = []
    for _ in range(repetitions + 2):
        between()
        turns.append({name: seconds(function) for name, function in functions.items()})
    return pd.DataFrame(turns[2:])


def environment(threads: str) -> str:
    """CPU, load, versions, threads and date: the evidence line above every table."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    cpu = found[1] if found else platform.processor() or platform.machine()
    return (
        f"{cpu}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} | torch {version('torch')}, "
        f"numpy {version('numpy')} | threads {threads} | {datetime.date.today()}"
    )


def report(rows: list[dict], evidence: str, note: str, file: Path | None) -> None:
    """Print evidence line, table and note; `store` the rows."""
    table = pd.DataFrame(rows)
    cells = table.astype(object).where(table.notna(), "")
    print(evidence, cells.to_string(index=False, float_format="{:.2f}".format), note, sep="\n\n")
    store(rows, evidence, file)


def store(rows: list[dict], evidence: str, file: Path | None) -> None:
    """Write evidence and rows to `file`, if there is one."""
    if file:
        content = {"environment": evidence, "rows": json.loads(pd.DataFrame(rows).to_json(orient="records"))}
        file.write_text(json.dumps(content, indent=1) + "\n")

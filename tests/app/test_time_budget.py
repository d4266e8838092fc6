"""`--time-budget` where three other processes want every core."""

import os
import re
import subprocess
import sys
import time

import pytest

from rwclib import studies
from tests.conftest import rwc

BUDGET = 60  # seconds


@pytest.mark.long
def test_a_busy_machine_keeps_the_time_budget_and_repeated_calls_finish_the_grid(tmp_path):
    runs, calls = len(studies.runs("layerwise")("smoke")), 0
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3 * os.cpu_count())]
    words = ("sweep", "layerwise", "--profile", "smoke", "--time-budget", BUDGET, "--results", tmp_path)
    try:
        left, progress = runs, None
        while left:
            began = time.monotonic()
            done = rwc(*words)
            assert time.monotonic() - began < 1.25 * BUDGET, done.stderr
            assert done.returncode == 0, done.stderr
            before, progress = progress, {file: file.stat().st_mtime for file in tmp_path.rglob("*") if file.is_file()}
            assert progress != before  # a run or a checkpoint more
            left = runs - len(list(tmp_path.glob("layerwise/*/run.json")))
            assert left == int((re.search(r"runs left: (\d+)", done.stderr) or [0, 0])[1])
            calls += 1
            assert calls <= runs
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert rwc("results", "verify", "--results", tmp_path).stdout == f"runs ok: {runs}, damaged: 0\n"

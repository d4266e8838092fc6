"""Leases between real processes: live ones are respected, stale ones are taken over by exactly one."""

import itertools
import os
import signal
import subprocess
import sys
import time

import pytest

from rwclib.errors import ArchiveError, RunLockedError
from rwclib.runs import locks

HOLDER = """
import sys, time
from pathlib import Path
from rwclib.errors import RunLockedError
from rwclib.runs import locks
locks.LEASE = float(sys.argv[2])
with locks.hold(Path(sys.argv[1])) as lease:
    print("held", flush=True)
    sys.stdin.readline()
    try:
        locks.check(lease)
    except RunLockedError as error:
        print(error, flush=True)
"""
CONTENDER = """
import sys, time
from pathlib import Path
from rwclib.errors import RunLockedError
from rwclib.runs import locks
time.sleep(max(0, float(sys.argv[2]) - time.time()))
try:
    with locks.hold(Path(sys.argv[1])):
        began = time.time()
        time.sleep(1)
        print(began, time.time(), flush=True)
except RunLockedError:
    print("locked", flush=True)
"""


@pytest.fixture
def holder(tmp_path):
    """Start a process that holds `a.lock` with a lease of so many seconds."""
    processes = []

    def start(lease):
        words = [sys.executable, "-c", HOLDER, str(tmp_path / "a.lock"), str(lease)]
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_a_lock_is_released_at_the_end_and_after_an_error(tmp_path):
    with locks.hold(tmp_path / "a.lock") as lease:
        assert locks.is_held(lease)
    with pytest.raises(KeyError), locks.hold(tmp_path / "a.lock"):
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_a_live_lock_is_respected_and_its_owner_named(tmp_path, holder):
    process = holder(locks.LEASE)
    assert f"process {process.pid} on " in locks.owner(tmp_path / "a.lock")
    with pytest.raises(RunLockedError, match=f"process {process.pid} on "), locks.hold(tmp_path / "a.lock"):
        pass
    assert (tmp_path / "a.lock").exists()


def test_the_lock_of_a_killed_process_is_taken_over_at_once(tmp_path, holder):
    process = holder(locks.LEASE)
    process.kill()
    process.communicate()
    assert locks.owner(tmp_path / "a.lock") is None
    began = time.monotonic()
    with locks.hold(tmp_path / "a.lock") as lease:
        assert locks.is_held(lease)
    assert time.monotonic() - began < locks.LEASE / 2


def test_the_lock_of_a_process_that_was_killed_before_it_wrote_its_name_is_taken_over(tmp_path):
    path = tmp_path / "run.lock"
    path.touch()
    began = time.monotonic()
    with locks.hold(path) as lease:
        assert locks.is_held(lease)
    assert time.monotonic() - began < locks.LEASE / 2
    assert not path.exists()


def test_a_frozen_process_is_replaced_after_its_lease_and_learns_of_it(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(locks, "LEASE", 2.0)
    process = holder(2.0)
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(RunLockedError), locks.hold(tmp_path / "a.lock"):
        pass
    while locks.owner(tmp_path / "a.lock"):
        time.sleep(0.1)
    with locks.hold(tmp_path / "a.lock") as lease:
        assert locks.is_held(lease)
        process.send_signal(signal.SIGCONT)
        assert "was taken over by another process" in process.communicate("go on\n")[0]
        assert locks.is_held(lease)  # its end leaves the new lock alone


def test_the_heartbeat_keeps_a_lock_fresh(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "LEASE", 0.3)
    with locks.hold(tmp_path / "a.lock"):
        os.utime(tmp_path / "a.lock", (0, 0))
        time.sleep(1)
        assert locks.owner(tmp_path / "a.lock")


def test_another_hosts_lock_is_live_while_its_heart_beats(tmp_path, holder):
    process, path = holder(locks.LEASE), tmp_path / "a.lock"
    path.write_text(re_hosted := path.read_text().replace(f"host={os.uname().nodename}", "host=elsewhere"))
    assert "host=elsewhere" in re_hosted
    process.kill()
    process.communicate()
    with pytest.raises(RunLockedError, match="on elsewhere"), locks.hold(path):
        pass
    old = time.time() - locks.LEASE - 1
    os.utime(path, (old, old))
    assert locks.owner(path) is None


def test_of_many_processes_that_find_a_stale_lock_no_two_hold_it_at_once(tmp_path, holder):
    process, path = holder(locks.LEASE), tmp_path / "a.lock"
    process.kill()
    process.communicate()
    start = time.time() + 5
    contenders = [
        subprocess.Popen([sys.executable, "-c", CONTENDER, str(path), str(start)], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    answers = [contender.communicate()[0].strip() for contender in contenders]
    held = sorted(tuple(map(float, answer.split())) for answer in answers if answer != "locked")
    assert held, "nobody took the stale lock over"
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(held))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArchiveError, match="cannot write"), locks.hold(tmp_path / "file" / "a.lock"):
        pass

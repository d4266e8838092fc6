"""Locks between real processes: live ones are respected, stale ones are taken over by exactly one."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from rwclib import locks
from rwclib.errors import ArchiveError, RunLockedError
from rwclib.locks import Lock

HOLDER = "import sys, time; from rwclib.locks import Lock\nwith Lock(__import__('pathlib').Path(sys.argv[1])):\n print('held', flush=True); time.sleep(100)"
CONTENDER = """
import sys, time
from pathlib import Path
from rwclib.errors import RunLockedError
from rwclib.locks import Lock
time.sleep(max(0, float(sys.argv[2]) - time.time()))
try:
    with Lock(Path(sys.argv[1])):
        began = time.time()
        time.sleep(1)
        print(began, time.time(), flush=True)
except RunLockedError:
    print("locked", flush=True)
"""


def holder(path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_lock_is_released_at_the_end_and_after_an_error(tmp_path):
    with Lock(tmp_path / "a.lock"):
        assert (tmp_path / "a.lock").exists()
    with pytest.raises(KeyError), Lock(tmp_path / "a.lock"):
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_a_live_lock_is_respected_and_its_owner_named(tmp_path):
    process = holder(tmp_path / "a.lock")
    try:
        with pytest.raises(RunLockedError, match=f"process {process.pid} on "), Lock(tmp_path / "a.lock"):
            pass
        assert (tmp_path / "a.lock").exists()
    finally:
        process.kill()
        process.communicate()


def test_the_lock_of_a_killed_process_is_taken_over_at_once(tmp_path):
    process = holder(tmp_path / "a.lock")
    process.kill()
    process.communicate()
    with Lock(tmp_path / "a.lock") as lock:
        assert lock.held()


def test_another_hosts_lock_is_live_while_its_heart_beats_and_stale_after(tmp_path):
    path = tmp_path / "a.lock"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "token": "x"}))
    with pytest.raises(RunLockedError, match="process 1 on elsewhere"), Lock(path):
        pass
    old = time.time() - locks.STALE - 1
    os.utime(path, (old, old))
    with Lock(path) as lock:
        assert lock.held()


def test_the_heartbeat_keeps_a_lock_fresh(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "HEARTBEAT", 0.05)
    with Lock(tmp_path / "a.lock"):
        os.utime(tmp_path / "a.lock", (0, 0))
        time.sleep(0.5)
        assert time.time() - (tmp_path / "a.lock").stat().st_mtime < 5


def test_a_holder_whose_lock_was_taken_over_notices_and_leaves_the_new_lock_alone(tmp_path):
    path = tmp_path / "a.lock"
    with Lock(path) as sleeper:
        path.rename(tmp_path / "moved")
        with Lock(path) as successor:
            with pytest.raises(RunLockedError, match="was taken over"):
                sleeper.check()
            sleeper.__exit__(None, None, None)
            assert successor.held()
            sleeper._handle = os.open(tmp_path / "moved", os.O_RDONLY)  # so that its own exit closes something


def test_a_frozen_process_on_this_host_is_not_robbed_before_its_heartbeat_is_stale(tmp_path):
    process = holder(tmp_path / "a.lock")
    process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(RunLockedError), Lock(tmp_path / "a.lock"):
            pass
        old = time.time() - locks.STALE - 1
        os.utime(tmp_path / "a.lock", (old, old))
        with Lock(tmp_path / "a.lock") as lock:
            assert lock.held()
    finally:
        process.kill()
        process.communicate()


def test_of_many_processes_that_find_a_stale_lock_no_two_hold_it_at_once(tmp_path):
    path = tmp_path / "a.lock"
    path.write_text(json.dumps({"host": socket.gethostname(), "pid": 2**22 + 1, "token": "x"}))
    start = time.time() + 12
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
    with pytest.raises(ArchiveError, match="cannot write"), Lock(tmp_path / "file" / "a.lock"):
        pass

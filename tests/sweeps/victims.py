"""Processes for tests/test_faults.py to kill, freeze, starve and rob: forked from a server that has imported everything."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from multiprocessing import forkserver
from pathlib import Path

import scipy.stats  # noqa: F401 (what training imports late)
import torch
import torch._dynamo
import torchvision  # noqa: F401

from rwclib import RunConfig, sweep, training
from rwclib.app import cli
from rwclib.errors import RwcError
from rwclib.runs import locks, record

CONTEXT = multiprocessing.get_context("forkserver")
LIMIT = 240.0  # seconds for anything to happen on a busy machine
WRITING = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "shutil.rmtree")


def start_server() -> None:
    """A fork server that has imported this module, in place of a sweep's that has not."""
    forkserver._forkserver._stop()
    CONTEXT.set_forkserver_preload([__name__])


def train(config: RunConfig, results: Path, **options: object) -> None:
    """One run, with a checkpoint after every batch."""
    training.run(config, results=results, device="cpu", threads=1, checkpoint_seconds=0, **options)


def train_for(config: RunConfig, results: Path, seconds: float) -> None:
    """The same with a deadline."""
    train(config, results, deadline=time.time() + seconds)


def sweep_for(configs: list[RunConfig], results: Path, seconds: float | None = None) -> list[str]:
    """A sweep in this process, one run at a time; what it trained."""
    with ThreadPoolExecutor(1) as pool:
        report = sweep.run_all(
            configs, results=results, device="cpu", executor=pool, jobs=1, time_budget=seconds, checkpoint_seconds=0
        )
    assert report.ok, report.failed
    return report.trained


def command(*arguments: object) -> None:
    """`rwc` with these arguments."""
    sys.argv = ["rwc", *map(str, arguments)]
    cli.main()


class Clock:
    """The time of day, stepping back an hour when told to."""

    def __init__(self) -> None:
        self.step, self._time = 0.0, time.time
        time.time = lambda: self._time() - self.step

        class Stepping(datetime):
            @classmethod
            def now(cls, tz: object = None) -> datetime:
                return datetime.fromtimestamp(time.time(), tz)

        record.datetime = Stepping


def _at_operation(number: int, act: Callable[[], None]) -> list[int]:
    """Call `act` just before the file operation of this number; the count of operations so far, which grows."""
    count = [0]

    def watch(event: str, arguments: tuple) -> None:
        if event in WRITING or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            count[0] += 1
            if count[0] == number:
                act()

    sys.addaudithook(watch)
    return count


def obey_permissions() -> None:
    """Give up root's right to write what is read-only (the capabilities DAC_OVERRIDE, DAC_READ_SEARCH and FOWNER)."""
    libc, header, sets = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    sets[0] &= ~0b1110
    assert libc.capset(header, sets) == 0


def _live(
    pipe: multiprocessing.connection.Connection,
    log: Path,
    task: Callable,
    arguments: tuple,
    *,
    operation: int = 0,
    act: str = "kill",
    unprivileged: bool = False,
    stale: float | None = None,
) -> None:
    """A victim's life: `operation` and `act` say when it is to kill or freeze itself or see the clock step back."""
    with open(log, "wb") as output:
        os.dup2(output.fileno(), 1), os.dup2(output.fileno(), 2)
    torch.set_num_threads(1)
    if stale:
        locks.LEASE = stale
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if unprivileged:
        obey_permissions()
    if act == "step back":
        clock = Clock()
        count = _at_operation(operation, lambda: setattr(clock, "step", 3600.0))
    else:
        what = signal.SIGSTOP if act == "freeze" else signal.SIGKILL
        count = _at_operation(operation, lambda: os.kill(os.getpid(), what))
    pipe.send("begun")
    try:
        answer = task(*arguments)
        pipe.send((0, count[0], answer))
    except SystemExit as exit:
        pipe.send((exit.code or 0, count[0], None))
    except RwcError as error:
        pipe.send((1, count[0], str(error)))
    except BaseException:
        pipe.send((2, count[0], traceback.format_exc()))


def until(condition: Callable[[], object]) -> None:
    """Wait for it to become true."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "it does not come to pass"
        time.sleep(0.005)


class Victim:
    """The other end: `log` is what it prints; `code`, `operations` and `answer` are there once it has ended by itself."""

    def __init__(self, log: Path, task: Callable, *arguments: object, **hurt: object) -> None:
        self.log, self.code, self.operations, self.answer = log, None, 0, None
        self._pipe, far = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=_live, args=(far, log, task, arguments), kwargs=hurt)
        self.process.start()
        far.close()
        assert self._pipe.poll(LIMIT), "the process did not begin"
        self._pipe.recv()
        self.began = time.monotonic()

    def end(self, timeout: float = LIMIT) -> Victim:
        """Wait for its end, by itself or by what was done to it."""
        with contextlib.suppress(EOFError):
            assert self._pipe.poll(timeout), f"it goes on and on: {self.log.read_text()}"
            self.code, self.operations, self.answer = self._pipe.recv()
            self.seconds = time.monotonic() - self.began
        self.process.join(LIMIT)
        assert self.process.exitcode is not None
        return self

    def kill(self) -> bool:
        """SIGKILL; whether it was still at work."""
        self.process.kill()
        return self.end().code is None

    def wait_frozen(self) -> bool:
        """Wait until it has frozen itself; False if it has ended before."""
        until(lambda: self.over() or self._state() in "Tt")
        return not self.over()

    def _state(self) -> str:
        return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def over(self) -> bool:
        """Whether it has ended, by itself or not."""
        return self._pipe.poll()

    def go_on(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

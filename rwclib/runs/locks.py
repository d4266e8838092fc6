"""Who works on a run: filelock's lease in a file beside the results, which a shared folder shares."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import SoftFileLease, Timeout

from rwclib.errors import ArchiveError, RunLockedError

LEASE = 60.0  # seconds without a sign of life after which another process may take over
BIRTH = 2.0  # seconds in which a process has written its name into the file that it has made


@contextmanager
def hold(path: Path) -> Iterator[SoftFileLease]:
    """`with hold(path) as lease:` holds the lock file `path`; a killed holder is replaced at once, a frozen one after `LEASE`.

    Raises:
        RunLockedError: a live process holds it.
        ArchiveError: the folder cannot be written.
    """
    lease = _lease(path)
    _remove_nameless(path)
    frozen = path.exists() and owner(path) is None  # or killed: then nothing is waited for
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lease.acquire(timeout=1.5 * LEASE if frozen else 0)
    except Timeout:
        name = owner(path) or "a process that has just begun"
        raise RunLockedError(f"{path.stem} is being worked on by {name}; wait for it or stop it") from None
    except OSError as error:
        raise ArchiveError(f"cannot write {path}: {error.strerror}; choose a folder that can be written") from error
    try:
        yield lease
    finally:
        with suppress(OSError):  # the folder cannot be written any more
            lease.release()


def _remove_nameless(path: Path) -> None:
    """Remove a lock file that stays empty: its process was killed as it began, and filelock never takes such a file over."""
    deadline = time.monotonic() + BIRTH
    with suppress(OSError):  # gone, or in a folder that cannot be written
        while path.stat().st_size == 0:
            if time.monotonic() > deadline:
                path.unlink()
            time.sleep(0.05)


def is_held(lease: SoftFileLease) -> bool:
    """Whether no other process has taken the lease over, as it may while this one is frozen."""
    return lease.owner is not None and lease.owner.token == lease.token


def check(lease: SoftFileLease) -> None:
    """`RunLockedError` unless the lease is held."""
    if not is_held(lease):
        name = Path(lease.lock_file).stem
        raise RunLockedError(f"{name} was taken over by another process while this one was not running")


def owner(path: Path) -> str | None:
    """The process that holds the lock file, in words; None without one that is alive and has shown itself within `LEASE`."""
    record = _lease(path).owner
    with suppress(FileNotFoundError):
        if (
            record
            and time.time() - path.stat().st_mtime < LEASE
            and (record.hostname != socket.gethostname() or _runs(record.pid))
        ):
            return f"process {record.pid} on {record.hostname}"
    return None


def _lease(path: Path) -> SoftFileLease:
    return SoftFileLease(path, lease_duration=LEASE, thread_local=False)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True

"""A lock file that says who works on a run: created with O_EXCL, kept fresh by a heartbeat, taken over when stale."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from types import TracebackType

from rwclib.errors import ArchiveError, RunLockedError

HEARTBEAT = 5.0  # seconds between touches of the lock file
STALE = 60.0  # seconds without a touch after which a lock may be taken over


class Lock:
    """`with Lock(path): ...` holds `path`; `RunLockedError` if a live process holds it.

    A lock is stale when its process is gone (same host) or when it has not been touched for `STALE` seconds. The holder
    touches its own open file, so a holder that slept through a takeover cannot freshen its successor's lock; `check()`
    tells it that it has lost the lock.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None
        self._stop = threading.Event()

    def __enter__(self) -> Lock:
        owner = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "token": secrets.token_hex(8)})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for _ in range(10):
                try:
                    self._handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
                    break
                except FileExistsError:
                    self._take_over()
            else:
                raise RunLockedError(f"{self.path.stem} is being taken over by another process; try again in a moment")
            try:
                os.write(self._handle, owner.encode())
            except OSError:
                self.path.unlink()
                os.close(self._handle)
                raise
        except OSError as error:
            raise ArchiveError(
                f"cannot write {self.path}: {error.strerror}; choose a folder that can be written"
            ) from error
        try:
            threading.Thread(target=self._beat, daemon=True).start()
        except BaseException:  # no memory for a thread
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        if self.held():
            with contextlib.suppress(OSError):
                self.path.unlink()
        os.close(self._handle)
        self._handle = None

    def held(self) -> bool:
        """Whether the lock file is still the one this process created."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._handle))
        except FileNotFoundError:
            return False

    def check(self) -> None:
        """`RunLockedError` if another process has taken the lock over."""
        if not self.held():
            raise RunLockedError(f"{self.path.stem} was taken over by another process while this one was not running")

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT):
            with contextlib.suppress(OSError, TypeError):  # closed between the wait and the touch
                os.utime(self._handle)

    def _take_over(self) -> None:
        """Move a stale lock out of the way; `RunLockedError` if it is live."""
        try:
            content = self.path.read_text()
            owner = _live(content, self.path)
            if owner:
                raise RunLockedError(f"{self.path.stem} is being worked on by {owner}; wait for it or stop it")
            aside = self.path.with_name(f"{self.path.name}.{secrets.token_hex(4)}.stale")
            os.rename(self.path, aside)
        except FileNotFoundError:
            return  # released, or another process was first
        if aside.read_text() != content:  # a new, live lock (every lock has its own token): put it back
            with contextlib.suppress(FileExistsError):
                os.link(aside, self.path)
        aside.unlink()


def live_owner(path: Path) -> str | None:
    """Who holds the lock, in words, or None if nobody does or the holder is gone."""
    try:
        return _live(path.read_text(), path)
    except FileNotFoundError:
        return None


# Others' locks: their last touch, and when by our monotonic clock we saw it first.
_seen: dict[Path, tuple[int, float]] = {}


def _live(content: str, path: Path) -> str | None:
    status = os.stat(path)
    touched, since = _seen.get(path, (None, 0.0))
    if touched != status.st_mtime_ns:
        touched, since = _seen[path] = status.st_mtime_ns, time.monotonic()
    if max(time.time() - status.st_mtime, time.monotonic() - since) > STALE:  # the latter if clocks were set back
        return None
    try:
        owner = json.loads(content)
        host, pid = owner["host"], int(owner["pid"])
    except (ValueError, KeyError, TypeError):
        return "a process that has just begun"  # half-written: between two system calls, or died there
    if host == socket.gethostname():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
    return f"process {pid} on {host}"

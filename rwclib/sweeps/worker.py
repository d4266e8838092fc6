"""What a worker of a sweep does: train a few runs, and say in the archive's cache how far it has come."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Container
from pathlib import Path

from rwclib.errors import ArchiveError, OutOfTimeError, RwcError
from rwclib.runs import archive, training, weights
from rwclib.runs.config import RunConfig


def work(batch: list[RunConfig], options: dict) -> list[bool | RwcError]:
    """Train runs in a worker, one after the other: True, or False if another process had finished it, or its error."""
    results = Path(options["results"])
    if not results.is_dir():
        raise ArchiveError(
            f"results folder {results} is not there on {socket.gethostname()}; choose a folder that all machines share"
        )
    outcomes: list[bool | RwcError] = []
    began, deadline = time.monotonic() - time.time(), options["deadline"]
    for config in batch:
        try:
            moved = time.monotonic() - time.time() - began  # by how much the clock was set back meanwhile
            if outcomes and deadline and time.time() + moved > deadline:
                raise OutOfTimeError(f"{config.name} has not begun; call again")
            outcomes.append(_train(config, results, options | {"deadline": deadline and deadline - moved}))
        except RwcError as error:
            outcomes.append(error)
        except Exception as error:  # others may not survive the way back
            outcomes.append(RwcError(f"{type(error).__name__}: {error}"))
    return outcomes


def _train(config: RunConfig, results: Path, options: dict) -> bool:
    options = dict(options)
    keep = options.pop("keep")
    if finished(results, config, keep):
        return False
    note, epochs = progress_file(results, config), []

    def tell(values: dict) -> None:
        epochs.append(values)
        part = note.with_suffix(".part")
        with contextlib.suppress(OSError):  # a full disk stops the run where it loses something
            note.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(values))
            os.replace(part, note)

    try:
        training.run(config, **options, keep_weights=config.hash in keep, progress=tell)
    finally:
        with contextlib.suppress(OSError):
            note.unlink(missing_ok=True)
    return bool(epochs) or not config.epochs  # else another process has finished it just now


def progress_file(results: Path, config: RunConfig) -> Path:
    """Where a worker says how far a run has come."""
    return results / ".cache" / f"{config.name}.progress.json"


def look(results: Path, running: set[str], seen: dict[str, float], tell: Callable[[str, dict], None]) -> None:
    """Tell about the running ones whose progress has changed since it was `seen`."""
    for file in (results / ".cache").glob("*.progress.json"):
        name = file.name.removesuffix(".progress.json")
        try:
            changed = file.stat().st_mtime
            if name in running and seen.get(name) != changed:
                seen[name] = changed
                tell(name, json.loads(file.read_text()))
        except (OSError, ValueError):
            continue


def finished(results: Path, config: RunConfig, keep: Container[str] = ()) -> bool:
    """Whether the run is in the archive, undamaged, and its weights are there if its hash is among those to `keep`."""
    try:
        if not archive.is_finished(results, config):
            return False
        status = archive.read(results, config).record["status"]
    except ArchiveError:
        return False
    return config.hash not in keep or status != "done" or weights.path(results, config.hash).exists()


def diverged(results: Path, config: RunConfig) -> bool:
    """Whether the run is in the archive, as one that diverged."""
    return finished(results, config) and archive.read(results, config).record["status"] == "diverged"

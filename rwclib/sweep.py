"""Many runs on any `concurrent.futures` executor; by default local processes with one thread each."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Iterable
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from dataclasses import dataclass, field
from pathlib import Path

from rwclib import archive, data, locks, parents, steps, training, weights
from rwclib.config import RunConfig
from rwclib.errors import ArchiveError, DataError, DivergedError, OutOfTimeError, RunLockedError, RwcError
from rwclib.parents import diverged, finished

_POLL = 0.5  # seconds between looks at progress and at other processes' locks
_GRACE = 10.0  # seconds that runs have at the end of a time budget for their batch and checkpoint
_ATTEMPTS = 3  # of a run whose worker process dies


@dataclass
class Report:
    """What became of every run of a sweep, by run name; messages where there is something to say."""

    already: list[str] = field(default_factory=list)
    trained: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)  # finished by another process, or by one that then died
    diverged: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)  # out of time

    @property
    def ok(self) -> bool:
        """Whether no run failed. Diverged runs are results; runs left over by a time budget go on next time."""
        return not self.failed

    def enter(self, name: str, outcome: bool | Exception) -> None:
        """Note how a run has ended: whether it was trained, or the exception that stopped it."""
        if isinstance(outcome, bool):
            (self.trained if outcome else self.elsewhere).append(name)
        elif isinstance(outcome, OutOfTimeError):
            self.left.append(name)
        elif isinstance(outcome, BrokenExecutor):
            log = f"; {outcome}" if type(outcome) is BrokenExecutor and str(outcome) else ""
            self.failed[name] = f"its worker process died {_ATTEMPTS} times (out of memory?){log}"
        else:
            kind = self.diverged if isinstance(outcome, DivergedError) else self.failed
            kind[name] = str(outcome) if isinstance(outcome, RwcError) else f"{type(outcome).__name__}: {outcome}"

    def summary(self) -> str:
        counts = {
            "trained": self.trained, "in the archive already": self.already, "finished by another process": self.elsewhere,
            "diverged": self.diverged, "failed": self.failed, "left for the next call": self.left,
        }  # fmt: skip
        return ", ".join(f"{len(names)} {what}" for what, names in counts.items() if names) or "no runs"


def default_jobs(device: str) -> int:
    """One process per CPU core, or two at once on a GPU."""
    return 2 if training.resolve_device(device).type == "cuda" else os.cpu_count() or 1


def run_all(
    configs: Iterable[RunConfig],
    *,
    results: str | Path | None = None,
    data_dir: str | Path | None = None,
    device: str = "auto",
    engine: str = "eager",
    threads: int | None = 1,
    jobs: int | Callable[[], int] | None = None,
    executor: Executor | None = None,
    chunk: int = 1,
    time_budget: float | None = None,
    checkpoint_seconds: float = training.CHECKPOINT_SECONDS,
    progress: Callable[[str, dict], None] | None = None,
) -> Report:
    """Bring every run into the archive; runs that are there already are left alone.

    A run with a parent waits for it, wherever the two stand in the list. The parent's weights are kept until no run of the
    sweep needs them any more; one whose weights are gone is trained again for them.

    A run that fails or diverges is reported at the end while the others go on. A run that another process is working on
    is waited for, and taken over if that process dies. A run whose worker dies is started again, on its own, two times.

    Args:
        configs: the runs, in order of priority.
        results, data_dir, device, engine, threads, checkpoint_seconds: as in `rwclib.training.run`.
        jobs: processes at once; default `default_jobs(device)`. With an `executor`, how many jobs it holds at once, or a
            function that says so now and then; default as many as there are.
        executor: anything with the `concurrent.futures.Executor` interface, for example
            `distributed.Client(...).get_executor(pure=False)` or what `rwclib.executors` opens; its workers must see the
            results folder and the data under the same paths.
        chunk: runs per job, worked off one after the other.
        time_budget: seconds after which every run stops at the end of a batch, with a checkpoint, and jobs that have not
            begun are cancelled. Local processes that do not get there in ten more seconds (one very long batch) are ended,
            and go on from their last checkpoint next time.
        progress: called now and then with a run's name and the dict that `training.run` reports, and with an empty dict
            when the run ends.

    Raises:
        ConfigError: a config that no machine can run; nothing is started then.
        ArchiveError: the results folder cannot be written.
    """
    configs = list(dict.fromkeys(configs))
    results = Path(results or archive.default_results()).absolute()
    until = time.monotonic() + time_budget if time_budget is not None else None  # whatever the clock does
    for config in configs:
        training.check(config)
    if executor is None:  # else the workers' devices count, not this machine's
        steps.check_engine(engine, training.resolve_device(device))
    report, missing, of_children = Report(), [], {config.parent for config in configs}
    for config in configs:
        if finished(results, config):
            if config.hash not in of_children:  # else it may be half trained again for its weights
                archive.tidy(results, config)
            report.already.append(config.name)
        else:
            missing.append(config)
    if not missing:
        parents.drop_weights(configs, results, {*report.left, *report.failed})
        return report
    _check_writable(results)
    for name in dict.fromkeys(config.dataset for config in missing):  # once, before several workers try
        try:
            data.load(name, data_dir)
        except DataError as error:
            report.failed |= {config.name: str(error) for config in missing if config.dataset == name}
    missing = [config for config in missing if config.name not in report.failed]
    keep = {config.parent for config in missing if config.parent and not weights.borrowed(results, config).exists()}
    missing, lost = parents.to_train(missing, {config.hash: config for config in configs}, results, report.failed, keep)
    for config, problem in lost.items():
        report.enter(config.name, problem)
    report.already = [name for name in report.already if name not in {config.name for config in missing}]
    unfinished = {config.hash for config in missing}
    parents.lend(results, [config for config in missing if config.parent and config.parent not in unfinished])
    waiting = [
        generation[first : first + chunk]
        for generation in parents.generations(missing)
        for first in range(0, len(generation), chunk)
    ]
    options = {"results": str(results), "data_dir": str(data.folder(data_dir).absolute()), "device": device,
               "engine": engine, "threads": threads, "checkpoint_seconds": checkpoint_seconds, "keep": keep}  # fmt: skip
    # One single-worker pool per process: a worker that dies costs its own runs alone.
    pools = [executor] if executor else [_local_pool() for _ in range(min(jobs or default_jobs(device), len(waiting)))]
    futures: dict[Future, tuple[list[RunConfig], int]] = {}
    deaths: dict[RunConfig, int] = {}
    seen: dict[str, float] = {}

    def end(config: RunConfig, outcome: bool | Exception) -> None:
        """Report a run; its children can start now, or never will."""
        report.enter(config.name, outcome)
        unfinished.discard(config.hash)
        if progress and not isinstance(outcome, OutOfTimeError):
            progress(config.name, {})
        if isinstance(outcome, bool) and not (config.hash in keep and diverged(results, config)):
            parents.lend(results, [child for child in missing if child.parent == config.hash])
            return
        if not isinstance(outcome, OutOfTimeError):
            kind = RwcError if config.name in report.failed else DivergedError
            why = report.failed.get(config.name) or "it diverged"
            outcome = kind(f"its parent {config.name} is not there: {why}")
        for child in [child for batch in waiting for child in batch if child.parent == config.hash]:
            waiting[:] = [kept for batch in waiting if (kept := [other for other in batch if other != child])]
            end(child, outcome)

    def wanted(config: RunConfig) -> bool:
        """Whether it is still to be trained, or its weights are."""
        children = (child for child in missing if child.parent == config.hash)
        return not finished(results, config) or any(
            wanted(child) and not finished(results, child, keep) for child in children
        )

    try:
        while waiting or futures:
            if until is not None and time.monotonic() > until:
                for future, (batch, _) in list(futures.items()):
                    if not any(_owner(results, config) for config in batch) and future.cancel():
                        del futures[future]
                        waiting.append(batch)
                for config in (config for batch in waiting for config in batch):
                    report.enter(config.name, False if finished(results, config, keep) else OutOfTimeError())
                waiting.clear()
            if until is not None and time.monotonic() > until + _GRACE and executor is None:
                for pool in pools:
                    _terminate(pool)
            if executor is None:
                idle = sorted(set(range(len(pools))) - {slot for _, slot in futures.values()})
            else:
                most = jobs() if callable(jobs) else jobs or len(waiting) + len(futures)
                idle = [0] * (most - len(futures))
            for batch in list(waiting):
                if not idle:
                    break
                if any(config.parent in unfinished for config in batch):
                    continue
                if all(_owner(results, config) and not finished(results, config, keep) for config in batch):
                    continue  # another process is at it; look again
                waiting.remove(batch)
                for config in [config for config in batch if config.hash in keep and not wanted(config)]:
                    batch.remove(config)  # another process has finished it and its children
                    end(config, False)
                if not batch:
                    continue
                slot = idle.pop(0)
                deadline = None if until is None else time.time() + until - time.monotonic()
                futures[_submit(pools[slot], batch, options | {"deadline": deadline})] = batch, slot
            done, _ = wait(futures, timeout=_POLL, return_when=FIRST_COMPLETED)
            if not futures and waiting:
                time.sleep(_POLL)
            for future in done:
                batch, slot = futures.pop(future)
                outcomes = _outcomes(future, len(batch))
                if executor is None and isinstance(outcomes[0], BrokenExecutor):
                    pools[slot] = _local_pool()
                for config, outcome in zip(batch, outcomes, strict=True):
                    dead = isinstance(outcome, BrokenExecutor)
                    deaths[config] = deaths.get(config, 0) + dead
                    if dead and finished(results, config, keep):
                        outcome = False
                    elif dead and until is not None and time.monotonic() > until:
                        outcome = OutOfTimeError()
                    elif isinstance(outcome, RunLockedError) or (dead and deaths[config] < _ATTEMPTS):
                        waiting.append([config])
                        continue
                    end(config, outcome)
            if progress:
                _look(results, {config.name for batch, _ in futures.values() for config in batch}, seen, progress)
    except BaseException:
        for future in futures:
            future.cancel()
        if executor is None:
            for pool in pools:
                _terminate(pool)
        raise
    finally:
        if executor is None:
            for pool in pools:
                pool.shutdown(wait=True, cancel_futures=True)
    parents.drop_weights(configs, results, {*report.left, *report.failed})
    return report


def _check_writable(results: Path) -> None:
    try:
        results.mkdir(parents=True, exist_ok=True)
        probe = results / f".probe-{os.getpid()}"
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise ArchiveError(
            f"results folder {results} cannot be written ({error.strerror}); choose another with --results"
        ) from error


def _local_pool() -> ProcessPoolExecutor:
    """One worker: forked, where that exists, from a clean server process that has imported PyTorch once for all."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["rwclib.sweep", "torchvision"])
    return ProcessPoolExecutor(1, mp_context=context)


def _terminate(pool: ProcessPoolExecutor) -> None:
    """Stop the workers at once; their checkpoints stay."""
    for process in list((pool._processes or {}).values()):
        process.terminate()


def _submit(executor: Executor, batch: list[RunConfig], options: dict) -> Future:
    try:
        return executor.submit(_work, batch, options)
    except BrokenExecutor as error:
        future: Future = Future()
        future.set_exception(error)
        return future


def _outcomes(future: Future, count: int) -> list[bool | Exception]:
    """What became of each run of a job: as `_work` says, or `BrokenExecutor` if its worker died or was lost."""
    try:
        return future.result()
    except CancelledError:  # not by the sweep: Dask's client does so when it loses its scheduler
        return [BrokenExecutor()] * count
    except Exception as error:  # a run's failure must not end the sweep
        dead = type(error).__name__ == "KilledWorker"  # Dask's, which need not be installed
        return [BrokenExecutor() if dead else error] * count


def _owner(results: Path, config: RunConfig) -> str | None:
    return locks.live_owner(archive.lock_path(results, config))


def _work(batch: list[RunConfig], options: dict) -> list[bool | RwcError]:
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
    note = _progress_file(results, config)

    def tell(values: dict) -> None:
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
    return True


def _progress_file(results: Path, config: RunConfig) -> Path:
    return results / ".cache" / f"{config.name}.progress.json"


def _look(results: Path, running: set[str], seen: dict[str, float], tell: Callable[[str, dict], None]) -> None:
    for file in (results / ".cache").glob("*.progress.json"):
        name = file.name.removesuffix(".progress.json")
        try:
            changed = file.stat().st_mtime
            if name in running and seen.get(name) != changed:
                seen[name] = changed
                tell(name, json.loads(file.read_text()))
        except (OSError, ValueError):
            continue

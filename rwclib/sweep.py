"""Many runs on any `concurrent.futures` executor; by default local processes with one thread each."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from rwclib import archive, data, locks, training
from rwclib.config import RunConfig
from rwclib.errors import ArchiveError, DataError, DivergedError, OutOfTimeError, RunLockedError, RwcError

_POLL = 0.5  # seconds between looks at progress and at other processes' locks
_ATTEMPTS = 3  # of a run whose worker process dies


@dataclass
class Report:
    """What became of every run of a sweep, by run name; messages where there is something to say."""

    already: list[str] = field(default_factory=list)
    trained: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)  # finished by another process meanwhile
    diverged: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)  # out of time

    @property
    def ok(self) -> bool:
        """Whether no run failed. Diverged runs are results; runs left over by a time budget go on next time."""
        return not self.failed

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
    jobs: int | None = None,
    executor: Executor | None = None,
    time_budget: float | None = None,
    checkpoint_seconds: float = training.CHECKPOINT_SECONDS,
    progress: Callable[[str, dict], None] | None = None,
) -> Report:
    """Bring every run into the archive; runs that are there already are left alone.

    A run that fails or diverges is reported at the end while the others go on. A run that another process is working on
    is waited for, and taken over if that process dies.

    Args:
        configs: the runs, in order of priority.
        results, data_dir, device, engine, checkpoint_seconds: as in `rwclib.training.run`.
        jobs: processes at once; default `default_jobs(device)`. Ignored with an `executor`.
        executor: anything with the `concurrent.futures.Executor` interface, for example that of a Dask client; its
            workers must see the results folder and the data under the same paths.
        time_budget: seconds after which every run stops at the end of its epoch, with a checkpoint.
        progress: called now and then with a run's name and the dict that `training.run` reports, and with an empty dict
            when the run ends.

    Raises:
        ConfigError: a config that no machine can run; nothing is started then.
        ArchiveError: the results folder cannot be written.
    """
    configs = list(dict.fromkeys(configs))
    results = Path(results or archive.default_results()).absolute()
    deadline = time.time() + time_budget if time_budget is not None else None
    for config in configs:
        training.check(config)
    training.resolve_device(device)
    report, pending = Report(), []
    for config in configs:
        if archive.is_finished(results, config) and not _damaged(results, config):
            report.already.append(config.name)
        else:
            pending.append(config)
    if not pending:
        return report
    _check_writable(results)
    for name in dict.fromkeys(config.dataset for config in pending):  # once, before several workers try
        try:
            data.load(name, data_dir)
        except DataError as error:
            report.failed |= {config.name: str(error) for config in pending if config.dataset == name}
    pending = [config for config in pending if config.name not in report.failed]
    options = {"results": str(results), "data_dir": str(data_dir) if data_dir else None, "device": device,
               "engine": engine, "deadline": deadline, "checkpoint_seconds": checkpoint_seconds}  # fmt: skip
    # One single-worker pool per process: a worker that dies costs its own run alone.
    jobs = min(jobs or default_jobs(device), len(pending))
    pools: list[Executor] = [executor] if executor else [_local_pool() for _ in range(jobs)]
    attempts: dict[RunConfig, int] = {}
    futures: dict[Future, tuple[RunConfig, int]] = {}
    seen: dict[str, float] = {}
    try:
        while pending or futures:
            if deadline is not None and time.time() > deadline:
                report.left += [config.name for config in pending]
                pending = []
            for config in list(pending):
                idle = set(range(len(pools))) - ({slot for _, slot in futures.values()} if executor is None else set())
                if not idle:
                    break
                if locks.live_owner(archive.lock_path(results, config)) and not archive.is_finished(results, config):
                    continue  # another process is at it; look again
                pending.remove(config)
                attempts[config] = attempts.get(config, 0) + 1
                slot = min(idle)
                futures[pools[slot].submit(_work, config, options)] = config, slot
            done, _ = wait(futures, timeout=_POLL, return_when=FIRST_COMPLETED)
            if not futures and pending:
                time.sleep(_POLL)
            for future in done:
                config, slot = futures.pop(future)
                try:
                    (report.trained if future.result() else report.elsewhere).append(config.name)
                except RunLockedError:
                    pending.append(config)
                except OutOfTimeError:
                    report.left.append(config.name)
                except DivergedError as error:
                    report.diverged[config.name] = str(error)
                except BrokenExecutor:
                    if executor is None:
                        pools[slot] = _local_pool()
                    if executor is None and attempts[config] < _ATTEMPTS:
                        pending.append(config)
                    else:
                        report.failed[config.name] = (
                            f"its worker process died {attempts[config]} times (out of memory?)"
                        )
                except RwcError as error:
                    report.failed[config.name] = str(error)
                except Exception as error:  # a run's failure must not end the sweep
                    report.failed[config.name] = f"{type(error).__name__}: {error}"
                if progress:
                    progress(config.name, {})
            if progress:
                _look(results, [config for config, _ in futures.values()], seen, progress)
    except BaseException:
        if executor is None:
            for pool in pools:
                _terminate(pool)
        raise
    finally:
        if executor is None:
            for pool in pools:
                pool.shutdown(wait=True, cancel_futures=True)
    return report


def _damaged(results: Path, config: RunConfig) -> bool:
    try:
        archive.read(results, config)
    except ArchiveError:
        return True
    return False


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


def _work(config: RunConfig, options: dict) -> bool:
    """Train one run in a worker; False if another process had finished it."""
    results = Path(options["results"])
    if archive.is_finished(results, config) and not _damaged(results, config):
        return False
    note = _progress_file(results, config)

    def tell(values: dict) -> None:
        note.parent.mkdir(parents=True, exist_ok=True)
        part = note.with_suffix(".part")
        part.write_text(json.dumps(values))
        os.replace(part, note)

    try:
        training.run(config, **options, threads=1, progress=tell)
    finally:
        note.unlink(missing_ok=True)
    return True


def _progress_file(results: Path, config: RunConfig) -> Path:
    return results / ".cache" / f"{config.name}.progress.json"


def _look(
    results: Path, running: Iterable[RunConfig], seen: dict[str, float], tell: Callable[[str, dict], None]
) -> None:
    for config in running:
        file = _progress_file(results, config)
        try:
            changed = file.stat().st_mtime
            if seen.get(config.name) != changed:
                seen[config.name] = changed
                tell(config.name, json.loads(file.read_text()))
        except (OSError, ValueError):
            continue

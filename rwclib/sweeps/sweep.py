"""Many runs on any `concurrent.futures` executor; by default local processes with one thread each."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from pathlib import Path

from rwclib.errors import ArchiveError, DataError, DivergedError, OutOfTimeError, RunLockedError, RwcError
from rwclib.runs import archive, checkpoint, data, locks, steps, training, weights
from rwclib.runs.config import RunConfig
from rwclib.sweeps.pools import end, local_pool
from rwclib.sweeps.report import ATTEMPTS, Report
from rwclib.sweeps.worker import diverged, finished, look, work

_POLL = 0.5  # seconds between looks at progress and at other processes' locks
_GRACE = 10.0  # seconds that runs have at the end of a time budget for their batch and checkpoint
_LONGEST = 30.0  # the same of runs that have saved no checkpoint in this call


def default_jobs(device: str) -> int:
    """One process per CPU core, or two at once on a GPU."""
    return 2 if steps.resolve_device(device).type == "cuda" else os.cpu_count() or 1


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

    Parents are trained before their children, wherever these stand in the list. Their weights stay in the archive's cache; a
    parent whose weights are gone is trained again for them.

    A run that fails or diverges is reported while the others go on. One that another process is working on is waited for, and
    taken over if that process dies. One whose worker dies is started again, on its own, two times.

    Args:
        configs: the runs, in order of priority.
        results, data_dir, device, engine, threads, checkpoint_seconds: as in `rwclib.runs.training.run`.
        jobs: processes at once; default `default_jobs(device)`. With an `executor` the jobs it holds at once, or a function that
            says how many; default as many as there are.
        executor: a `concurrent.futures.Executor`, for example what `rwclib.sweeps.executors` opens; its workers must see the
            results folder and the data under the same paths.
        chunk: runs per job, worked off one after the other.
        time_budget: seconds after which every run stops at the end of a batch, with a checkpoint, and jobs that have not
            begun are cancelled. Local processes still at it ten seconds later, or thirty if they have saved nothing in this call,
            are ended, and go on from their last checkpoint next time.
        progress: called now and then with a run's name and the dict that `training.run` reports, and with an empty dict
            when the run ends.

    Raises:
        ConfigError: a config that no machine can run; nothing is started then.
        ArchiveError: the results folder cannot be written.
    """
    configs = list(dict.fromkeys(configs))
    for config in configs:
        training.check(config)
    if executor is None:  # else the workers' devices count, not this machine's
        steps.check_engine(engine, steps.resolve_device(device))
    options = {"data_dir": str(data.folder(data_dir).absolute()), "device": device, "engine": engine, "threads": threads,
               "checkpoint_seconds": checkpoint_seconds}  # fmt: skip
    if executor is None:
        jobs = jobs or default_jobs(device)
    folder = Path(results or archive.default_results()).absolute()
    return _Sweep(configs, folder, options, executor, jobs, chunk, time_budget, progress).run()


class _Sweep:
    """One call of `run_all`."""

    def __init__(
        self,
        configs: list[RunConfig],
        results: Path,
        options: dict,
        executor: Executor | None,
        jobs: int | Callable[[], int] | None,
        chunk: int,
        time_budget: float | None,
        progress: Callable[[str, dict], None] | None,
    ) -> None:
        self.configs, self.results, self.options, self.executor = configs, results, options, executor
        self.jobs, self.chunk, self.progress = jobs, chunk, progress
        self.began = time.time()
        self.until = None if time_budget is None else time.monotonic() + time_budget  # whatever the clock does
        self.report = Report()
        self.lost: dict[RunConfig, Exception] = {}  # runs that are not there, and why
        self.keep: set[str] = set()  # hashes of the runs whose weights others start from
        self.pools: list[Executor] = [executor] if executor else []
        self.waiting: list[list[RunConfig]] = []
        self.futures: dict[Future, tuple[list[RunConfig], int]] = {}  # what was handed to which pool
        self.deaths: Counter[RunConfig] = Counter()
        self.seen: dict[str, float] = {}  # when a run's progress changed

    def run(self) -> Report:
        """Train what is missing, generation by generation."""
        try:
            for generation in self.plan():
                with_parents = [config for config in generation if not self._end_orphan(config)]
                self.waiting = [with_parents[i : i + self.chunk] for i in range(0, len(with_parents), self.chunk)]
                if self.executor is None:  # one worker a pool: a worker that dies costs its own runs alone
                    self.pools += [local_pool() for _ in range(min(self.jobs, len(self.waiting)) - len(self.pools))]
                while self.waiting or self.futures:
                    if self._is_late():
                        self.stop()
                    self.submit()
                    self.collect()
        except BaseException:
            for future in self.futures:
                future.cancel()
            self._terminate(*self.pools)
            raise
        finally:
            for pool in [] if self.executor else self.pools:
                pool.shutdown(wait=True, cancel_futures=True)
        return self.report

    def plan(self) -> list[list[RunConfig]]:
        """What has to be trained, parents before children: the missing runs, and parents whose weights are gone."""
        missing = [config for config in self.configs if not finished(self.results, config)]
        if missing:
            _check_writable(self.results)
        for name in dict.fromkeys(config.dataset for config in missing):  # once, before several workers try
            try:
                if not data.path(name, self.options["data_dir"]).exists():
                    data.load(name, self.options["data_dir"])
            except DataError as error:
                for config in [config for config in missing if config.dataset == name]:
                    missing.remove(config)
                    self._end(config, error)
        chosen = dict.fromkeys(missing)
        for config in [config for generation in generations(missing) for config in generation]:
            problem = self._need_parent(config, chosen)
            if problem:
                del chosen[config]
                self._end(config, problem)
        for config in self.configs:
            if config not in chosen and config not in self.lost:
                archive.remove_leftovers(self.results, config)
                self.report.already.append(config.name)
        self.keep = {config.parent for config in chosen if config.parent}
        return generations(chosen)

    def _need_parent(self, config: RunConfig, chosen: dict[RunConfig, None]) -> Exception | None:
        """See to it that the parent's weights will be there, by choosing to train it if they are not; or say why they cannot."""
        parent = next((other for other in self.configs if other.hash == config.parent), None)
        if not config.parent or parent in chosen or weights.path(self.results, config.parent).exists():
            return None
        if parent is None:
            return RwcError(
                f"its parent {config.parent} is not among the runs and its weights are not kept; add the parent to the runs"
            )
        if parent not in self.lost and diverged(self.results, parent):
            return DivergedError(f"its parent {parent.name} diverged")
        problem = self.lost.get(parent) or self._need_parent(parent, chosen)
        if problem:
            return _orphaned(parent, problem)
        chosen[parent] = None
        return None

    def _end_orphan(self, config: RunConfig) -> bool:
        """Report a run whose parent is not there; whether that is so."""
        parent = next((other for other in self.lost if other.hash == config.parent), None)
        if parent:
            self._end(config, _orphaned(parent, self.lost[parent]))
        return parent is not None

    def submit(self) -> None:
        """Hand waiting runs to free workers, but those that another process is at."""
        if self.executor is None:
            free = sorted(set(range(len(self.pools))) - {slot for _, slot in self.futures.values()})
        else:
            jobs = self.jobs() if callable(self.jobs) else self.jobs or len(self.waiting) + len(self.futures)
            free = [0] * (jobs - len(self.futures))
        options = self.options | {"results": str(self.results), "keep": self.keep}
        options["deadline"] = None if self.until is None else time.time() + self.until - time.monotonic()
        for batch in list(self.waiting):
            if free and not all(self._is_elsewhere(config) for config in batch):
                self.waiting.remove(batch)
                slot = free.pop(0)
                self.futures[_submit(self.pools[slot], batch, options)] = batch, slot

    def collect(self) -> None:
        """Wait a moment for runs to end, and report them; those that died or were locked are queued again."""
        done, _ = wait(self.futures, timeout=_POLL, return_when=FIRST_COMPLETED)
        if not self.futures:
            time.sleep(_POLL)
        for future in done:
            batch, slot = self.futures.pop(future)
            outcomes = _outcomes(future, len(batch))
            if self.executor is None and isinstance(outcomes[0], BrokenExecutor):
                self.pools[slot] = local_pool()
            for config, outcome in zip(batch, outcomes, strict=True):
                dead = isinstance(outcome, BrokenExecutor)
                self.deaths[config] += dead
                if dead and finished(self.results, config, self.keep):
                    self._end(config, False)
                elif dead and self._is_late():
                    self._end(config, OutOfTimeError())
                elif isinstance(outcome, RunLockedError) or (dead and self.deaths[config] < ATTEMPTS):
                    self.waiting.append([config])
                else:
                    self._end(config, outcome)
        if self.progress:
            running = {config.name for batch, _ in self.futures.values() for config in batch}
            look(self.results, running, self.seen, self.progress)

    def stop(self) -> None:
        """Report what has not begun as left; end local processes that take too long for a batch."""
        for future, (batch, _) in list(self.futures.items()):
            if not any(self._owner(config) for config in batch) and future.cancel():
                del self.futures[future]
                self.waiting.append(batch)
        for config in [config for batch in self.waiting for config in batch]:
            self._end(config, False if finished(self.results, config, self.keep) else OutOfTimeError())
        self.waiting.clear()
        late = time.monotonic() - self.until
        for batch, slot in self.futures.values():
            if late > _GRACE and (late > _LONGEST or any(self._has_saved(config) for config in batch)):
                self._terminate(self.pools[slot])

    def _end(self, config: RunConfig, outcome: bool | Exception) -> None:
        self.report.enter(config.name, outcome)
        if not isinstance(outcome, bool):
            self.lost[config] = outcome
        elif config.hash in self.keep and diverged(self.results, config):  # another process found out
            self.lost[config] = DivergedError("it diverged")
        if self.progress and not isinstance(outcome, OutOfTimeError):
            self.progress(config.name, {})

    def _is_late(self) -> bool:
        return self.until is not None and time.monotonic() > self.until

    def _owner(self, config: RunConfig) -> str | None:
        return locks.owner(archive.lock_path(self.results, config))

    def _is_elsewhere(self, config: RunConfig) -> bool:
        return bool(self._owner(config)) and not finished(self.results, config, self.keep)

    def _has_saved(self, config: RunConfig) -> bool:
        """Whether the run has written a checkpoint during this call."""
        file = archive.cache_dir(self.results, config) / checkpoint.FILE
        return file.exists() and file.stat().st_mtime > self.began

    def _terminate(self, *pools: Executor) -> None:
        """Stop local workers at once; their checkpoints stay."""
        for pool in [] if self.executor else pools:
            end(pool)


def generations(configs: Collection[RunConfig]) -> list[list[RunConfig]]:
    """The runs whose parents are not among them, then those whose parents are among these, and so on."""
    parts, rest = [], list(configs)
    while rest:
        hashes = {config.hash for config in rest}
        parts.append([config for config in rest if config.parent not in hashes])
        rest = [config for config in rest if config.parent in hashes]
    return parts


def _orphaned(parent: RunConfig, problem: Exception) -> Exception:
    """What becomes of a run whose parent had this problem."""
    if isinstance(problem, OutOfTimeError):
        return problem
    kind = DivergedError if isinstance(problem, DivergedError) else RwcError
    return kind(f"its parent {parent.name} is not there: {problem}")


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


def _submit(executor: Executor, batch: list[RunConfig], options: dict) -> Future:
    try:
        return executor.submit(work, batch, options)
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

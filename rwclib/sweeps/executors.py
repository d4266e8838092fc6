"""Where the runs of a sweep are trained: processes of this machine, the workers of a Dask cluster, or Slurm jobs.

Dask and submitit come with the extra `cluster` and are loaded when asked for.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import queue
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from rwclib.errors import ConfigError, RwcError
from rwclib.runs import archive
from rwclib.sweeps.sweep import default_jobs

EXECUTORS = ("local", "dask", "slurm")
Jobs = int | Callable[[], int] | None

_LARGEST_ARRAY = 1000  # jobs; Slurm's MaxArraySize is 1001 unless configured otherwise
_CONNECT = 5.0  # seconds to a scheduler's port; what listens there has three times as many to answer
_ROUND = {"slurm": 5.0, "local": 0.2}  # seconds between two looks at submitit's jobs
_OWN_KEYS = ("cluster", "name", "timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node")  # of submitit, not Slurm's
_MAX_TIMEOUTS = 100  # of one job: a run goes on where it stopped, so a time limit costs no more than a new start


@contextlib.contextmanager
def open_executor(
    kind: str = "local",
    *,
    results: str | Path | None = None,
    jobs: int | None = None,
    device: str = "auto",
    scheduler: str | None = None,
    slurm: Sequence[str] = (),
) -> Iterator[tuple[Executor | None, Jobs]]:
    """`with open_executor(...) as (executor, jobs): run_all(configs, executor=executor, jobs=jobs, ...)`.

    Leaving the block cancels what is still queued.

    Args:
        kind: a name in `EXECUTORS`.
        results: the archive's folder, which all machines must share; what submitit keeps is below it.
        jobs: jobs at once; default `default_jobs(device)` on this machine, all workers of a Dask cluster, and as many as
            Slurm allows.
        device: as in `rwclib.runs.training.run`.
        scheduler: address of a Dask scheduler, `tcp://host:8786`; default a cluster of `jobs` workers on this machine.
        slurm: `KEY=VALUE` parameters of submitit and Slurm; `cluster=local` runs submitit's jobs on this machine.

    Raises:
        ConfigError: options that do not go together, a package that is missing, or a cluster that is not there.
    """
    if kind not in EXECUTORS:
        raise ConfigError(f"unknown executor {kind!r}; known: {', '.join(EXECUTORS)}")
    if scheduler is not None and kind != "dask":
        raise ConfigError("--scheduler is the address of a Dask scheduler; add --executor dask")
    if slurm and kind != "slurm":
        raise ConfigError("--slurm is for Slurm jobs; add --executor slurm")
    if kind == "dask":
        with _dask(jobs, device, scheduler) as opened:
            yield opened
    elif kind == "slurm":
        with _submitit(Path(results or archive.default_results()).absolute(), jobs, device, slurm) as opened:
            yield opened
    else:
        yield None, jobs


def _load(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(f"the package {package} is missing; install it with `pip install {package}`") from error


@contextlib.contextmanager
def _dask(jobs: int | None, device: str, scheduler: str | None) -> Iterator[tuple[Executor, Jobs]]:
    distributed = _load("distributed")
    with contextlib.ExitStack() as stack:
        if scheduler is None:
            # A dead worker is started anew, but one that takes longer than this is given up, and none comes in its place.
            stack.enter_context(_load("dask").config.set({"distributed.deploy.lost-worker-timeout": "10 days"}))
            where = stack.enter_context(
                distributed.LocalCluster(
                    n_workers=jobs or default_jobs(device), threads_per_worker=1, memory_limit=None, dashboard_address=None,
                    silence_logs=logging.ERROR,
                )
            )  # fmt: skip
        else:
            _check_listens(where := scheduler)
        try:
            client = stack.enter_context(distributed.Client(where, timeout=3 * _CONNECT))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{where} is no Dask scheduler of this version ({error})") from error
        told = False

        def most() -> int:
            """One run per worker process and none queued there: when a worker dies, Dask blames all that it holds."""
            nonlocal told
            try:
                workers = len(client.nthreads())
            except (OSError, RuntimeError) as error:
                raise RwcError(
                    f"the Dask scheduler {where} was lost; start it again and call again: runs go on where they stopped"
                ) from error
            if scheduler and not workers and not told:
                print(f"no worker yet: dask worker {scheduler} --nthreads 1", file=sys.stderr, flush=True)
            told = not workers
            return min(jobs or workers, workers)

        yield client.get_executor(pure=False), most


def _check_listens(scheduler: str) -> None:
    """`ConfigError` at once where Dask's client would try for long, and go on trying when asked to stop."""
    try:
        address = urlsplit(scheduler)
        socket.create_connection((address.hostname or "", address.port or 0), timeout=_CONNECT).close()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no Dask scheduler answers at {scheduler} ({error}); start one with `dask scheduler` and give the address that "
            "it prints, such as tcp://host:8786"
        ) from error


class Resumable:
    """What a submitit job calls; after a preemption or at its time limit the job is queued again with the same arguments.

    The runs go on from their own checkpoints.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def checkpoint(self, *args: Any) -> Any:
        """submitit's `DelayedSubmission` of the same call."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *args)


class SubmititExecutor(Executor):
    """submitit's jobs as futures. One thread submits what has come in as one job array, and asks after all jobs.

    A future stays pending until its job is done, so that it can be cancelled at any time. A job that ends without a
    result gives `BrokenExecutor` with the path of its log.
    """

    def __init__(self, inner: Any, seconds: float) -> None:
        self._inner, self._seconds = inner, seconds  # a submitit executor; time between two rounds
        self._new: queue.SimpleQueue[tuple[Future, Callable, tuple]] = queue.SimpleQueue()
        self._jobs: dict[Future, Any] = {}
        self.lost = 0  # jobs cancelled or without a result
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def submit(self, function: Callable, /, *args: Any) -> Future:
        if self._stop.is_set():
            raise RuntimeError("cannot schedule new futures after shutdown")
        future: Future = Future()
        self._new.put((future, function, args))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Cancel every job that is not done; `wait` and `cancel_futures` change nothing."""
        self._stop.set()
        self._thread.join()
        self._cancel(list(self._jobs.values()))
        for future in [*self._jobs, *(self._new.get()[0] for _ in range(self._new.qsize()))]:
            future.cancel()

    def _watch(self) -> None:
        while not self._stop.wait(self._seconds):
            try:
                self._hand_over()
                self._collect()
            except Exception as error:  # a command of Slurm's that is missing or fails: no future may wait for ever
                for future in self._jobs:
                    if future.set_running_or_notify_cancel():
                        future.set_exception(RwcError(f"{type(error).__name__}: {error}; the jobs cannot be followed"))
                self._jobs = {}

    def _hand_over(self) -> None:
        calls = [self._new.get() for _ in range(min(self._new.qsize(), _LARGEST_ARRAY))]
        calls = [call for call in calls if not call[0].cancelled()]
        if not calls:
            return
        try:
            with _outside_of_jobs(), self._inner.batch():
                jobs = [self._inner.submit(Resumable(function), *args) for _, function, args in calls]
        except Exception as error:
            refused = RwcError(
                f"the job was refused ({' '.join(str(error).split())}); change or add a --slurm KEY=VALUE"
            )
            for future, _, _ in calls:
                if future.set_running_or_notify_cancel():
                    future.set_exception(refused)
        else:
            self._jobs |= {future: job for (future, _, _), job in zip(calls, jobs, strict=True)}

    def _collect(self) -> None:
        self._cancel([self._jobs.pop(future) for future in list(self._jobs) if future.cancelled()])
        for future, job in list(self._jobs.items()):
            try:
                if not job.done():
                    continue
                if self._inner.cluster == "local" and not job.paths.result_pickle.exists():
                    raise FileNotFoundError  # where submitit would wait for a slow file system
                outcome, give = job.result(), future.set_result
            except Exception:  # submitit's UncompletedJobError; or its result cannot be read
                self.lost += 1
                outcome, give = BrokenExecutor(f"its log is {job.paths.stderr}"), future.set_exception
            del self._jobs[future]
            if future.set_running_or_notify_cancel():
                give(outcome)

    def _cancel(self, jobs: list[Any]) -> None:
        self.lost += len(jobs)
        if jobs and self._inner.cluster == "slurm":
            subprocess.call(["scancel", *(job.job_id for job in jobs)])  # one call for all
        elif jobs:
            for job in jobs:
                job.cancel(check=False)
            for job in jobs:
                job.wait()


@contextlib.contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Within a Slurm job, `sbatch` without the variables that would tie what it submits to this job's CPUs and memory."""
    from submitit.helpers import clean_env

    kept = {key: value for key, value in os.environ.items() if key == "SLURM_CONF"}
    with clean_env() if "SLURM_JOB_ID" in os.environ else contextlib.nullcontext():
        os.environ.update(kept)
        yield


@contextlib.contextmanager
def _submitit(
    results: Path, jobs: int | None, device: str, words: Sequence[str]
) -> Iterator[tuple[SubmititExecutor, Jobs]]:
    submitit = _load("submitit")
    parameters = {"name": "rwc", "timeout_min": 240, **_parameters(words)}
    cluster = parameters.pop("cluster", "slurm")
    if cluster not in ("slurm", "local"):
        raise ConfigError(f"--slurm cluster={cluster} is unknown; write cluster=slurm or cluster=local")
    if cluster == "slurm" and jobs:
        parameters.setdefault("slurm_array_parallelism", jobs)
    folder = results / ".cache" / "submitit" / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    try:
        inner = submitit.AutoExecutor(folder, cluster=cluster, **{f"{cluster}_max_num_timeout": _MAX_TIMEOUTS})
        inner.update_parameters(**parameters)
    except RuntimeError as error:
        raise ConfigError(
            "there is no Slurm here (srun was not found); call this on a login node, or try it with --slurm cluster=local"
        ) from error
    except (AssertionError, NameError, TypeError, ValueError) as error:
        raise ConfigError(f"--slurm: {str(error).splitlines()[0]}") from error
    executor = SubmititExecutor(inner, _ROUND[cluster])
    try:
        yield executor, (jobs or default_jobs(device)) if cluster == "local" else None
    finally:
        executor.shutdown()
        if not executor.lost:  # else the logs say why
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                folder.parent.rmdir()


def _parameters(words: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` words as arguments of submitit's `update_parameters`: its own keys as they are, Slurm's with `slurm_`."""
    parameters: dict[str, Any] = {}
    for word in words:
        key, _, text = word.partition("=")
        if not key or not text:
            raise ConfigError(f"--slurm {word!r} lacks a key or a value; write --slurm KEY=VALUE")
        if key in ("nodes", "tasks_per_node", "ntasks_per_node"):
            raise ConfigError(f"--slurm {key} cannot be set: a run is one task on one node; use --chunk or --jobs")
        if key not in _OWN_KEYS:
            key = f"slurm_{key.removeprefix('slurm_')}"
        try:
            value = json.loads(text)
        except ValueError:
            value = text  # most are: names, or 16G
        if key in ("slurm_setup", "slurm_teardown", "slurm_srun_args"):
            value = [*parameters.get(key, []), text]
        parameters[key] = value
    return parameters

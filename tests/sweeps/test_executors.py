"""Sweeps on Dask workers and in Slurm jobs: real processes that are killed and preempted, and a stand-in for Slurm."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from rwclib import archive
from rwclib.app.cli import app
from rwclib.errors import ArchiveError, ConfigError
from rwclib.studies import layerwise
from rwclib.sweeps import executors
from rwclib.sweeps.executors import Resumable, open_executor
from rwclib.sweeps.sweep import run_all
from rwclib.sweeps.worker import work
from tests.conftest import command, holder, tables

LIMIT = 300.0  # seconds for anything to happen on a busy machine
SMOKE = ["sweep", "layerwise", "--profile", "smoke", "--only", "alexnet", "--dataset", "fashion_mnist_sample",
         "--seed", 0, "--seed", 1, "--seed", 2, "--device", "cpu", "--json"]  # fmt: skip


@pytest.fixture(scope="module")
def configs():
    return layerwise.runs("smoke", models=["alexnet"], datasets=["fashion_mnist_sample"], seeds=[0, 1, 2])


@pytest.fixture(scope="module")
def expected(configs, tmp_path_factory):
    """The tables of every run after a sweep with local processes."""
    results = tmp_path_factory.mktemp("local")
    assert run_all(configs, results=results, device="cpu", jobs=2).ok
    return {config.name: tables(archive.run_dir(results, config)) for config in configs}


def check(results, configs, expected, resumed=()):
    """All runs are in the archive with the expected tables, and those that were `resumed` were so once."""
    assert archive.verify(results) == []
    for config in configs:
        assert tables(archive.run_dir(results, config)) == expected[config.name]
        record = archive.read(results, config).record
        assert record["provenance"]["resumed"] == (config.name in resumed)
        assert record["provenance"]["threads"] == 1


def finish(process):
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, err
    return json.loads(out)


def until(condition):
    """The first true value of `condition()`."""
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.002)
    raise TimeoutError


@contextlib.contextmanager
def cleaned_up(*processes):
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def catch(process, results, but=()):
    """Halt the process of a run that has written a checkpoint and is not done; the run's name and the process's id."""

    def halt():
        assert process.poll() is None, process.communicate()
        for checkpoint in (results / ".cache").glob("*/checkpoint.safetensors"):
            lock = checkpoint.parent.with_suffix(".lock")
            if checkpoint.parent.name in but:
                continue
            with contextlib.suppress(OSError):
                if pid := holder(lock):
                    os.kill(pid, signal.SIGSTOP)
                    time.sleep(0.05)
                    if checkpoint.exists() and holder(lock) == pid:
                        return checkpoint.parent.name, pid
                    os.kill(pid, signal.SIGCONT)
        return None

    return until(halt)


def dask(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "dask", *map(str, arguments), "--no-dashboard"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def test_a_killed_dask_worker_costs_no_run(configs, expected, tmp_path):
    """Two workers, one of them killed with SIGKILL in the middle of a run; the other finishes what is left."""
    file, results = tmp_path / "scheduler.json", tmp_path / "results"
    with cleaned_up(dask("scheduler", "--host", "127.0.0.1", "--port", 0, "--scheduler-file", file)):
        address = until(lambda: file.exists() and file.read_text() and json.loads(file.read_text())["address"])
        options = ["--no-nanny", "--nthreads", 1, "--memory-limit", 0]
        workers = [dask("worker", address, *options, "--local-directory", tmp_path / str(i)) for i in range(2)]
        arguments = [
            *SMOKE,
            "--results",
            results,
            "--checkpoint-seconds",
            0,
            "--executor",
            "dask",
            "--scheduler",
            address,
        ]
        with cleaned_up(*workers, command(*arguments)) as (*_, process):
            name, pid = catch(process, results)
            victim = next(worker for worker in workers if worker.pid == pid)
            victim.kill()
            victim.wait()
            report = finish(process)
    assert sorted(report["trained"]) == sorted(expected)
    assert not report["elsewhere"]
    check(results, configs, expected, {name})


@pytest.mark.long
def test_a_dask_cluster_of_its_own_starts_a_killed_worker_anew(configs, expected, tmp_path):
    """Its only worker is killed in the middle of a job of two runs, which another worker begins again."""
    arguments = [
        *SMOKE,
        "--results",
        tmp_path,
        "--checkpoint-seconds",
        0,
        "--executor",
        "dask",
        "--jobs",
        1,
        "--chunk",
        2,
    ]
    with cleaned_up(command(*arguments)) as (process,):
        name, pid = catch(process, tmp_path)
        os.kill(pid, signal.SIGKILL)
        report = finish(process)
    assert sorted(report["trained"] + report["elsewhere"]) == sorted(expected)  # the job's first run may have been done
    assert name in report["trained"]
    check(tmp_path, configs, expected, {name})


@pytest.mark.long
def test_submitit_jobs_that_are_killed_and_preempted_cost_no_run(configs, expected, tmp_path):
    """One job is killed with SIGKILL in the middle of a run, another gets the signal that Slurm sends ahead of preemption."""
    arguments = [*SMOKE, "--results", tmp_path, "--checkpoint-seconds", 0, "--executor", "slurm", "--jobs", 2]
    with cleaned_up(command(*arguments, "--slurm", "cluster=local", "--slurm", "partition=unused")) as (process,):
        killed, pid = catch(process, tmp_path)
        os.kill(pid, signal.SIGKILL)
        preempted, pid = catch(process, tmp_path, but=[killed])
        os.kill(pid, signal.SIGUSR2)
        os.kill(pid, signal.SIGCONT)
        report = finish(process)
    assert sorted(report["trained"]) == sorted(expected)
    assert not report["elsewhere"]
    check(tmp_path, configs, expected, {killed, preempted})
    assert len(list((tmp_path / ".cache" / "submitit").glob("*/*_log.err"))) == len(configs) + 1  # kept, as a job died


def test_a_job_is_queued_again_with_the_same_arguments():
    job = Resumable(max)
    again = job.checkpoint(3, 4)
    assert type(again).__name__ == "DelayedSubmission"
    assert again.function is job
    assert again.args == (3, 4)
    assert again.result() == 4


def test_one_run_of_a_chunk_spoils_no_other(config, tmp_path):
    short = [replace(config, epochs=1, n_train=64, seed=seed) for seed in range(4)]
    wild, impossible = replace(short[0], lr=1e12, n_train=256), replace(short[1], n_train=10**6)
    with ThreadPoolExecutor(1) as executor:
        report = run_all([wild, impossible, *short[2:]], results=tmp_path, executor=executor, chunk=4)
    assert report.trained == [item.name for item in short[2:]]
    assert list(report.diverged) == [wild.name]
    assert "n_train is 1000000" in report.failed[impossible.name]


class Dying(ThreadPoolExecutor):
    """Workers that die as long as `dies(batch)`."""

    def __init__(self, dies, error):
        super().__init__(1)
        self.dies, self.error, self.batches = dies, error, []

    def submit(self, function, batch, options):
        self.batches.append([config.seed for config in batch])
        if not self.dies(batch):
            return super().submit(function, batch, options)
        future = Future()
        future.set_exception(self.error)
        return future


@pytest.mark.parametrize("kind", ["submitit", "dask"])
def test_after_a_death_every_run_of_the_chunk_has_a_worker_of_its_own(config, tmp_path, kind):
    from distributed.scheduler import KilledWorker

    error = BrokenExecutor("its log is LOG") if kind == "submitit" else KilledWorker("task", None, 3)
    short = [replace(config, epochs=1, n_train=64, seed=seed) for seed in range(3)]
    with Dying(lambda batch: short[1] in batch, error) as executor:
        report = run_all(short, results=tmp_path, executor=executor, chunk=3)
    assert executor.batches == [[0, 1, 2], [0], [1], [2], [1]]
    assert sorted(report.trained) == [short[0].name, short[2].name]
    assert "died 3 times" in report.failed[short[1].name]
    assert ("LOG" in report.failed[short[1].name]) == (kind == "submitit")


def test_an_executor_holds_no_more_jobs_than_it_should(config, tmp_path):
    short = [replace(config, epochs=1, n_train=64, seed=seed) for seed in range(3)]
    most = []
    with ThreadPoolExecutor(3) as executor:
        submit = executor.submit
        executor.submit = lambda *args: most.append(len(list((tmp_path / ".cache").glob("*.lock")))) or submit(*args)
        assert len(run_all(short, results=tmp_path, executor=executor, jobs=lambda: 1).trained) == 3
    assert most == [0, 0, 0]


def test_a_worker_that_does_not_see_the_results_folder_says_so(config, tmp_path):
    with pytest.raises(ArchiveError, match="is not there on .* folder that all machines share"):
        work([config], {"results": str(tmp_path / "absent")})


@pytest.fixture
def fake_slurm(tmp_path, monkeypatch):
    """Slurm's commands as scripts: `sbatch` starts every job of an array at once, unless `idle` exists in the folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    scripts = {
        "srun": 'while [[ $1 == --* ]]; do [[ $1 == --unbuffered ]] && shift || shift 2; done\nexec "$@"',
        "sacct": "echo 'JobID|State|NodeList'",
        "scancel": 'echo "$@" >> "${0%/*}/cancelled"',
        "sbatch": """cp "$1" "${0%/*}/submitted"
            env > "${0%/*}/environment"
            [[ $(grep -c refuse "$1") == 0 ]] || { echo "invalid partition" >&2; exit 1; }
            last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")
            for i in $(seq 0 $last); do
                [[ -e ${0%/*}/idle ]] && continue
                SLURM_JOB_ID=8$i SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=$i bash "${0%/*}/submitted" > "${0%/*}/log$i" 2>&1 &
            done
            echo "Submitted batch job 7" """,
    }
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(executors, "_ROUND", dict.fromkeys(executors._ROUND, 0.5))
    return folder


def slurm_sweep(configs, results, *words, jobs=None, **options):
    with open_executor("slurm", results=results, slurm=words, jobs=jobs) as (executor, most):
        return run_all(configs, results=results, executor=executor, jobs=most, device="cpu", **options)


def test_slurm_gets_one_array_with_the_parameters(configs, expected, tmp_path, fake_slurm):
    report = slurm_sweep(
        configs, tmp_path / "results", "partition=gpu", "mem_gb=4", "timeout_min=30", "slurm_setup=true", jobs=2, chunk=2
    )  # fmt: skip
    assert sorted(report.trained) == sorted(expected), [file.read_text() for file in fake_slurm.glob("log*")]
    check(tmp_path / "results", configs, expected)
    script = (fake_slurm / "submitted").read_text()
    for line in ("--array=0-1%2", "--partition=gpu", "--mem=4GB", "--time=30", "--job-name=rwc", "--signal=USR2@90"):
        assert f"#SBATCH {line}\n" in script
    assert "\ntrue\n" in script
    assert not list((tmp_path / "results" / ".cache").rglob("*"))


def test_queued_jobs_are_cancelled_when_the_time_is_up_and_on_ctrl_c(configs, tmp_path, fake_slurm, monkeypatch):
    (fake_slurm / "idle").touch()
    for key in ("SLURM_JOB_ID", "SLURM_CPU_BIND", "SLURM_CONF"):  # the sweep is itself in a job
        monkeypatch.setenv(key, "outer")
    report = slurm_sweep(configs, tmp_path, time_budget=3.0, jobs=2)
    assert sorted(report.left) == sorted(config.name for config in configs)
    assert (fake_slurm / "cancelled").read_text() == "7_0 7_1 7_2\n"
    (fake_slurm / "cancelled").unlink()
    assert re.findall("SLURM_.*", (fake_slurm / "environment").read_text()) == ["SLURM_CONF=outer"]

    def interrupt():
        if (fake_slurm / "submitted").exists():
            raise KeyboardInterrupt
        return 4

    (fake_slurm / "submitted").unlink()
    with pytest.raises(KeyboardInterrupt), open_executor("slurm", results=tmp_path) as (executor, _):
        run_all(configs, results=tmp_path, executor=executor, jobs=interrupt, device="cpu")
    assert (fake_slurm / "cancelled").read_text() == "7_0 7_1 7_2\n"


def test_a_job_that_slurm_refuses_fails_with_its_reason(configs, tmp_path, fake_slurm):
    report = slurm_sweep(configs, tmp_path, "partition=refuse")
    assert set(report.failed) == {config.name for config in configs}
    assert all("invalid partition" in message for message in report.failed.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--executor", "pbs"], "unknown executor 'pbs'; known: local, dask, slurm"),
        (["--scheduler", "tcp://127.0.0.1:1"], "add --executor dask"),
        (["--slurm", "partition=gpu"], "add --executor slurm"),
        (["--executor", "dask", "--slurm", "partition=gpu"], "add --executor slurm"),
        (["--executor", "dask", "--scheduler", "tcp://127.0.0.1:1"], "no Dask scheduler answers at tcp://127.0.0.1:1 "),
        (["--executor", "dask", "--scheduler", "nonsense"], "no Dask scheduler answers at nonsense "),
        (["--executor", "dask", "--scheduler", "tcp://host:port"], "no Dask scheduler answers at tcp://host:port "),
        (["--executor", "slurm"], "there is no Slurm here .* --slurm cluster=local"),
        (["--executor", "slurm", "--slurm", "cluster=lsf"], "cluster=lsf is unknown"),
        (["--executor", "slurm", "--slurm", "gpu"], "lacks a key or a value"),
        (["--executor", "slurm", "--slurm", "nodes=2"], "a run is one task on one node"),
        (["--executor", "slurm", "--slurm", "cluster=local", "--slurm", "colour=red"], "'colour' for executor 'slurm'"),
        (["--executor", "slurm", "--slurm", "cluster=local", "--slurm", "timeout_min=1h"], '"timeout_min" expected type'),
    ],
)  # fmt: skip
def test_options_that_cannot_work_are_one_sentence(options, message, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # no Slurm
    began = time.monotonic()
    result = CliRunner().invoke(app, [*map(str, SMOKE), "--results", str(tmp_path / "results"), *options])
    assert time.monotonic() - began < 30
    assert isinstance(result.exception, ConfigError)
    assert re.search(message, str(result.exception)), result.exception
    assert "\n" not in str(result.exception)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(("kind", "package"), [("dask", "distributed"), ("slurm", "submitit")])
def test_a_missing_package_is_named(kind, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with (
        pytest.raises(ConfigError, match=f"{package} is missing; install it with `pip install {package}`"),
        open_executor(kind),
    ):
        pass

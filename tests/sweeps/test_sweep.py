"""Sweeps: any executor, failures that do not spread, time budgets, and two processes on one results folder."""

import contextlib
import json
import os
import re
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from rwclib import archive, training
from rwclib.errors import ArchiveError, ConfigError, RunLockedError
from rwclib.runs import locks
from rwclib.studies import layerwise
from rwclib.sweeps.forecast import outlook
from rwclib.sweeps.sweep import run_all
from tests.conftest import command, contents, holder, rwc, tables
from tests.sweeps.victims import until


@pytest.fixture
def short(config):
    return [replace(config, epochs=1, n_train=64, seed=seed) for seed in range(3)]


def test_a_sweep_with_processes_gives_the_tables_of_single_runs(short, tmp_path):
    seen = []
    report = run_all(short[:2], results=tmp_path / "a", jobs=2, progress=lambda name, values: seen.append(name))
    assert report.ok
    assert sorted(report.trained) == sorted(config.name for config in short[:2])
    assert set(seen) == set(report.trained)
    for config in short[:2]:
        assert tables(training.run(config, results=tmp_path / "b", threads=1)) == tables(
            archive.run_dir(tmp_path / "a", config)
        )
    assert not list((tmp_path / "a" / ".cache").rglob("*"))


def test_a_worker_that_always_dies_fails_its_own_run_and_no_other(short, tmp_path):
    """Every worker that trains the first run is killed; its neighbour in the other worker goes on."""

    def kill(name, values):
        with contextlib.suppress(ProcessLookupError):
            if pid := holder(victim):
                os.kill(pid, 9)

    long = [replace(short[0], epochs=500), replace(short[1], epochs=3)]
    victim = archive.lock_path(tmp_path, long[0])
    report = run_all(long, results=tmp_path, jobs=2, progress=kill, checkpoint_seconds=0)
    assert report.trained == [long[1].name]
    assert "died 3 times" in report.failed[long[0].name]


def test_any_executor_will_do_and_a_second_call_trains_nothing(short, tmp_path):
    with ThreadPoolExecutor(1) as executor:
        report = run_all(short, results=tmp_path, executor=executor)
        assert len(report.trained) == 3
        before = contents(tmp_path)
        report = run_all(short, results=tmp_path, executor=executor)
    assert report.summary() == "3 in the archive already"
    assert contents(tmp_path) == before


def test_runs_in_threads_of_one_process_do_not_disturb_each_others_seeds(short, tmp_path):
    with ThreadPoolExecutor(3) as executor:
        assert run_all(short, results=tmp_path / "threads", executor=executor).ok
    for config in short:
        place = training.run(config, results=tmp_path / "alone", threads=1)
        assert tables(place) == tables(archive.run_dir(tmp_path / "threads", config))


def test_diverging_and_failing_runs_are_reported_while_the_others_go_on(short, tmp_path):
    wild = replace(short[0], lr=1e12, n_train=256)
    impossible = replace(short[1], n_train=10**6)
    with ThreadPoolExecutor(1) as executor:
        report = run_all([wild, impossible, short[2]], results=tmp_path, executor=executor)
    assert report.trained == [short[2].name]
    assert list(report.diverged) == [wild.name]
    assert "n_train is 1000000" in report.failed[impossible.name]
    assert not report.ok


def test_a_damaged_run_is_trained_again_by_the_sweep(short, tmp_path):
    with ThreadPoolExecutor(1) as executor:
        run_all(short[:1], results=tmp_path, executor=executor)
        place = archive.run_dir(tmp_path, short[0])
        good = tables(place)
        (place / "epochs.parquet").write_bytes(b"")
        report = run_all(short[:1], results=tmp_path, executor=executor)
    assert report.trained == [short[0].name]
    assert tables(place) == good


def test_a_config_that_no_machine_can_run_stops_the_sweep_before_it_starts(short, tmp_path):
    with pytest.raises(ConfigError, match="unknown model"):
        run_all([short[0], replace(short[0], model="resnet19")], results=tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_a_results_folder_that_cannot_be_written_is_one_sentence(short, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArchiveError, match="results folder .* cannot be written"):
        run_all(short, results=tmp_path / "file" / "results")


def test_a_time_budget_leaves_the_rest_for_the_next_call_and_changes_no_number(config, tmp_path):
    configs = [replace(config, seed=seed) for seed in range(3)]
    calls, left = 0, 1
    while left:
        with ThreadPoolExecutor(1) as executor:
            report = run_all(configs, results=tmp_path / "parts", executor=executor, time_budget=1.0)
        assert report.ok
        left, calls = len(report.left), calls + 1
        assert calls < 60  # at least one batch each
    assert calls > 1
    with ThreadPoolExecutor(1) as executor:
        run_all(configs, results=tmp_path / "whole", executor=executor)
    for item in configs:
        assert tables(archive.run_dir(tmp_path / "parts", item)) == tables(archive.run_dir(tmp_path / "whole", item))


def test_a_worker_process_that_is_killed_costs_no_run(config, tmp_path):
    """The worker's process is killed with SIGKILL in the middle; the sweep starts another and finishes."""
    configs = [replace(config, epochs=6, n_train=300, seed=seed) for seed in range(2)]
    killed = []

    def kill_once(name, values):
        if values and not killed:
            killed.append(holder(next((tmp_path / ".cache").glob("*.lock"))))
            os.kill(killed[0], 9)

    report = run_all(configs, results=tmp_path, jobs=1, progress=kill_once, checkpoint_seconds=0)
    assert killed
    assert killed[0] != os.getpid()
    assert sorted(report.trained) == sorted(item.name for item in configs)


def test_two_sweeps_on_one_folder_finish_every_run_exactly_once(tmp_path):
    arguments = [
        "sweep", "layerwise", "--profile", "smoke", "--dataset", "fashion_mnist_sample", "--results", tmp_path, "--jobs", 1,
        "--only", "resnet18", "--seed", 0, "--seed", 1, "--seed", 2, "--seed", 3, "--json", "--device", "cpu",
    ]  # fmt: skip
    sweeps = [command(*arguments) for _ in range(2)]
    reports = []
    for process in sweeps:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        reports.append(json.loads(out))
    trained = [name for report in reports for name in report["trained"]]
    assert len(trained) == len(set(trained)) == 4
    assert all(len(r["trained"]) + len(r["elsewhere"]) + len(r["already"]) == 4 for r in reports)
    assert len(archive.directories(tmp_path)) == 4
    assert archive.verify(tmp_path) == []
    again = rwc(*arguments)
    assert len(json.loads(again.stdout)["already"]) == 4


def test_a_terminated_sweep_takes_its_workers_along(tmp_path):
    process = command("sweep", "layerwise", "--profile", "quick", "--dataset", "fashion_mnist_sample", "--results", tmp_path,
                      "--jobs", 2, "--device", "cpu", start_new_session=True)  # fmt: skip
    until(lambda: len(list(tmp_path.rglob("*.lock"))) == 2)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    until(lambda: not _alive(process.pid))  # the group, of which the workers are


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_run_locked_by_a_live_process_is_waited_for(config, tmp_path):
    with (
        locks.hold(archive.lock_path(tmp_path, config)),
        pytest.raises(RunLockedError, match="is being worked on by process"),
    ):
        training.run(config, results=tmp_path)
    with ThreadPoolExecutor(1) as executor:
        with locks.hold(archive.lock_path(tmp_path, config)):
            waiting = executor.submit(run_all, [config], results=tmp_path, jobs=1)
            time.sleep(2)
            assert not waiting.done()
        assert waiting.result().trained == [config.name]


def test_a_time_budget_ends_worker_processes_in_the_middle_of_an_epoch(config, tmp_path):
    long = replace(config, epochs=1, n_train=3000)
    for _ in range(3):  # a budget that is over at once leaves time for one batch
        report = run_all([long], results=tmp_path / "parts", device="cpu", jobs=1, time_budget=0.01)
        assert (report.ok, report.left, report.trained) == (True, [long.name], [])
    assert run_all([long], results=tmp_path / "parts", device="cpu", jobs=1).trained == [long.name]
    assert archive.read(tmp_path / "parts", long).record["provenance"]["resumed"] > 0
    run_all([long], results=tmp_path / "whole", device="cpu", jobs=1)
    assert tables(archive.run_dir(tmp_path / "parts", long)) == tables(archive.run_dir(tmp_path / "whole", long))


@pytest.mark.long
def test_a_batch_that_outlasts_the_time_budget_is_cut_off(config, tmp_path):
    endless = replace(config, width=160, batch_size=200)  # more than a minute for its first batch
    began = time.time()
    report = run_all([endless, replace(endless, seed=1)], results=tmp_path, device="cpu", jobs=1, time_budget=8)
    assert time.time() - began < 8 + 60  # not the minutes that its batch takes
    assert sorted(report.left) == sorted([endless.name, replace(endless, seed=1).name])
    assert report.ok


def test_the_commands_time_budget_counts_its_start_and_says_what_is_left(tmp_path):
    arguments = ["sweep", "layerwise", "--profile", "quick", "--only", "resnet18", "--dataset", "fashion_mnist_sample"]
    done = rwc(*arguments, "--device", "cpu", "--time-budget", 6, "--jobs", 2, "--results", tmp_path)
    assert done.returncode == 0
    assert done.stdout == "2 left for the next call\n"
    assert re.search(r"^runs to train: 2$", done.stderr, re.MULTILINE)  # no speed is known yet
    assert re.search(r"^runs left: 2; the same command goes on$", done.stderr, re.MULTILINE)
    for place in archive.directories(archive.default_results())[-1:]:
        shutil.copytree(place, tmp_path / "layerwise" / place.name)
    configs = layerwise.runs("quick", models=["resnet18"], datasets=["fashion_mnist_sample"])
    assert re.fullmatch(r", about \d+ (s|min) with 2 at once", outlook(configs, tmp_path, "cpu", 2))

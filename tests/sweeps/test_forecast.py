"""Estimates and order of runs, on the committed archive and by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rwclib import RunConfig, archive, training
from rwclib.errors import ConfigError, OutOfTimeError
from rwclib.runs import checkpoint
from rwclib.studies import dynamics, layerwise
from rwclib.sweeps import forecast as planning

RESULTS = archive.default_results()


def test_flops_are_those_of_a_count_by_hand():
    # LeNet-5 on 1x32x32: two operations per multiply-add; convolutions at 28x28 and 10x10, then the linear layers
    by_hand = 2 * (28 * 28 * 6 * 25 + 10 * 10 * 16 * 6 * 25 + 400 * 120 + 120 * 84 + 84 * 10)
    assert planning.forward_flops("lenet5", "mnist", 64, 32) == by_hand


def test_work_counts_the_images_of_training_threefold_and_those_of_evaluation_once():
    config = RunConfig(model="lenet5", dataset="mnist", epochs=2, n_train=100, n_test=10)
    assert planning.work(config) == planning.forward_flops("lenet5", "mnist", 64, 32) * 2 * (300 + 10)
    assert planning.work(replace(config, n_train=None, n_test=None)) == pytest.approx(
        planning.work(config) * 190_000 / 310
    )


def test_counting_needs_no_memory_for_weights():
    before = torch.get_rng_state()
    assert planning.forward_flops("vgg19_bn", "cifar10", 1024, 32) > 100 * planning.forward_flops(
        "vgg19_bn", "cifar10", 64, 32
    )
    assert torch.equal(torch.get_rng_state(), before)


def test_every_pair_gets_its_first_seed_before_any_its_second():
    grid = layerwise.runs("quick")
    by_pair = sorted(grid, key=lambda config: (config.model, config.dataset))  # both seeds of a pair side by side
    ordered = planning.order(by_pair)
    assert sorted(map(hash, ordered)) == sorted(map(hash, grid))
    assert [config.seed for config in ordered] == [0] * 12 + [42] * 12


@pytest.mark.parametrize(("priority", "sign"), [("shortest", 1), ("longest", -1)])
def test_equals_are_ordered_by_their_work(priority, sign):
    ordered = planning.order(layerwise.runs("quick"), priority)
    assert [config.seed for config in ordered] == [0] * 12 + [42] * 12
    work = [sign * planning.work(config) for config in ordered[:12]]
    assert work == sorted(work)


def test_an_unknown_priority_names_the_known_ones():
    with pytest.raises(ConfigError, match="unknown priority 'fast'; known: seeds, shortest, longest"):
        planning.order([], "fast")


def test_expected_seconds_agree_with_the_runs_they_come_from():
    """Over the committed archive: within a factor of two for nine in ten runs, on a machine that was often busy."""
    speeds, ratios = planning.rates(RESULTS), []
    for config, record in archive.records(RESULTS):
        expected = planning.seconds(config, speeds, record["provenance"]["device"])
        ratios.append(expected / record["provenance"]["train_and_test_seconds"])
    near = [0.5 < ratio < 2 for ratio in ratios]
    assert sum(near) >= 0.9 * len(near)


def test_the_speed_is_that_of_the_runs_most_alike():
    speeds = {
        ("cpu", "lenet5", "fp32", 64, 32): 1e9,
        ("cpu", "lenet5", "bf16", 64, 32): 3e9,
        ("cpu", "alexnet", "fp32", 16, 32): 8e9,
        ("gpu", "lenet5", "fp32", 64, 32): 1e12,
    }
    config = RunConfig(model="lenet5", dataset="mnist")
    assert planning.seconds(config, speeds, "tpu") is None
    for changes, speed in (({}, 1e9), ({"precision": "bf16"}, 3e9), ({"width": 32}, 2e9), ({"model": "vgg19"}, 3e9)):
        run = replace(config, **changes)
        assert planning.seconds(run, speeds, "cpu") == pytest.approx(planning.work(run) / speed)


def test_what_is_left_counts_the_epochs_of_a_checkpoint(config, tmp_path):
    assert planning.seconds_left([config], tmp_path, "cpu") is None
    training.run(replace(config, seed=7), results=tmp_path, device="cpu")
    whole = planning.seconds_left([config], tmp_path, "cpu")[0]

    def stop(values):
        if values["epoch"] == 2:
            raise OutOfTimeError("the test stops here")

    with pytest.raises(OutOfTimeError):
        training.run(config, results=tmp_path, device="cpu", checkpoint_seconds=0, progress=stop)
    assert checkpoint.epochs_done(archive.cache_dir(tmp_path, config) / checkpoint.FILE) == 1
    assert planning.seconds_left([config], tmp_path, "cpu")[0] == pytest.approx(whole * 2 / 3)


def test_a_plan_measures_the_speeds_that_the_archive_lacks(config, tmp_path, monkeypatch):
    runs = [replace(config, seed=seed) for seed in range(3)]
    found = planning.plan(runs, tmp_path, "cpu", 2)
    [row] = found["networks"]
    assert (row["network"], row["runs"], found["runs"], found["jobs"]) == ("resnet18, width 8, fp32", 3, 3, 2)
    assert found["hours"] == pytest.approx(2 * row["hours_each"])
    assert 1e8 < planning.work(config) / row["hours_each"] / 3600 < 1e13  # operations per second of a processor
    assert not any(tmp_path.iterdir())

    monkeypatch.setattr(planning, "measured_speed", None)  # would be an error to call
    place = training.run(config, results=tmp_path, device="cpu")
    lasted = archive.read_dir(place).record["provenance"]["train_and_test_seconds"]
    found = planning.plan(runs, tmp_path, "cpu", 1)
    assert (found["runs"], found["hours"]) == (2, pytest.approx(2 * lasted / 3600))


@pytest.mark.parametrize(("workers", "expected"), [(1, 10.0), (2, 7.0), (3, 5.0), (9, 4.0)])
def test_makespan(workers, expected):
    assert planning.makespan([3.0, 1.0, 2.0, 4.0], workers) == expected


def test_what_a_sweep_must_train_includes_parents_whose_weights_are_gone():
    grid = dynamics.runs("quick", models=["lenet5"], datasets=["mnist"])
    left = planning.unfinished(grid, RESULTS)
    assert left == []  # all are archived
    children = [config for config in grid if config.parent]
    assert children
    known = {config.hash: config for config in grid}

    def finished(results, config):
        return config != children[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "finished", finished)
        assert planning.unfinished(grid, RESULTS) == [children[0], known[children[0].parent]]


def test_children_wait_for_the_generation_before():
    grid = dynamics.runs("quick", models=["lenet5"], datasets=["mnist"])
    parents = sum(not config.parent for config in grid)
    assert planning.span(dict.fromkeys(grid, 1.0), 100) == 2.0
    assert planning.span(dict.fromkeys(grid, 1.0), 1) == len(grid) > parents

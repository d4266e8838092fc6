"""Archived runs trained again: honest ones agree, also on another number of threads; edits and other code are found out."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from rwclib import archive, data, recheck, training
from rwclib.sweeps.sweep import run_all
from tests.app.test_cli import run as in_process
from tests.conftest import contents, rwc, tables

HERE = all(data.path(name).exists() for name in ("mnist", "fashion_mnist", "cifar10"))
needs_sets = pytest.mark.skipif(not HERE, reason="the image sets of the archive are not here; set RWC_DATA_DIR")


@pytest.fixture(scope="module")
def runs(config):
    """A ResNet; a LeNet with snapshots, and what starts from it after a flip of signs; LeNet by iterations."""
    config = replace(config, lr=0.01)
    lenet = replace(config, model="lenet5", width=64, snapshot_every=1)
    child = replace(lenet, parent=lenet.hash, perturbation="flip_sign", epochs=2)
    return [config, lenet, child, replace(lenet, snapshot_every=0, epochs=1, iterations=11)]


@pytest.fixture(scope="module")
def results(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recheck") / "results"
    assert run_all(runs, results=folder, jobs=2).ok
    return folder


def test_runs_trained_again_agree_to_the_bit_and_leave_the_archive_alone(runs, results):
    before = contents(results)
    comparisons = recheck.recheck([runs[0], runs[2], runs[3]], results, jobs=2, strict=True)
    assert {one.run.split("/")[1] for one in comparisons} == {config.name for config in runs}  # with the child's parent
    for one in comparisons:
        assert (one.problem, one.skipped, one.first or 0.0, one.largest) == ("", "", 0.0, 0.0), one.line()
        assert one.line().startswith("agrees ")
    assert contents(results) == before


EDITS = {
    "rwc": (0, "layers", "rwc", 2),
    "one layer": (0, "layers", "l2_ratio", 3),
    "a norm": (0, "layers", "l2_norm", 3),
    "a loss": (0, "epochs", "test_loss", 3),
    "snapshots": (1, "snapshots", "distance_start", 2),
    "features": (1, "features", "correlation", 3),
    "of a child": (2, "layers", "rwc", 1),
    "penultimate": (1, "penultimate", "values", 3),
    "filters": (3, "filters_0", "values", 3),
}


def edited(run, table, column, epoch, factor, one_row=False):
    """The run with one column of an epoch multiplied."""
    parts = {"layers": run.layers, "epochs": run.epochs, **run.extra}
    if isinstance(parts[table], np.ndarray):
        parts[table] = parts[table] * np.float32(factor)
    else:
        parts[table] = parts[table].copy()
        rows = parts[table]["epoch"] == epoch if "epoch" in parts[table] else parts[table].index >= 0
        chosen = parts[table].index[rows][: 1 if one_row else None]
        parts[table].loc[chosen, column] *= factor
    return replace(run, layers=parts.pop("layers"), epochs=parts.pop("epochs"), extra=parts)


@pytest.mark.parametrize("what", EDITS)
def test_strictly_a_number_altered_by_one_percent_is_found_out_and_named(runs, results, what):
    which, table, column, epoch = EDITS[what]
    honest = archive.read(results, runs[which])
    if table == "filters_0":
        table = next(name for name in honest.extra if name.startswith("filters_") and name != "filters_iterations")
    altered = edited(honest, table, column, epoch, 1 / 0.99, one_row=what == "one layer")
    comparison = recheck.compare(altered, honest, strict=True)
    assert f"{honest.config.name} differs in {table}." in comparison.problem
    assert f", {column} of epoch {epoch}, by 0.01 where 0 is allowed" in comparison.problem
    assert comparison.line().startswith("differs ")


def test_elsewhere_the_first_epoch_may_differ_as_rounding_makes_it_and_not_as_other_code_does(runs, results):
    honest = archive.read(results, runs[0])

    def problem(column, factor, epoch=1, table="layers"):
        return recheck.compare(honest, edited(honest, table, column, epoch, factor)).problem

    assert problem("rwc", 1.04) == ""
    assert "rwc of epoch 1, by 0.057 where 0.05 is allowed" in problem("rwc", 1.06)
    assert problem("rwc", 3.0, epoch=2) == ""  # rounding grows: later epochs tell nothing
    assert problem("l2_norm", 1.004) == ""
    assert "l2_norm of epoch 1, by 0.006 where 0.005 is allowed" in problem("l2_norm", 1.006)
    assert problem("test_loss", 1.1, table="epochs") == ""
    assert "test_loss of epoch 1, by 0.17 where 0.15 is allowed" in problem("test_loss", 1.2, table="epochs")
    for points, wrong in ((4, False), (6, True)):
        other = edited(honest, "epochs", "test_top1", 1, 1.0)
        other.epochs.loc[0, "test_top1"] += points
        assert ("test_top1 of epoch 1" in recheck.compare(honest, other).problem) == wrong


def test_elsewhere_a_run_that_starts_from_another_is_compared_by_rows_alone_and_says_so(runs, results):
    honest = archive.read(results, runs[2])
    comparison = recheck.compare(honest, edited(honest, "layers", "rwc", 1, 2.0))
    assert (comparison.problem, comparison.first) == ("", None)
    assert "rows alone: starts from weights trained again" in comparison.line()
    assert "other rows" in recheck.compare(honest, replace(honest, layers=honest.layers[1:])).problem


def test_a_table_altered_in_the_archive_is_found_out_by_the_command(runs, results, tmp_path):
    run = edited(archive.read(results, runs[1]), "layers", "rwc", 2, 1.01)
    record = {key: run.record[key] for key in ("status", "provenance")}
    place = archive.write(tmp_path / "results", run.config, record, run.layers, run.epochs, run.extra)
    assert archive.verify(tmp_path / "results") == []
    with ThreadPoolExecutor(1) as executor:
        (comparison,) = recheck.recheck([run.config], tmp_path / "results", executor=executor, strict=True)
    assert f"custom/{place.name} differs in layers.parquet, rwc of epoch 2" in comparison.problem


def lr_elsewhere(monkeypatch):
    made = training.optimizer
    monkeypatch.setattr(
        training, "optimizer", lambda config, model, engine: made(replace(config, lr=config.lr * 1.1), model, engine)
    )


def order_elsewhere(monkeypatch):
    monkeypatch.setattr(training, "generator", lambda seed, purpose: torch.Generator().manual_seed(seed + 1))


def start_elsewhere(monkeypatch):
    begun = training.begin
    monkeypatch.setattr(training, "begin", lambda config, known, parent: begun(replace(config, seed=9), known, parent))


def other_metric(monkeypatch):
    made = training.layers_table

    def squared(config, state):
        table = made(config, state)
        return table.assign(rwc=table["l2_ratio"])

    monkeypatch.setattr(training, "layers_table", squared)


@pytest.mark.parametrize(
    ("change", "strict"),
    [(lr_elsewhere, False), (start_elsewhere, False), (other_metric, False), (order_elsewhere, True)],
)
def test_other_code_is_found_out_in_the_first_epoch(runs, results, monkeypatch, change, strict):
    change(monkeypatch)
    with ThreadPoolExecutor(1) as executor:
        comparisons = recheck.recheck(runs[:2], results, executor=executor, strict=strict)
    for one in comparisons:
        assert " of epoch 1, by " in one.problem or " of epoch 0, by " in one.problem, one.line()


def test_other_rows_ends_and_image_sets_are_told_apart(runs, results):
    honest = archive.read(results, runs[1])

    def problem(archived=honest, again=honest):
        return recheck.compare(archived, again).problem

    assert "differs in layers.parquet, epoch: other rows" in problem(again=replace(honest, layers=honest.layers[1:]))
    renamed = replace(honest, layers=honest.layers.assign(layer=honest.layers["layer"].str.upper()))
    assert "differs in layers.parquet, layer: other rows" in problem(again=renamed)
    assert "differs in snapshots.parquet, which is not made any more" in problem(
        again=replace(honest, extra={key: found for key, found in honest.extra.items() if key != "snapshots"})
    )
    shorter = honest.extra | {"penultimate": honest.extra["penultimate"][1:]}
    assert "differs in penultimate.npy, shape" in problem(again=replace(honest, extra=shorter))
    diverged = replace(honest, record={**honest.record, "status": "diverged"})
    assert "differs in run.json, status: done in the archive, diverged when trained again" in problem(again=diverged)
    gone = edited(honest, "layers", "rwc", 1, np.nan)
    assert "rwc of epoch 1, by inf" in problem(again=gone)
    assert problem(gone, gone) == ""

    other = {**honest.record["provenance"], "data_digest": "0" * 12}
    comparison = recheck.compare(honest, replace(honest, record={**honest.record, "provenance": other}))
    assert (comparison.problem, comparison.line()[:8]) == ("", "skipped ")
    assert "another copy of fashion_mnist_sample" in comparison.skipped


def test_a_run_that_cannot_be_trained_is_said(runs, results, monkeypatch):
    monkeypatch.setattr(training, "layers_table", lambda config, state: 1 / 0)
    with ThreadPoolExecutor(1) as executor:
        (comparison,) = recheck.recheck(runs[:1], results, executor=executor)
    assert (
        comparison.problem == f"custom/{runs[0].name} could not be trained again: ZeroDivisionError: division by zero"
    )


def test_the_draw_is_that_of_the_seed_and_says_what_it_leaves_out(runs, results, tmp_path):
    draws = [[c.hash for c in recheck.choose(runs, results, 2, seed).drawn] for seed in [0, 0, *range(1, 8)]]
    assert draws[0] == draws[1]
    assert len({tuple(draw) for draw in draws}) > 2
    everything = recheck.choose(runs, results, 99, 0)
    assert set(everything.drawn) == set(everything.runs) == set(runs)
    child = recheck.choose([runs[2]], results, 1, 0)
    assert (child.drawn, set(child.runs)) == ([runs[2]], {runs[1], runs[2]})
    hurried = recheck.choose(runs, results, 99, 0, longest=0.0)
    assert (hurried.drawn, hurried.left_out) == ([], {"since they took more than 0 s": 4})
    orphan = archive.read(results, runs[2])
    archive.write(tmp_path, orphan.config, {key: orphan.record[key] for key in ("status", "provenance")},
                  orphan.layers, orphan.epochs, orphan.extra)  # fmt: skip
    assert recheck.choose(runs, tmp_path, 99, 0).left_out == {"since their parents are not in the archive": 1}


def test_image_sets_that_are_not_here_are_named(capsys, tmp_path):
    code, out, err = in_process(capsys, "results", "recheck", "--seed", 3, "--data-dir", tmp_path)
    assert (code, len(err.splitlines())) == (1, 1)
    assert "profile quick, seed 3: 0 of" in out
    assert "not drawn, since cifar10 is not here (`rwc data fetch cifar10`): " in out
    assert "none of the archived runs can be trained again here" in err
    assert not list(tmp_path.iterdir())


def test_folders_and_profiles_without_runs_are_one_sentence(capsys, tmp_path):
    code, _, err = in_process(capsys, "results", "recheck", "--results", tmp_path)
    assert (code, "no runs of any profile in" in err) == (1, True)
    assert in_process(capsys, "results", "recheck", "--profile", "paper")[0] == 1
    assert in_process(capsys, "results", "recheck", "--profile", "huge")[0] == 2
    assert in_process(capsys, "results", "recheck", "--study", "huge")[0] == 2


@pytest.mark.parametrize("which", [0, 1], ids=["resnet18", "lenet5"])
def test_another_number_of_threads_stays_within_the_tolerance(runs, results, tmp_path, which):
    archived = archive.read(results, runs[which])
    again = archive.read_dir(training.run(runs[which], results=tmp_path, threads=2))
    assert (archived.record["provenance"]["threads"], again.record["provenance"]["threads"]) == (1, 2)
    comparison = recheck.compare(archived, again)
    assert not comparison.problem, comparison.line()


@pytest.mark.long
@pytest.mark.parametrize(("model", "width"), [("lenet5", 64), ("resnet18", 8)])
def test_two_processes_with_the_same_threads_give_the_same_bits(tmp_path, model, width):
    places = [
        rwc("train", "--model", model, "--dataset", data.SAMPLE, "--width", width, "--epochs", 2, "--n-train", 200,
            "--n-test", 100, "--threads", 2, "--results", tmp_path / name)
        for name in "ab"
    ]  # fmt: skip
    first, second = (archive.Path(done.stdout.strip()) for done in places)
    assert tables(first) == tables(second)


@pytest.mark.long
@needs_sets
def test_two_archived_runs_are_trained_again():
    done = rwc("results", "recheck", "--sample", 2, "--seed", 0, "--longest", 8)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\nagrees ") >= 2
    assert "differs" not in done.stdout


@needs_sets
@pytest.mark.long
def test_a_dozen_archived_runs_of_every_length_are_trained_again():
    done = rwc("results", "recheck", "--sample", 12, "--seed", 0, "--longest", 85, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\nagrees ") >= 12

"""The archive: what is written can be read, and whatever is damaged is found, named and never half-read."""

import json
import os
import shutil
from dataclasses import replace

import pandas as pd
import pytest

from rwclib import archive, training
from rwclib.errors import ArchiveError
from tests.conftest import contents


@pytest.fixture(scope="module")
def finished(tmp_path_factory, config):
    """A results folder with two finished runs."""
    results = tmp_path_factory.mktemp("results")
    configs = [replace(config, epochs=1, n_train=64, seed=seed) for seed in (0, 1)]
    for item in configs:
        training.run(item, results=results)
    return results, configs


@pytest.fixture
def damaged(finished, tmp_path):
    """A copy of it to do damage to: (results, directory of the first run)."""
    results = tmp_path / "results"
    shutil.copytree(finished[0], results)
    return results, archive.run_dir(results, finished[1][0])


def test_loading_gives_tidy_tables_with_the_runs_fields(finished):
    results, configs = finished
    tables = archive.load(configs, results)
    assert len(tables.runs) == 2
    assert set(tables.runs["seed"]) == {0, 1}
    assert {"lr", "device", "data_note", "images_per_s", "torch"} <= set(tables.runs.columns)
    assert len(tables.layers) == 2 * 21
    assert {"epoch", "layer", "group", "rwc", "rwc_elementwise", "model", "dataset", "seed", "hash"} <= set(
        tables.layers
    )
    assert len(tables.epochs) == 2


def test_runs_that_are_not_there_are_absent_from_the_tables(finished, config):
    results, configs = finished
    tables = archive.load([configs[0], replace(config, seed=9)], results)
    assert list(tables.runs["seed"]) == [0]
    assert archive.load([replace(config, seed=9)], results).layers.empty


def truncate(place):
    (place / "layers.parquet").write_bytes((place / "layers.parquet").read_bytes()[:-30])
    return "layers.parquet was truncated or edited"


def flip_a_bit(place):
    raw = bytearray((place / "epochs.parquet").read_bytes())
    raw[len(raw) // 2] ^= 1
    (place / "epochs.parquet").write_bytes(raw)
    return "epochs.parquet was truncated or edited"


def remove_a_table(place):
    (place / "layers.parquet").unlink()
    return "layers.parquet cannot be read"


def edit_a_number(place):
    record = json.loads((place / "run.json").read_text())
    record["provenance"]["images_per_s"] = 1e9
    (place / "run.json").write_text(json.dumps(record))
    return "run.json was edited or damaged"


def edit_the_config(place):
    text = (place / "run.json").read_text()
    (place / "run.json").write_text(text.replace('"lr": 0.1', '"lr": 0.2'))
    return "run.json was edited or damaged"


def empty_the_record(place):
    (place / "run.json").write_text("")
    return "run.json cannot be read"


def rename_the_directory(place):
    place.rename(place.with_name("resnet18-someone-elses-run"))
    return "holds the run resnet18-fashion_mnist_sample"


DAMAGES = [truncate, flip_a_bit, remove_a_table, edit_a_number, edit_the_config, empty_the_record, rename_the_directory]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_found_named_and_left_as_it_is(damaged, damage):
    results, place = damaged
    message = damage(place)
    before = contents(results)
    problems = archive.verify(results)
    assert len(problems) == 1
    assert message in problems[0]
    assert "\n" not in problems[0]
    assert contents(results) == before


@pytest.mark.parametrize("damage", DAMAGES[:-1], ids=lambda damage: damage.__name__)
def test_a_damaged_run_is_never_loaded(damaged, finished, damage):
    results, place = damaged
    damage(place)
    with pytest.raises(ArchiveError, match=place.name):
        archive.load(finished[1], results)


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    target = tmp_path / "file"
    archive.write_atomically(target, b"old")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ArchiveError, match="cannot write .*No space left on device"):
        archive.write_atomically(target, b"new")
    assert os.listdir(tmp_path) == ["file"]
    assert target.read_bytes() == b"old"


def test_a_run_without_its_record_does_not_count(damaged, finished):
    results, place = damaged
    (place / "run.json").unlink()
    assert not archive.is_finished(results, finished[1][0])
    assert len(archive.directories(results)) == 1


def test_tables_are_parquet_that_anyone_can_read(finished):
    results, configs = finished
    table = pd.read_parquet(archive.run_dir(results, configs[0]) / "layers.parquet")
    assert str(table["rwc"].dtype) == "float64"
    assert table["epoch"].eq(1).all()

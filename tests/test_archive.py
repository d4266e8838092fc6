"""The archive: what is written can be read, and whatever is damaged is found, named and never half-read."""

import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from rwclib import archive, exchange, training
from rwclib.errors import ArchiveError

from .conftest import contents
from .fuzzing import signed


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


def test_exported_runs_come_back_identical(finished, tmp_path):
    results, _ = finished
    assert exchange.export(results, tmp_path / "runs.tar.gz") == 2
    assert exchange.import_(tmp_path / "runs.tar.gz", tmp_path / "other") == (2, 0)
    assert contents(tmp_path / "other") == contents(results)
    assert exchange.import_(tmp_path / "runs.tar.gz", tmp_path / "other") == (0, 2)


def test_a_damaged_run_is_not_exported(damaged, tmp_path):
    truncate(damaged[1])
    with pytest.raises(ArchiveError, match="truncated"):
        exchange.export(damaged[0], tmp_path / "runs.tar.gz")
    assert not (tmp_path / "runs.tar.gz").exists()


def tar_of(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize(
    "name", ["../../evil/run.json", "/etc/x/run.json", "a/b/c/run.json", "study/run/evil.py", "run.json"]
)
def test_a_tar_with_anything_but_runs_is_refused_and_writes_nothing(tmp_path, name):
    tar_of(tmp_path / "bad.tar", [(name, b"{}")])
    with pytest.raises(ArchiveError, match="nothing was imported|cannot be read"):
        exchange.import_(tmp_path / "bad.tar", tmp_path / "results")
    assert os.listdir(tmp_path) == ["bad.tar"]


def test_a_link_in_a_tar_is_refused(tmp_path):
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        info = tarfile.TarInfo("study/run/run.json")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(ArchiveError, match="no file of a run"):
        exchange.import_(tmp_path / "bad.tar", tmp_path / "results")


def test_one_damaged_run_in_a_tar_stops_the_whole_import(finished, tmp_path):
    results, _ = finished
    members = [(name, content) for name, content in contents(results).items() if name.count("/") == 2]
    members[0] = (members[0][0], members[0][1][:-5])
    tar_of(tmp_path / "bad.tar", members)
    with pytest.raises(ArchiveError, match="truncated or edited|cannot be read"):
        exchange.import_(tmp_path / "bad.tar", tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_a_file_that_is_no_tar_is_refused(tmp_path):
    (tmp_path / "bad.tar").write_bytes(b"no tar at all")
    with pytest.raises(ArchiveError, match="no tar that `rwc results export` wrote"):
        exchange.import_(tmp_path / "bad.tar", tmp_path / "results")


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


def forge(place, name="", content=b"", **changes):
    """Change a run's record, and a file, with the checksums that fit."""
    record = json.loads((place / "run.json").read_text()) | changes
    if name:
        (place / name).write_bytes(content)
        record["sha256"][name] = hashlib.sha256(content).hexdigest()
    (place / "run.json").write_bytes(archive._text(signed(record)))


@pytest.mark.parametrize(
    "changes",
    [{"sha256": None}, {"sha256": ["layers.parquet", "epochs.parquet"]}, {"provenance": []}, {"provenance": {"device": 1}},
     {"config": []}, {"status": []}],
)  # fmt: skip
def test_a_forged_record_of_another_form_is_found(damaged, changes):
    forge(damaged[1], **changes)
    (problem,) = archive.verify(damaged[0])
    assert f"{damaged[1]}/run.json" in problem


@pytest.mark.parametrize("text", ["cpu\x1b[2J", "two\nlines", "\u202e"])
def test_a_record_with_text_that_commands_a_terminal_is_refused(damaged, text):
    known = json.loads((damaged[1] / "run.json").read_text())["provenance"]
    for changed in (known | {"device": text}, known | {"data_note": text}, known | {text: 1}):
        forge(damaged[1], provenance=changed)
        (problem,) = archive.verify(damaged[0])
        assert f"{damaged[1]}/run.json" in problem
        assert text not in problem


def test_a_record_that_is_nested_too_deeply_is_found(damaged):
    (damaged[1] / "run.json").write_text("[" * 100_000)
    assert len(archive.verify(damaged[0])) == 1


def saved(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [("layers.parquet", b"PAR1"), ("layers.parquet", saved(np.eye(2))), ("some.npy", b"PAR1"),
     ("some.npy", saved(np.array([{}], dtype=object))), ("some.npy", saved(np.eye(2))[:-8])],
)  # fmt: skip
def test_a_file_of_another_kind_is_found_although_its_checksum_fits(damaged, name, content):
    forge(damaged[1], name, content)
    (problem,) = archive.verify(damaged[0])
    assert f"{name} is nothing that a run writes" in problem
    assert "\n" not in problem


def test_a_zip_in_the_place_of_an_array_is_found(damaged):
    buffer = io.BytesIO()
    np.savez(buffer, np.eye(2))
    forge(damaged[1], "some.npy", buffer.getvalue())
    with pytest.raises(ArchiveError, match="it is no array"):
        archive.read_dir(damaged[1])


def test_a_table_without_its_columns_is_found(damaged):
    table = pd.read_parquet(damaged[1] / "epochs.parquet")
    for other in (table.drop(columns="epoch"), table.astype({"epoch": str})):
        forge(damaged[1], "epochs.parquet", archive._parquet(other))
        with pytest.raises(ArchiveError, match="epochs.parquet is nothing that a run writes .*epoch"):
            archive.read_dir(damaged[1])


def test_a_table_of_too_many_rows_is_not_read(damaged, monkeypatch):
    monkeypatch.setattr(archive, "_CELLS", 100)
    with pytest.raises(ArchiveError, match="too many rows"):
        archive.read_dir(damaged[1])


def test_a_plain_tar_cut_off_behind_a_run_is_refused(finished, tmp_path):
    """Python's tarfile takes the end of the file for the end of the tar."""
    raw = gzip.decompress(exported(finished, tmp_path))
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        second = next(member for member in tar if "-s1-" in member.name)
    for end in (b"", b"\0" * 512, b"x" * 1024):
        (tmp_path / "cut.tar").write_bytes(raw[: second.offset] + end)
        with pytest.raises(ArchiveError, match="damaged or was cut off"):
            exchange.import_(tmp_path / "cut.tar", tmp_path / "other")
    (tmp_path / "cut.tar").write_bytes(raw)
    assert exchange.import_(tmp_path / "cut.tar", tmp_path / "other") == (2, 0)


def exported(finished, folder):
    exchange.export(finished[0], folder / "runs.tar.gz")
    return (folder / "runs.tar.gz").read_bytes()


def test_a_gzip_with_damaged_bytes_is_refused(finished, tmp_path):
    raw = exported(finished, tmp_path)
    for damaged in (raw[:1000] + b"\xff" * 50 + raw[1050:], raw[:-4], raw[:-8] + b"\0" * 8):
        (tmp_path / "bad.tar.gz").write_bytes(damaged)
        with pytest.raises(ArchiveError, match="no tar that `rwc results export` wrote"):
            exchange.import_(tmp_path / "bad.tar.gz", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_run_under_another_study_or_an_empty_file_twice_is_refused(finished, tmp_path):
    members = [(name, content) for name, content in contents(finished[0]).items() if name.count("/") == 2]
    tar_of(tmp_path / "bad.tar", [(name.replace("custom/", "layerwise/"), content) for name, content in members])
    with pytest.raises(ArchiveError, match="a run of custom"):
        exchange.import_(tmp_path / "bad.tar", tmp_path / "other")
    tar_of(tmp_path / "bad.tar", [("custom/run/a.npy", b"")] * 2)
    with pytest.raises(ArchiveError, match="twice"):
        exchange.import_(tmp_path / "bad.tar", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_tar_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(exchange, "_LARGEST_TAR", 2**21)
    (tmp_path / "bomb.tar.gz").write_bytes(gzip.compress(bytes(2**22)))
    with pytest.raises(ArchiveError, match="more than 2 MiB unpacked"):
        exchange.import_(tmp_path / "bomb.tar.gz", tmp_path / "other")

"""Bad input of every kind, by the thousand: one of the documented errors in one line, or a good answer. Nothing in a file is
run, nothing is written elsewhere, and memory stays bounded (`LIMIT`).

Hypothesis draws the cases, the same in every run; a target's number of cases is in `CASES`, and every test counts its own.
"""

from __future__ import annotations

import ast
import bz2
import contextlib
import copy
import gzip
import hashlib
import io
import json
import lzma
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import hypothesis
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from rwclib import RWCTracker, archive, checkpoint, cli, data, notebooks, weights
from rwclib.config import RunConfig
from rwclib.errors import ArchiveError, ConfigError, DataError, NotebookError, RwcError
from rwclib.metrics import METRICS
from rwclib.studies import weightscale_release

from .conftest import ROOT, contents, rwc

hypothesis.configuration.set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "rwclib-hypothesis")
CASES = {
    "configs": 4000, "records": 2500, "tables": 1500, "tars": 2500, "damaged tars": 2000, "npz": 2000, "damaged npz": 1500,
    "pickles": 4000, "damaged pickles": 3000, "weights": 1500, "checkpoints": 1200, "parameters": 3000, "notebooks": 600,
    "command lines": 1000,
}  # fmt: skip
LIMIT = 1 << 30  # bytes of memory that no bad file may need beyond what the imported package has
RUN = RunConfig(model="resnet18", dataset="mnist", width=8)


def explore(name: str, cases: st.SearchStrategy, check: Callable[[object], None]) -> None:
    """`check` as many cases as `CASES` says."""
    count = 0

    @settings(
        max_examples=CASES[name], derandomize=True, deadline=None, database=None, phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(cases)
    def one(case: object) -> None:
        nonlocal count
        count += 1
        check(case)

    one()
    assert count >= CASES[name]


def test_there_are_twenty_thousand_cases_and_each_is_run():
    assert sum(CASES.values()) >= 20_000
    text = Path(__file__).read_text()
    assert all(text.count(f'explore("{name}"') == 1 for name in CASES)


def answer(call: Callable, *errors: type[Exception]) -> object:
    """What the call returns; None if it raises one of these errors in one line, and anything else is a failure."""
    try:
        return call()
    except errors as error:
        text = str(error)
    assert len(text.splitlines()) == 1, text
    return None


# Cases

odd_text = st.text(max_size=6) | st.sampled_from([
    "", ".", "..", "../..", ".cache", "a/b", "/etc", "a\0b", "a\nb", "\ud800", "é", "x" * 300, "nan", "1e999", "'", "{}",
    "resnet18", "mnist", "done", "diverged",
])  # fmt: skip
leaf = st.none() | st.booleans() | st.integers() | st.floats() | odd_text | st.sampled_from([-1, 0, 1, 8, 2**31, 2**63])
anything = st.recursive(leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(odd_text, inner, max_size=3))
edits = st.lists(st.tuples(st.integers(0, 5), st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4)


def edited(raw: bytes, changes: list[tuple[int, float, int]]) -> bytes:
    """Bytes with bits flipped, overwritten, cut out, repeated, put in, cut off."""
    new = bytearray(raw)
    for kind, where, byte in changes:
        at = int(where * len(new))
        if kind == 0 and at < len(new):
            new[at] ^= 1 << byte % 8
        elif kind == 1:
            new[at : at + 1] = bytes([byte])
        elif kind == 2:
            del new[at : at + byte]
        elif kind == 3:
            new[at:at] = new[at : at + byte]
        elif kind == 4:
            new[at:at] = bytes([byte]) * 4
        elif kind == 5 and byte < 64:
            del new[at:]
    return bytes(new)


def places(tree: object, path: tuple = ()) -> list[tuple]:
    """The path of everything in a JSON tree."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path] + [place for key, value in inner for place in places(value, (*path, key))]


def regrown(tree: object, changes: list[tuple[float, str, object]]) -> object:
    """A JSON tree with parts replaced, taken out or added."""
    tree = {"": copy.deepcopy(tree)}
    for where, kind, value in changes:
        known = places(tree)[1:]
        *path, key = known[int(where * (len(known) - 1))]
        node = tree
        for step in path:
            node = node[step]
        if kind == "replace" or not path:
            node[key] = value
        elif kind == "add" and isinstance(node, dict):
            node[str(value)] = value
        else:
            del node[key]
    return tree[""]


growths = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from(["replace", "replace", "remove", "add"]), anything), max_size=3
)


# Settings of a run

likely = st.sampled_from(
    [0, 1, 8, 64, 0.1, True, None, "sgd", "imagenet", "pretrained:mnist", "0123456789ab", "shuffle"]
)


def test_settings_are_a_run_or_a_config_error():
    fields = dict.fromkeys(RUN.to_dict(), likely | anything)
    named = {"model": st.just("resnet18") | odd_text, "dataset": st.just("mnist") | odd_text}
    some = st.fixed_dictionaries(named, optional={key: fields[key] for key in fields if key not in named})

    def check(values):
        found = answer(lambda: RunConfig.from_dict(json.loads(json.dumps(values))), ConfigError)
        if found:
            assert PurePosixPath(found.name).parts == (found.name,)
            assert found.name.isascii()
            assert len(found.name) < 250
            assert found.study.replace("_", "").isalnum()
            assert RunConfig.from_dict(json.loads(json.dumps(found.to_dict()))) == found
            assert json.loads(found.canonical_json())["model"] == found.model

    explore("configs", some | st.builds(regrown, st.just(RUN.to_dict()), growths) | anything, check)


# Run directories


def signed(record: object) -> object:
    """A record with the checksum that the archive expects, as anyone can make one."""
    if isinstance(record, dict):
        rest = {key: value for key, value in record.items() if key != "checksum"}
        return rest | {"checksum": hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}
    return record


def frames() -> tuple[pd.DataFrame, pd.DataFrame]:
    """The two tables of a run of one layer and one epoch."""
    kinds = {"epoch": "int32", "depth": "int32", "size": "int64"} | dict.fromkeys(METRICS, "float64")
    layers = pd.DataFrame(
        {"epoch": [1], "layer": "fc", "group": "head"} | dict.fromkeys(["depth", "size", *METRICS], 1)
    )
    epochs = pd.DataFrame({"epoch": [1]} | dict.fromkeys(checkpoint.EPOCH_COLUMNS, 0.5))
    return layers.astype(kinds), epochs.astype({"epoch": "int32"})


def finished(results: Path, run: RunConfig = RUN) -> Path:
    """A run as the archive writes it, with a table and an array more."""
    record = {"status": "done", "provenance": {"n_train": 10, "device": "cpu", "train_and_test_seconds": 1.5}}
    return archive.write(results, run, record, *frames(), {"more": frames()[0], "some": np.arange(4.0)})


def npy(array: object, **header: object) -> bytes:
    """An `.npy` file, with another header than the array's own where one is given."""
    buffer = io.BytesIO()
    if header:
        np.lib.format.write_array_header_1_0(buffer, header)
        return buffer.getvalue() + np.asarray(array).tobytes()
    np.save(buffer, np.asarray(array), allow_pickle=True)
    return buffer.getvalue()


def packed(**arrays: object) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


class Trap:
    def __reduce__(self) -> tuple:
        return sprung.append, (1,)


sprung: list[int] = []
HUGE = npy([1, 2], descr="|u1", fortran_order=False, shape=(1 << 40,))
FILES = [b"", b"PAR1", b"{}", HUGE, npy([Trap()]), npy(np.eye(2)), packed(a=np.eye(2)), pickle.dumps(Trap())]


def test_a_record_that_anyone_could_have_forged_is_read_or_an_archive_error(tmp_path, capsys):
    place = finished(tmp_path / "results")
    record = json.loads((place / "run.json").read_text())
    names = [*record["sha256"], "run.json"]
    cases = st.tuples(
        st.builds(regrown, st.just(record), growths),
        st.booleans(),
        st.sampled_from(["", *names]),
        st.sampled_from(FILES),
    )

    def check(case):
        new, forged, name, content = case
        if forged and isinstance(new, dict) and isinstance(new.get("sha256"), dict) and name in new["sha256"]:
            new["sha256"][name] = hashlib.sha256(content).hexdigest()
        text = json.dumps(signed(new) if forged else new).encode()
        if name:
            (place / name).write_bytes(content)
        if name != "run.json":
            (place / "run.json").write_bytes(text)
        before = contents(tmp_path)
        run = answer(lambda: archive.read_dir(place), ArchiveError)
        problems = archive.verify(tmp_path / "results")
        assert len(problems) == (run is None)
        assert all(len(problem.splitlines()) == 1 for problem in problems)
        if run:
            assert len(archive.load([RUN], tmp_path / "results").layers) == 1
        assert called(capsys, "results", "ls", "--results", tmp_path / "results")[0] == (run is None)
        assert contents(tmp_path) == before
        finished(tmp_path / "results")

    explore("records", cases, check)
    assert not sprung


def test_tables_that_were_changed_with_their_checksums_are_read_or_an_archive_error(tmp_path):
    place = finished(tmp_path)
    record = json.loads((place / "run.json").read_text())
    files = {name: (place / name).read_bytes() for name in record["sha256"]}

    def check(case):
        name, changes = case
        new = edited(files[name], changes)
        (place / name).write_bytes(new)
        digests = record["sha256"] | {name: hashlib.sha256(new).hexdigest()}
        (place / "run.json").write_text(json.dumps(signed(record | {"sha256": digests})))
        answer(lambda: archive.read_dir(place), ArchiveError)
        (place / name).write_bytes(files[name])

    explore("tables", st.tuples(st.sampled_from(sorted(files)), edits), check)


# Tars

PACKERS = {"plain": bytes, "gzip": lambda raw: gzip.compress(raw, 1), "bzip2": bz2.compress, "xz": lzma.compress}


@pytest.fixture(scope="module")
def run_files(tmp_path_factory) -> dict[str, bytes]:
    """The files of two runs, by their names in a tar."""
    results = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        finished(results, RunConfig(model="resnet18", dataset="mnist", seed=seed))
    return {name: content for name, content in contents(results).items() if ".cache" not in name}


def tar(members: list[tuple[str, bytes, bytes, int, dict]]) -> bytes:
    """A tar of members given by name, type, content, declared size beyond the content's, and extended headers."""
    raw = io.BytesIO()
    for name, kind, content, more, extended in members:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.pax_headers = kind, "../../outside", extended
        info.size = max(0, len(content) + more)
        raw.write(info.tobuf(tarfile.PAX_FORMAT if extended else tarfile.GNU_FORMAT, errors="surrogateescape"))
        raw.write(content + b"\0" * (-len(content) % 512))
    return raw.getvalue() + b"\0" * 1024


def imported(folder: Path, content: bytes) -> None:
    """Import a tar below `folder`: all of it or nothing, and nothing but runs at their places."""
    (folder / "in.tar").write_bytes(content)
    done = answer(lambda: archive.import_(folder / "in.tar", folder / "results"), ArchiveError)
    written = {path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir()} - {Path("in.tar")}
    homes = {path.parent for path in written if path.parts[:2] != ("results", ".cache")}
    assert all(path.parts[0] == "results" and len(path.parts) == 4 for path in written), written
    assert len(homes) == (done[0] if done else 0)
    if done:
        assert archive.verify(folder / "results") == []
        shutil.rmtree(folder / "results", ignore_errors=True)
    else:
        assert os.listdir(folder) == ["in.tar"]


def test_a_tar_is_imported_as_runs_or_refused_as_a_whole(tmp_path, run_files):
    first = [name for name in run_files if "-s0-" in name]
    home = str(PurePosixPath(first[0]).parent)
    kinds = st.sampled_from([tarfile.REGTYPE] * 6 + [
        tarfile.AREGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE,
        tarfile.FIFOTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, b"\xff",
    ])  # fmt: skip
    study, run = home.split("/")
    names = st.sampled_from([*first, f"../{home}/run.json", f"/{home}/run.json", f"./{home}/run.json", "run.json", ""]) | (
        st.builds("/".join, st.tuples(st.just(study) | odd_text, st.just(run) | odd_text, st.just("run.json") | odd_text))
    )  # fmt: skip
    extended = st.just({}) | st.dictionaries(
        st.sampled_from(["path", "size", "linkpath", "GNU.sparse.major", "GNU.sparse.map", "GNU.sparse.size", "hdrcharset"]),
        st.sampled_from(["-512", "0", "9" * 18, "1", "é", f"../{home}/run.json", "1,2,3", "BINARY"]), max_size=2,
    )  # fmt: skip
    member = st.tuples(
        names, kinds, st.sampled_from([*run_files.values(), b"", b"{}"]), st.sampled_from([0] * 8 + [-1, 1, 512, 2**33]), extended
    )  # fmt: skip
    whole = [(name, tarfile.REGTYPE, run_files[name], 0, {}) for name in first]
    cases = st.tuples(
        st.booleans(), st.lists(member, max_size=3), st.booleans(), st.sampled_from(list(PACKERS.values()))
    )

    def check(case):
        with_run, extra, before, pack = case
        runs = whole if with_run else []
        imported(tmp_path, pack(tar(extra + runs if before else runs + extra)))

    explore("tars", cases, check)


def test_a_damaged_tar_is_never_imported_in_part(tmp_path, run_files):
    raw = tar([(name, tarfile.REGTYPE, content, 0, {}) for name, content in run_files.items()])
    (tmp_path / "whole.tar").write_bytes(raw)
    assert archive.import_(tmp_path / "whole.tar", tmp_path / "results") == (2, 0)
    shutil.rmtree(tmp_path / "results")
    (tmp_path / "whole.tar").unlink()
    whole = {name: pack(raw) for name, pack in PACKERS.items()}

    def check(case):
        name, changes = case
        content = edited(whole[name], changes)
        (tmp_path / "in.tar").write_bytes(content)
        done = answer(lambda: archive.import_(tmp_path / "in.tar", tmp_path / "results"), ArchiveError)
        assert done in (None, (2, 0)), "runs were lost on the way without a word"
        shutil.rmtree(tmp_path / "results", ignore_errors=True)

    explore("damaged tars", st.tuples(st.sampled_from(["plain", "gzip"]), edits), check)


# Image sets


def zipped(members: dict[str, bytes], how: int) -> bytes:
    """An `.npz` of these members, compressed so."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", how) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def image_arrays() -> dict[str, np.ndarray]:
    labels = np.arange(3, dtype=np.uint8)
    images = np.zeros((3, 28, 28, 1), np.uint8)
    return {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels, "source": "here", "note": "none"}


def read_images(folder: Path, content: bytes) -> None:
    (folder / "mnist.npz").write_bytes(content)
    images = answer(lambda: data.load("mnist", folder, download=False), DataError)
    if images:
        assert images.x_train.dtype == np.uint8
        assert images.x_train.shape == (len(images.y_train), *images.x_train.shape[1:3], 1)
        json.dumps([images.source, images.note]).encode()
        print(images.source, images.note, images.digest())
    assert os.listdir(folder) == ["mnist.npz"]
    assert not sprung


def test_an_image_file_of_any_arrays_is_read_or_a_data_error(tmp_path):
    good = {f"{name}.npy": npy(array) for name, array in image_arrays().items()}
    kinds = ["|u1", "<i8", "<f4", "|O", "<U1000000", "|V3", "<M8[s]", "[('a','<f4')]", "nonsense"]
    headers = st.builds(
        lambda descr, shape, order: npy([1, 2, 3], descr=descr, shape=shape, fortran_order=order),
        st.sampled_from(kinds), st.sampled_from([(), (3,), (0,), (1 << 40,), (3, 1), (-1,), (3, 28, 28, 1), (0, 2**40)]), st.booleans(),
    )  # fmt: skip
    arrays = st.sampled_from([np.zeros(3), np.array([9, -1, 12]), np.array(["a", "\ud800\n", "b"]), np.array(None),
                              np.zeros((3, 28, 28, 3), np.uint8), np.array([Trap()] * 3), np.array(5)]).map(npy)  # fmt: skip
    content = (
        headers
        | arrays
        | st.sampled_from([b"", b"text", pickle.dumps(Trap()), HUGE])
        | st.sampled_from(list(good.values()))
    )
    names = st.sampled_from([*good, "x_train", "../x_train.npy", "y_test.npy/", "é.npy"])
    how = st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    cases = st.tuples(
        st.dictionaries(names, content, max_size=2), st.sets(st.sampled_from(list(good)), max_size=1), how
    )

    def check(case):
        changed, removed, way = case
        members = {name: raw for name, raw in good.items() if name not in removed} | changed
        read_images(tmp_path, zipped(members, way))

    explore("npz", cases, check)


def test_a_damaged_image_file_is_read_or_a_data_error(tmp_path):
    wholes = [zipped({f"{name}.npy": npy(array) for name, array in image_arrays().items()}, how)
              for how in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)]  # fmt: skip
    cases = st.tuples(st.sampled_from(wholes), edits)
    explore("damaged npz", cases, lambda case: read_images(tmp_path, edited(*case)))


# The published arrays


def spring(*_: object) -> list:
    """What the pickles below try to call."""
    sprung.append(1)
    return []


def released(protocol: int = 4) -> bytes:
    values = {"conv1.weight": np.array([0.5, np.inf], dtype=np.float32), "fc.weight": [np.float32(1), np.float64(2)]}
    return pickle.dumps(np.array(values, dtype=object), protocol=protocol)


HEADER = npy(np.array({}, dtype=object)).partition(b"\x80")[0]


def unpickled(body: bytes) -> object:
    table = answer(lambda: weightscale_release.read_pickled(HEADER + body), DataError)
    assert not sprung, "code of the file has run"
    if table is not None:
        assert isinstance(table, pd.DataFrame)
        assert all(str(kind) == "float64" for kind in table.dtypes)
    return table


def test_no_pickle_runs_anything(tmp_path):
    """Programs of opcodes, many of which do call something in an ordinary unpickler."""
    here = __name__.encode()
    callables = [here + b"\nspring\n", b"builtins\neval\n", b"builtins\ngetattr\n", b"os\nsystem\n", b"numpy\nndarray\n",
                 b"numpy\ndtype\n", b"numpy._core.multiarray\nscalar\n", b"numpy.core.multiarray\n_reconstruct\n"]  # fmt: skip
    values = [b"N", b"K\x01", b"\x88", b"}", b"]", b")", b"(t", b"X\x02\x00\x00\x00f8", b"C\x08" + b"\xff" * 8, b"\x8a\x01\x05",
              b"G?\xf0\0\0\0\0\0\0", b"X\x01\x00\x00\x00O", b"\x8f", b"\x96" + b"\x08" + b"\0" * 15]  # fmt: skip
    acts = [b"R", b"b", b"\x81", b"\x92", b"(", b"t", b"l", b"d", b"e", b"u", b"s", b"a", b"\x85", b"\x86", b"\x87", b"0", b"1", b"2",
            b"q\x00", b"h\x00", b"\x94", b"o", b"\x90", b"Q", b"\x82\x01", b"\x93", b"P1\n", b"\x97", b"\x98"]  # fmt: skip
    calls = (
        [b"c" + name + b")R" for name in callables]
        + [b"(i" + name for name in callables]
        + [b"c" + name for name in callables]
    )
    calls += [b"\x8c" + bytes([len(here)]) + here + b"\x8c\x06spring\x93)R", b"c" + here + b"\nspring\n)\x81"]
    part = st.sampled_from(values) | st.sampled_from(acts) | st.sampled_from(calls)
    ran_elsewhere = 0

    def check(parts):
        nonlocal ran_elsewhere
        body = b"\x80\x04" + b"".join(parts) + b"."
        unpickled(body)
        if not any(word in body for word in (b"numpy", b"builtins", b"os\n")):
            with contextlib.suppress(Exception):
                pickle.loads(body)
            ran_elsewhere += bool(sprung)
            sprung.clear()

    explore("pickles", st.lists(part, min_size=1, max_size=8), check)
    assert ran_elsewhere > CASES["pickles"] / 20, "the pickles are too tame to show anything"


def test_damaged_released_arrays_are_read_or_a_data_error():
    wholes = [released(protocol) for protocol in (2, 3, 4, 5)]
    assert all(unpickled(whole).loc["fc.weight"].tolist() == [1.0, 2.0] for whole in wholes)
    cases = st.tuples(st.sampled_from(wholes), edits)
    explore("damaged pickles", cases, lambda case: unpickled(edited(*case)))


# Weights and checkpoints


def safetensors(raw: bytes, header: Callable[[dict], object], changes: list) -> bytes:
    """A safetensors file with its header changed, and then its bytes."""
    size = int.from_bytes(raw[:8], "little")
    text = json.dumps(header(json.loads(raw[8 : 8 + size]))).encode()
    return edited(len(text).to_bytes(8, "little") + text + raw[8 + size :], changes)


def with_notes(growth: list, others: list) -> Callable[[dict], object]:
    """Changes the notes in a header, and the header."""

    def change(header: dict) -> object:
        notes = regrown(json.loads(header["__metadata__"]["rwclib"]), growth)
        return regrown(header | {"__metadata__": {"rwclib": json.dumps(notes)}}, others)

    return change


headers = st.tuples(growths, st.just([]) | growths, st.just([]) | edits)


def test_weights_of_others_are_read_or_an_archive_error(tmp_path):
    model = torch.nn.Linear(2, 2)
    weights.keep(tmp_path, RUN, model)
    file = weights.path(tmp_path, RUN.hash)
    whole = file.read_bytes()

    def check(case):
        growth, others, changes = case
        file.write_bytes(safetensors(whole, with_notes(growth, others), changes))
        found = answer(lambda: weights.read(file, RUN.hash), ArchiveError)
        if found:
            answer(lambda: found.load_into(model), ConfigError)
        assert len(contents(tmp_path)) == 1

    explore("weights", headers, check)


def state() -> checkpoint.State:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    generators = torch.Generator(), torch.Generator()
    return checkpoint.State(model, optimizer, RWCTracker(model), *generators, torch.zeros(2, 3, dtype=torch.float64))


def test_a_checkpoint_is_gone_on_from_or_refused(tmp_path):
    """In the errors that make a run move it aside."""
    begun = state()
    begun.tracker.step()
    begun.epoch, begun.rows, begun.seconds = 1, [[0.5] * 6], [1.0]
    begun.save(tmp_path / checkpoint.FILE, RUN)
    whole = (tmp_path / checkpoint.FILE).read_bytes()

    def check(case):
        growth, others, changes = case
        (tmp_path / checkpoint.FILE).write_bytes(safetensors(whole, with_notes(growth, others), changes))
        done = checkpoint.epochs_done(tmp_path / checkpoint.FILE)
        assert type(done) is int
        assert done >= 0
        resumed = state()
        with (
            contextlib.suppress(SafetensorError, ValueError, KeyError, RuntimeError),
            torch.random.fork_rng(devices=[]),
        ):
            resumed.load(tmp_path / checkpoint.FILE, RUN)
            assert resumed.epoch == len(resumed.rows) == len(resumed.seconds) == len(resumed.tracker.history())
            assert type(resumed.batch) is int
            assert resumed.batch >= 0
            resumed.save(tmp_path / "again.safetensors", RUN)

    explore("checkpoints", headers, check)


# Notebooks

pieces = st.sampled_from([
    "1", "-1", "0.5", "1e999", "True", "false", "None", "'a'", '"b"', "[", "]", "(", ")", "{", "}", ",", ":", "=", "\n", " ", "#",
    "__import__('os')", "lambda: 1", "1 is 1", "'\\d'", "\\", "f'{1}'", "9" * 5000, "(" * 300, "\0", "b'a'", "1j", "...", "[]",
    "{[]: 1}", "-" * 3000 + "1", "*",
])  # fmt: skip


def test_notebook_parameters_are_literals_of_their_type_or_a_config_error():
    from papermill.translators import PythonTranslator

    defaults = st.sampled_from(["text", 1, 0.5, True, [], {}, None, ("a",)])
    texts = st.lists(pieces, max_size=4).map("".join) | odd_text | anything.map(repr)

    def check(case):
        text, default = case
        value = answer(lambda: notebooks.parse_value("seeds", text, default), ConfigError)
        if value is None:
            return
        assert type(value) is type(default) or (type(default), type(value)) == (float, int)
        cell = ast.parse(PythonTranslator.codify({"seeds": value})).body  # what papermill puts into the notebook
        assert len(cell) == 1
        names = {node.func.id for node in ast.walk(cell[0]) if isinstance(node, ast.Call)}
        assert names <= {"float"}  # of infinity

    explore("parameters", st.tuples(texts, defaults), check)


@pytest.mark.filterwarnings("ignore")
def test_no_notebook_begins_with_a_parameters_cell_that_is_not_plain(tmp_path, monkeypatch):
    def none_starts(name):
        if name == "papermill":
            raise AssertionError("a notebook would be run")
        return load(name)

    load = notebooks._installed
    monkeypatch.setattr(notebooks, "_installed", none_starts)
    cell = {
        "cell_type": "code",
        "metadata": {"tags": ["parameters"]},
        "execution_count": None,
        "outputs": [],
        "id": "a",
    }
    book = {"cells": [cell | {"source": "seeds = []"}], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    assert notebooks.parameters(written(tmp_path, book)) == {"seeds": []}
    sources = st.lists(
        pieces | st.sampled_from(["x", "x = 1\n", "x: int = 1\n", "x += 1\n", "x = y = 1\n"]), max_size=4
    ).map("".join)
    cases = st.tuples(st.just("seeds = []") | sources, growths, st.just([]) | edits)

    def check(case):
        source, growth, changes = case
        path = written(tmp_path, regrown(book | {"cells": [cell | {"source": source}]}, growth))
        path.write_bytes(edited(path.read_bytes(), changes))
        known = answer(lambda: notebooks.parameters(path), NotebookError)
        assert known is None or all(name.isidentifier() for name in known)
        with pytest.raises((ConfigError, NotebookError)):
            notebooks.execute(path, tmp_path / "out", {"no such name": 1})
        assert os.listdir(tmp_path) == ["01_book.ipynb"]

    explore("notebooks", cases, check)


def written(folder: Path, book: object) -> Path:
    (folder / "01_book.ipynb").write_text(json.dumps(book))
    return folder / "01_book.ipynb"


# The command line


def called(capsys: pytest.CaptureFixture, *words: object) -> tuple[int, str, str]:
    """The command in this process: exit code, stdout, stderr; one sentence for every failure."""
    argv, sys.argv = sys.argv, ["rwc", *map(str, words)]
    try:
        code = cli.main() or 0
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.argv = argv
    out, err = capsys.readouterr()
    assert code in (0, 1, 2), err
    assert "Traceback" not in err
    if code:
        assert err.strip(), "it failed without a word"
        assert err.splitlines()[-1].startswith(("rwc: ", "Error: ")) or words[:2] == ("results", "verify"), err
    return code, out, err


def test_the_command_line_answers_in_one_sentence(tmp_path, monkeypatch, capsys):
    """Whatever the words; what would train, download or start a process ends before it does."""

    def stop(*_, **__):
        raise RwcError("far enough")

    for target in (
        "training.run",
        "sweep.run_all",
        "data.fetch",
        "notebooks.execute",
        "executors._dask",
        "executors._submitit",
    ):
        monkeypatch.setattr(f"rwclib.{target}", stop)
    monkeypatch.setattr(subprocess, "run", stop)
    (tmp_path / "file").write_bytes(b"\xff\xfe no text")
    (tmp_path / "results" / "custom" / "run").mkdir(parents=True)
    (tmp_path / "results" / "custom" / "run" / "run.json").write_text("{}")
    before = contents(tmp_path)
    monkeypatch.chdir(tmp_path)
    commands = [["train"], ["sweep"], ["reproduce"], ["claims"], ["bench"], ["results"], ["results", "ls"], ["results", "verify"],
                ["results", "export"], ["results", "import"], ["data"], ["data", "status"], ["data", "fetch"], [],
                ["train", "--model", "resnet18", "--dataset", "mnist"], ["sweep", "layerwise"]]  # fmt: skip
    options = ["--model", "--dataset", "--width", "--epochs", "--seed", "--lr", "--n-train", "--optimizer", "--flip", "--profile", "--only",
               "--results", "--data-dir", "--device", "--engine", "--threads", "--time-budget", "--jobs", "--executor", "--scheduler",
               "--slurm", "--priority", "--json", "--format", "--into", "-p", "--parameter", "--retrain", "--study", "--debug=", "--help",
               "--", "-", "--quick", "--checkpoint-seconds", "--shuffle"]  # fmt: skip
    values = ["resnet18", "mnist", "cifar10", "layerwise", "softness", "smoke", "paper", "best", "0", "-1", "1e999", "nan", "9" * 30, "cpu", "cuda:x",
              "a=b", "=", "seeds", "json", "md", "file", "results", "missing", "file/below", "../results", "01", "x" * 300, "tracker",
              "tcp://x:99999999", "", " ", "\udcff", "é", "\n", "*", "$(touch x)", ";", "local", "dask", "slurm"]  # fmt: skip
    word = st.sampled_from(options) | st.sampled_from(values)
    cases = st.tuples(st.sampled_from(commands), st.lists(word, max_size=5))
    reached = set()

    def check(case):
        start, words = case
        code, _, err = called(capsys, *start, *words)
        reached.add(code if "far enough" not in err else "the end")
        for file in set(contents(tmp_path)) - set(before):
            assert Path(file).name in words, f"{file} was written unasked"  # an export's
            (tmp_path / file).unlink()
        assert contents(tmp_path) == before

    explore("command lines", cases, check)
    assert reached == {0, 1, 2, "the end"}


@pytest.mark.parametrize("words", [
    ["results", "import", b"\xff.tar"], ["results", "verify", "--results", "/dev/null"], ["train", "--model", "\udcff", "--dataset", "é"],
])  # fmt: skip
def test_the_command_as_a_process_answers_in_one_sentence(words):
    done = rwc(*(os.fsdecode(word) for word in words), env={"LC_ALL": "C", "PYTHONUTF8": "0"})
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    assert done.stderr.startswith("rwc: ")
    assert len(done.stderr.splitlines()) == 1


# Memory


def test_small_files_that_ask_for_much_memory_get_little(tmp_path):
    """Each in a process that may have `LIMIT` more than the imported package."""
    bombs = tmp_path / "bombs"
    bombs.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.bombs", str(bombs), str(LIMIT)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr

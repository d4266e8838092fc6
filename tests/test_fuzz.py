"""Bad files by the thousand: each is one of the documented errors, in one line, or good. Nothing in a file is run, nothing is
written elsewhere, and memory stays bounded.
"""

from __future__ import annotations

import bz2
import contextlib
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
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import strategies as st
from safetensors import SafetensorError

from rwclib import RWCTracker, archive, checkpoint, data, exchange, weights
from rwclib.config import RunConfig
from rwclib.errors import ArchiveError, ConfigError, DataError
from rwclib.metrics import METRICS
from rwclib.studies import weightscale_release

from . import fuzzing
from .conftest import ROOT, contents
from .fuzzing import CASES, Trap, answer, edited, explore, npy, regrown, signed

RUN = RunConfig(model="resnet18", dataset="mnist", width=8)


def test_there_are_twenty_thousand_cases_and_each_is_run():
    assert sum(CASES.values()) >= 20_000
    text = "".join(file.read_text() for file in Path(__file__).parent.glob("test_fuzz*.py"))
    assert all(text.count(f'explore("{name}"') == 1 for name in CASES)


def test_settings_are_a_run_or_a_config_error():
    likely = [64, 0.1, "sgd", "imagenet", "kaiming_normal", "pretrained:mnist", "0123456789ab", "flip_sign", "x" * 64]
    value = st.sampled_from(likely + fuzzing.ODD) | st.integers() | st.floats() | st.text(max_size=4)
    field = st.sampled_from([*RUN.to_dict(), "learning_rate", "a\nb"])
    changes = st.lists(st.tuples(field, value), max_size=4).map(dict) | st.just(None) | st.just([["model", "mnist"]])

    def check(new):
        values = json.loads(json.dumps(RUN.to_dict() | new if isinstance(new, dict) else new))
        found = answer(lambda: RunConfig.from_dict(values), ConfigError)
        if found:
            assert PurePosixPath(found.name).parts == (found.name,)
            assert found.name.isascii()
            assert len(found.name) < 250  # a folder's name
            assert found.study.replace("_", "").isalnum()
            assert RunConfig.from_dict(json.loads(json.dumps(found.to_dict()))) == found

    explore("configs", changes, check)


# Run directories


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


def packed(**arrays: object) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


HUGE = npy([1, 2], descr="|u1", fortran_order=False, shape=(1 << 40,))
FILES = [b"", b"PAR1", b"{}", HUGE, npy([Trap()]), npy(np.eye(2)), packed(a=np.eye(2)), pickle.dumps(Trap())]


def test_a_record_that_anyone_could_have_forged_is_read_or_an_archive_error(tmp_path):
    place = finished(tmp_path / "results")
    record, files = json.loads((place / "run.json").read_text()), contents(place)

    def case(r):
        new, forged = regrown(r, record), r.random() < 0.7
        name, content = r.choice(["", "", *files]), r.choice(FILES)
        if forged and isinstance(new, dict) and isinstance(new.get("sha256"), dict) and name in new["sha256"]:
            new["sha256"][name] = hashlib.sha256(content).hexdigest()
        text = json.dumps(signed(new) if forged else new, indent=1).encode() + b"\n"
        return text, name, content

    def check(case):
        text, name, content = case
        now = files | {"run.json": text} | ({name: content} if name else {})
        for file in {"run.json", name or "run.json"}:
            (place / file).write_bytes(now[file])
        if answer(lambda: archive.read_dir(place), ArchiveError):
            assert len(archive.load([RUN], tmp_path / "results").layers) == 1
        else:
            problems = archive.verify(tmp_path / "results")
            assert problems
            assert all(len(problem.splitlines()) == 1 for problem in problems)
        assert contents(tmp_path) == {f"results/custom/{RUN.name}/{file}": content for file, content in now.items()}
        (place / (name or "run.json")).write_bytes(files[name or "run.json"])

    explore("records", case, check)


def test_tables_that_were_changed_with_their_checksums_are_read_or_an_archive_error(tmp_path):
    place = finished(tmp_path)
    record, files = json.loads((place / "run.json").read_text()), contents(place)

    def case(r):
        name = r.choice(sorted(record["sha256"]))
        return name, edited(r, files[name])

    def check(case):
        name, new = case
        (place / name).write_bytes(new)
        digests = record["sha256"] | {name: hashlib.sha256(new).hexdigest()}
        (place / "run.json").write_bytes(archive._text(signed(record | {"sha256": digests})))
        answer(lambda: archive.read_dir(place), ArchiveError)
        (place / name).write_bytes(files[name])

    explore("tables", case, check)


# Tars

PACKERS = [bytes, lambda raw: gzip.compress(raw, 1), bz2.compress, lzma.compress]


@pytest.fixture(scope="module")
def run_files(tmp_path_factory) -> dict[str, bytes]:
    """The files of two runs, by their names in a tar."""
    results = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        finished(results, RunConfig(model="resnet18", dataset="mnist", seed=seed))
    return contents(results)


def tar(members: list[tuple[str, bytes, bytes, int, dict]]) -> bytes:
    """A tar of members given by name, type, content, declared size beyond the content's, and extended headers."""
    raw = io.BytesIO()
    for name, kind, content, more, extended in members:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.pax_headers = kind, "../../outside", extended
        info.size = max(0, len(content) + more)
        raw.write(info.tobuf(tarfile.PAX_FORMAT if extended else tarfile.GNU_FORMAT, errors="surrogatepass"))
        raw.write(content + b"\0" * (-len(content) % 512))
    return raw.getvalue() + b"\0" * 1024


def test_a_tar_is_imported_as_runs_or_refused_as_a_whole(tmp_path, run_files):
    """Links, devices, folders, paths that lead elsewhere, odd names, wrong sizes, extended headers, members twice."""
    first = [name for name in run_files if "-s0-" in name]
    study, run, _ = first[0].split("/")
    elsewhere = [f"{way}{study}/{run}/run.json" for way in ("../", "/", "./", "a/", "../../", "C:\\")]
    elsewhere += [
        "run.json",
        f"../{run}/run.json",
        f"other/{run}/run.json",
        f"{study}/{run}/../run.json",
        f"{study}/{run}/evil.py",
    ]
    kinds = [tarfile.REGTYPE] * 12 + [
        tarfile.AREGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE,
        tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE, b"\xff",
    ]  # fmt: skip
    headers = [
        "path",
        "size",
        "linkpath",
        "mtime",
        "GNU.sparse.major",
        "GNU.sparse.map",
        "GNU.sparse.size",
        "hdrcharset",
    ]
    values = ["-512", "0", "9" * 18, "1", "é", "1,2,3", "BINARY", "a\nb", *elsewhere]
    whole = [(name, tarfile.REGTYPE, run_files[name], 0, {}) for name in first]

    def member(r):
        odd = "/".join(r.choice([part, str(r.choice(fuzzing.ODD))]) for part in (study, run, "run.json")).replace(
            "\ud800", "é"
        )
        extended = {r.choice(headers): r.choice(values) for _ in range(r.choice([0, 0, 0, 1, 2]))}
        content = r.choice([*run_files.values(), b"", b"{}"])
        return (
            r.choice([*first, *elsewhere, odd, odd]),
            r.choice(kinds),
            content,
            r.choice([0] * 9 + [-1, 1, 512, 2**33]),
            extended,
        )

    def case(r):
        members = [member(r) for _ in range(r.randrange(3))]
        members[r.randrange(len(members) + 1) : 0] = whole if r.random() < 0.8 else []
        return r.choice(PACKERS)(tar(members))

    done = []

    def check(content):
        (tmp_path / "in.tar").write_bytes(content)
        counts = answer(lambda: exchange.import_(tmp_path / "in.tar", tmp_path / "results"), ArchiveError)
        if not counts:
            assert os.listdir(tmp_path) == ["in.tar"], "a refused tar left something"
            return
        done.append(counts)
        written = contents(tmp_path)
        del written["in.tar"]
        assert len({PurePosixPath(file).parent for file in written}) == counts[0]
        assert all(run_files[file.removeprefix("results/")] == content for file, content in written.items())
        shutil.rmtree(tmp_path / "results", ignore_errors=True)

    explore("tars", case, check)
    assert 50 < done.count((1, 0)) < CASES["tars"] / 2


def test_a_damaged_tar_is_never_imported_in_part(tmp_path, run_files):
    raw = tar([(name, tarfile.REGTYPE, content, 0, {}) for name, content in run_files.items()])
    wholes = [pack(raw) for pack in PACKERS[:2]]

    def check(content):
        (tmp_path / "in.tar").write_bytes(content)
        done = answer(lambda: exchange.import_(tmp_path / "in.tar", tmp_path / "results"), ArchiveError)
        assert done in (None, (2, 0)), "runs were lost on the way without a word"
        if done:
            assert contents(tmp_path / "results") == run_files
        shutil.rmtree(tmp_path / "results", ignore_errors=True)

    explore("damaged tars", lambda r: edited(r, r.choice(wholes)), check)


# Image sets

WAYS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
GOOD = {
    "x_train.npy": npy(np.zeros((3, 28, 28, 1), np.uint8)), "y_train.npy": npy(np.arange(3, dtype=np.uint8)), "source.npy": npy("here"),
    "x_test.npy": npy(np.zeros((3, 28, 28, 1), np.uint8)), "y_test.npy": npy(np.arange(3)), "note.npy": npy("none"),
}  # fmt: skip


def zipped(members: dict[str, bytes], way: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", way) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def read_images(folder: Path, content: bytes) -> None:
    (folder / "mnist.npz").write_bytes(content)
    images = answer(lambda: data.load("mnist", folder, download=False), DataError)
    if images:
        assert images.x_train.dtype == np.uint8
        assert images.x_train.shape == (len(images.y_train), images.x_train.shape[1], images.x_train.shape[1], 1)
        assert len(f"{images.source}.{images.note}".splitlines()) == 1
        json.dumps([images.source, images.note, images.digest()])
    assert os.listdir(folder) == ["mnist.npz"]


def test_an_image_file_of_any_arrays_is_read_or_a_data_error(tmp_path):
    kinds = ["|u1", "<i8", "<f4", "|O", "<U1000000", "|V3", "<M8[s]", "<c8", [("a", "<f4")], "nonsense", "|S0"]
    shapes = [(), (3,), (0,), (1 << 40,), (3, 1), (-1,), (3, 28, 28, 1), (0, 2**40), (2**62, 2**62), (True,)]
    others = [
        npy(value)
        for value in (np.zeros(3), [9, -1, 12], ["a", "\ud800\n", "b"], None, 5, np.zeros((3, 28, 28, 3), np.uint8))
    ]
    others += [npy([Trap()] * 3), b"", b"text", pickle.dumps(Trap()), HUGE, *GOOD.values()]

    def array(r):
        header = {"descr": r.choice(kinds), "shape": r.choice(shapes), "fortran_order": r.random() < 0.5}
        return npy([1, 2, 3], **header) if r.random() < 0.5 else r.choice(others)

    def case(r):
        members = {name: content for name, content in GOOD.items() if r.random() < 0.95}
        names = [*GOOD, "x_train", "../x_train.npy", "y_test.npy/", "é.npy", "/tmp/x.npy"]
        return zipped(members | {r.choice(names): array(r) for _ in range(r.randrange(3))}, r.choice(WAYS))

    explore("npz", case, lambda content: read_images(tmp_path, content))


def test_a_damaged_image_file_is_read_or_a_data_error(tmp_path):
    wholes = [zipped(GOOD, way) for way in WAYS]
    explore("damaged npz", lambda r: edited(r, r.choice(wholes)), lambda content: read_images(tmp_path, content))


# The published arrays

START = npy(np.array({}, dtype=object)).partition(b"\x80")[0]


def released(protocol: int) -> bytes:
    values = {"conv1.weight": np.array([0.5, np.inf], dtype=np.float32), "fc.weight": [np.float32(1), np.float64(2)]}
    return pickle.dumps(np.array(values, dtype=object), protocol=protocol)


def unpickled(body: bytes) -> pd.DataFrame | None:
    table = answer(lambda: weightscale_release.read_pickled(START + body), DataError)
    assert table is None or all(str(kind) == "float64" for kind in table.dtypes)
    return table


def test_no_pickle_runs_anything():
    """Programs of opcodes, many of which do call something in an ordinary unpickler."""
    here = fuzzing.__name__.encode()
    names = [here + b"\nspring\n"] * 3 + [b"builtins\neval\n", b"builtins\ngetattr\n", b"os\nsystem\n", b"numpy\nndarray\n",
             b"numpy\ndtype\n", b"numpy._core.multiarray\nscalar\n", b"numpy.core.multiarray\n_reconstruct\n"]  # fmt: skip
    values = [b"N", b"K\x01", b"\x88", b"}", b"]", b")", b"(t", b"X\x02\0\0\0f8", b"C\x08" + b"\xff" * 8, b"\x8a\x01\x05",
              b"G?\xf0\0\0\0\0\0\0", b"X\x01\0\0\0O", b"\x8f", b"\x96" + b"\x08" + b"\0" * 15]  # fmt: skip
    acts = [bytes([code]) for code in b"Rb(tldeusaoQ012\x81\x92\x85\x86\x87\x94\x90\x93\x97\x98"] + [
        b"q\0",
        b"h\0",
        b"\x82\x01",
        b"P1\n",
    ]
    calls = [b"c" + name + b")R" for name in names] + [b"(i" + name for name in names] + [b"c" + name for name in names]
    calls += [b"\x8c" + bytes([len(here)]) + here + b"\x8c\x06spring\x93)R", b"c" + here + b"\nspring\n)\x81"]
    part = st.sampled_from(values) | st.sampled_from(acts) | st.sampled_from(calls)
    ran_elsewhere = 0

    def check(parts):
        nonlocal ran_elsewhere
        body = b"\x80\x04" + b"".join(parts) + b"."
        unpickled(body)
        assert not fuzzing.sprung
        if not any(word in body for word in (b"numpy", b"builtins", b"os\n")):
            with contextlib.suppress(Exception):
                pickle.loads(body)
            ran_elsewhere += bool(fuzzing.sprung)
            fuzzing.sprung.clear()

    explore("pickles", st.lists(part, min_size=1, max_size=8), check)
    assert ran_elsewhere > CASES["pickles"] / 20, "the pickles are too tame to show anything"


def test_damaged_released_arrays_are_read_or_a_data_error():
    wholes = [released(protocol) for protocol in (3, 4)]
    assert all(unpickled(whole).loc["fc.weight"].tolist() == [1.0, 2.0] for whole in wholes)
    explore("damaged pickles", lambda r: edited(r, r.choice(wholes)), unpickled)


# Weights and checkpoints


def remade(r: fuzzing.Random, raw: bytes) -> bytes:
    """A safetensors file with the notes in its header changed, or the header, or its bytes."""
    size, kind = int.from_bytes(raw[:8], "little"), r.random()
    header = json.loads(raw[8 : 8 + size])
    if kind < 0.6:
        notes = regrown(r, json.loads(header["__metadata__"]["rwclib"]))
        header["__metadata__"] = {"rwclib": json.dumps(notes)}
    elif kind < 0.8:
        header = regrown(r, header)
    text = json.dumps(header).encode()
    new = len(text).to_bytes(8, "little") + text + raw[8 + size :]
    return edited(r, new) if kind > 0.8 else new


def test_weights_of_others_are_read_or_an_archive_error(tmp_path):
    model = torch.nn.Linear(2, 2)
    weights.keep(tmp_path, RUN, model)
    file = weights.path(tmp_path, RUN.hash)
    whole = file.read_bytes()

    def check(content):
        file.write_bytes(content)
        found = answer(lambda: weights.read(file, RUN.hash), ArchiveError)
        if found:
            answer(lambda: found.load_into(model), ConfigError)
        assert len(contents(tmp_path)) == 1

    explore("weights", lambda r: remade(r, whole), check)


def state() -> checkpoint.State:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    generators = torch.Generator(), torch.Generator()
    return checkpoint.State(model, optimizer, RWCTracker(model), *generators, torch.zeros(2, 3, dtype=torch.float64))


def test_a_checkpoint_is_gone_on_from_or_refused(tmp_path):
    """In the errors that make a run move it aside."""
    file, begun = tmp_path / checkpoint.FILE, state()
    begun.tracker.step()
    begun.epoch, begun.rows, begun.seconds = 1, [[0.5] * 6], [1.0]
    begun.save(file, RUN)
    whole, taken = file.read_bytes(), 0

    def check(content):
        nonlocal taken
        file.write_bytes(content)
        assert type(checkpoint.epochs_done(file)) is int
        resumed = state()
        with (
            contextlib.suppress(SafetensorError, ValueError, KeyError, RuntimeError),
            torch.random.fork_rng(devices=[]),
        ):
            resumed.load(file, RUN)
            taken += 1
            assert type(resumed.epoch) is type(resumed.batch) is int
            assert resumed.epoch == len(resumed.rows) == len(resumed.seconds) == len(resumed.tracker.history())
            assert resumed.batch >= 0
        assert len(contents(tmp_path)) == 1

    explore("checkpoints", lambda r: remade(r, whole), check)
    assert 0 < taken < CASES["checkpoints"] / 2


# Memory


def test_small_files_that_ask_for_much_memory_are_refused_within_a_gigabyte_and_a_half(tmp_path):
    """Beyond what the imported package has: a bomb that got more would end in an error of another kind, or in none."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bombs", str(tmp_path), str(3 << 29)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 17
    assert sorted(contents(tmp_path)) == ["in.tar", "mnist.npz"]

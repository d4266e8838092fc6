"""Bad files by the thousand: each is one of the documented errors, in one line, or good, and nothing is written elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import PurePosixPath

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from safetensors import SafetensorError

from rwclib import RWCTracker, archive, data
from rwclib.errors import ArchiveError, ConfigError, DataError
from rwclib.runs import checkpoint, weights
from rwclib.runs.config import RunConfig
from tests.app import fuzzing
from tests.app.fuzzing import answer, edited, explore, often
from tests.conftest import ROOT, contents

RUN = RunConfig(model="resnet18", dataset="mnist", width=8)


@often(400, 2000)
def test_settings_are_a_run_or_a_config_error(count):
    likely = [64, 0.1, "sgd", "imagenet", "kaiming_normal", "pretrained:mnist", "0123456789ab", "flip_sign", "x" * 64]
    value = st.sampled_from(likely + fuzzing.ODD) | st.integers() | st.floats() | st.text(max_size=4)
    field = st.sampled_from([*RUN.to_dict(), "learning_rate", "a\nb"])
    changes = st.lists(st.tuples(field, value), max_size=4).map(dict) | st.just(None) | st.just([["model", "mnist"]])

    def check(new):
        values = json.loads(json.dumps(RUN.to_dict() | new if isinstance(new, dict) else new))
        config = answer(lambda: RunConfig.from_dict(values), ConfigError)
        if config:
            assert PurePosixPath(config.name).parts == (config.name,)
            assert config.name.isascii()
            assert len(config.name) < 250  # a folder's name
            assert config.study.replace("_", "").isalnum()
            assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config

    explore(count, changes, check)


@often(400, 1500)
def test_a_damaged_run_is_found_by_verify_and_never_read(count, tmp_path):
    source = archive.directories(ROOT / "data" / "results")[0]
    files = contents(source)
    place = tmp_path / source.parent.name / source.name
    place.mkdir(parents=True)
    for name, content in files.items():
        (place / name).write_bytes(content)

    def case(r):
        name = r.choice(sorted(files))
        return name, edited(r, files[name])

    def check(case):
        name, new = case
        (place / name).write_bytes(new)
        problems = archive.verify(tmp_path)
        assert bool(problems) == (answer(lambda: archive.read_dir(place), ArchiveError) is None)
        assert problems or new == files[name]
        assert all(len(problem.splitlines()) == 1 and name in problem for problem in problems)
        (place / name).write_bytes(files[name])

    explore(count, case, check)


@often(500, 4000)
def test_a_damaged_image_file_is_read_or_a_data_error(count, tmp_path):
    images = {"x_train": np.zeros((3, 28, 28, 1), np.uint8), "x_test": np.zeros((3, 28, 28, 1), np.uint8)}
    notes = {"y_train": np.arange(3, dtype=np.uint8), "y_test": np.arange(3), "source": "here", "note": "none"}
    np.savez(tmp_path / "mnist.npz", **images, **notes)
    whole = (tmp_path / "mnist.npz").read_bytes()

    def check(content):
        (tmp_path / "mnist.npz").write_bytes(content)
        read = answer(lambda: data.load("mnist", tmp_path, download=False), DataError)
        if read:
            assert read.x_train.dtype == np.uint8
            assert read.x_train.shape == (len(read.y_train), read.x_train.shape[1], read.x_train.shape[1], 1)
        assert os.listdir(tmp_path) == ["mnist.npz"]

    explore(count, lambda r: edited(r, whole), check)


@often(300, 2500)
def test_damaged_weights_are_an_archive_error(count, tmp_path):
    model = torch.nn.Linear(2, 2)
    weights.keep(tmp_path, RUN, model)
    file = weights.path(tmp_path, RUN.hash)
    whole = file.read_bytes()

    def check(content):
        file.write_bytes(content)
        final = answer(lambda: weights.read(tmp_path, RUN.hash), ArchiveError)
        if final:
            answer(lambda: final.load_into(model), ConfigError)
        assert len(contents(tmp_path)) == 1

    explore(count, lambda r: edited(r, whole), check)


def state() -> checkpoint.State:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    generators = torch.Generator(), torch.Generator()
    return checkpoint.State(model, optimizer, RWCTracker(model), *generators, torch.zeros(2, 3, dtype=torch.float64))


@often(200, 600)
@pytest.mark.filterwarnings("ignore:no tracked weight has moved")
def test_a_checkpoint_is_gone_on_from_or_refused(count, tmp_path):
    """In the errors that make a run move it aside."""
    file, begun = tmp_path / checkpoint.FILE, state()
    begun.tracker.step()
    begun.epoch, begun.rows, begun.seconds = 1, [[0.5] * 6], [1.0]
    begun.save(file, RUN)
    whole = file.read_bytes()

    def check(content):
        file.write_bytes(content)
        assert type(checkpoint.epochs_done(file)) is int
        resumed = state()
        with (
            contextlib.suppress(SafetensorError, ValueError, KeyError, RuntimeError),
            torch.random.fork_rng(devices=[]),
        ):
            resumed.load(file, RUN)
            assert resumed.epoch == len(resumed.rows) == len(resumed.seconds) == resumed.tracker.steps
        assert len(contents(tmp_path)) == 1

    explore(count, lambda r: edited(r, whole), check)

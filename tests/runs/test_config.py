"""RunConfig: what its hash covers, what it refuses, and the profiles."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass

import pytest

from rwclib.errors import ConfigError
from rwclib.runs.config import PROFILES, RunConfig, _setting, check_profile

CONFIG = RunConfig(model="resnet18", dataset="mnist", lr=0.05, n_train=1000, seed=42)
CHANGED = {
    "model": "lenet5", "dataset": "cifar10", "width": 8, "epochs": 2, "seed": 1, "lr": 0.2, "momentum": 0.8,
    "weight_decay": 0.0, "batch_size": 64, "optimizer": "adam", "n_train": 2000, "n_test": 100, "image_size": 28,
    "crop_padding": 4, "flip": True, "normalize": "imagenet", "shuffle": False, "precision": "bf16",
    "init": "kaiming_uniform", "snapshot_every": 5, "iterations": 7,
}  # fmt: skip
CHILD = RunConfig(model="resnet18", dataset="mnist", parent="0123456789ab", perturbation="flip_sign")
OF_CHILDREN = {"parent": "ba9876543210", "perturbation": "shuffle"}
FIELDS = [field.name for field in dataclasses.fields(RunConfig)]


def test_hash_and_canonical_json_of_a_config_never_change():
    assert CONFIG.hash == "74ec72bf1497"
    assert hashlib.sha256(CONFIG.canonical_json().encode()).hexdigest().startswith(CONFIG.hash)
    assert CONFIG.canonical_json() == (
        '{"batch_size":128,"crop_padding":0,"dataset":"mnist","epochs":1,"flip":false,"format":1,"image_size":32,'
        '"lr":0.05,"model":"resnet18","momentum":0.9,"n_test":null,"n_train":1000,"normalize":"none",'
        '"optimizer":"sgd","precision":"fp32","seed":42,"shuffle":true,"weight_decay":0.0001,"width":64}'
    )


@pytest.mark.parametrize("name", [name for name in FIELDS if name != "study"])
def test_hash_covers_the_field(name):
    config, new = (CHILD, OF_CHILDREN[name]) if name in OF_CHILDREN else (CONFIG, CHANGED[name])
    assert getattr(config, name) != new
    assert dataclasses.replace(config, **{name: new}).hash != config.hash


def test_hash_leaves_the_study_out():
    filed = dataclasses.replace(CONFIG, study="layerwise")
    assert filed.hash == CONFIG.hash
    assert filed != CONFIG


@pytest.mark.parametrize("name", ["lr", "momentum", "weight_decay"])
def test_integers_stand_for_floats(name):
    whole, real = (dataclasses.replace(CONFIG, **{name: one}) for one in (1, 1.0))
    assert whole == real
    assert whole.hash == real.hash
    assert type(getattr(whole, name)) is float


def test_hash_covers_defaults_and_a_format_version():
    later = {field.name for field in dataclasses.fields(RunConfig) if field.metadata["later"]}
    covered = set(json.loads(RunConfig(model="resnet18", dataset="mnist").canonical_json()))
    assert covered == set(FIELDS) - {"study"} - later | {"format"}
    child = dataclasses.replace(CHILD, init="kaiming_normal", snapshot_every=1, iterations=1)
    assert set(json.loads(child.canonical_json())) == set(FIELDS) - {"study"} | {"format"}


def test_what_a_run_starts_from_is_one_thing():
    for changes in ({"parent": "0123456789ab"}, {"perturbation": "shuffle"}, {"init": "pretrained:mnist"}):
        with pytest.raises(ConfigError, match="parent"):
            dataclasses.replace(CONFIG, **changes)
    with pytest.raises(ConfigError, match="unknown init 'xavier'"):
        dataclasses.replace(CONFIG, init="xavier")
    with pytest.raises(ConfigError, match="must be the 12-digit hash of a run, not 'abc'"):
        dataclasses.replace(CHILD, parent="abc")


def test_a_later_field_is_left_out_of_the_hash_at_its_default_alone():
    @dataclass(frozen=True, kw_only=True)
    class Later(RunConfig):
        dropout: int = _setting("share of features dropped", 0, later=True)

    values = CONFIG.to_dict()
    assert Later(**values).hash == Later(**values, dropout=0).hash == CONFIG.hash
    assert Later(**values, dropout=1).hash != CONFIG.hash
    assert "dropout" not in Later(**values).canonical_json()
    assert Later(**values).to_dict()["dropout"] == 0


@pytest.mark.parametrize(
    "config", [CONFIG, RunConfig(**CHANGED | {"epochs": 1}, study="layerwise")], ids=["a few", "all"]
)
def test_dictionaries_and_json_give_the_same_config_back(config):
    assert RunConfig.from_dict(config.to_dict()) == config
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert list(config.to_dict()) == FIELDS


IMPOSSIBLE = {
    "epochs": [-1, 1.0, "1", None, True], "width": [0, -8, 4, 20], "seed": [-1, 2**63], "batch_size": [0], "n_train": [0, -5, 10.0, True],
    "n_test": [0], "image_size": [7], "crop_padding": [-1], "lr": [-0.1, -1, math.nan, math.inf, "0.1", None, True],
    "momentum": [-0.9, math.nan], "weight_decay": [-1e-4, math.nan], "optimizer": ["rmsprop", "SGD", None], "normalize": ["mnist"],
    "precision": ["fp16"], "model": ["", "a/b", "../resnet18", None, 18], "dataset": ["a\\b", "mn ist", "mnist\n"],
    "study": ["a/b", ".", "étude"], "flip": [1, "yes"], "shuffle": [None],
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in IMPOSSIBLE.items() for value in values])
def test_an_impossible_value_is_an_error_that_names_the_field_and_the_value(name, value):
    with pytest.raises(ConfigError, match=name) as error:
        dataclasses.replace(CONFIG, **{name: value})
    assert repr(value) in str(error.value)
    if name == "optimizer" and value:
        assert "known: sgd, adam" in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 0), ("width", 8), ("seed", 0), ("seed", 2**63 - 1), ("n_train", 1), ("n_test", None), ("lr", 0.0),
     ("batch_size", 1), ("image_size", 8), ("crop_padding", 0), ("momentum", 0.0), ("weight_decay", 0.0)],
)  # fmt: skip
def test_the_smallest_and_largest_values_are_allowed(name, value):
    assert getattr(dataclasses.replace(CONFIG, **{name: value}), name) == value


def test_config_is_frozen_and_hashable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CONFIG.lr = 1.0
    assert len({CONFIG, RunConfig.from_dict(CONFIG.to_dict())}) == 1


def test_name_has_the_readable_fields_and_the_hash():
    assert CONFIG.name == f"resnet18-mnist-w64-e1-n1000-s42-{CONFIG.hash}"
    assert dataclasses.replace(CONFIG, n_train=None).name.startswith("resnet18-mnist-w64-e1-s42-")


def test_an_unknown_profile_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ConfigError, match="papier") as error:
        check_profile("papier")
    assert {"smoke", "quick", "reduced", "narrow", "paper"} == set(PROFILES)
    assert all(known in str(error.value) for known in PROFILES)


@pytest.mark.parametrize("values", [None, [], {}, {"model": "lenet5"}, {**CONFIG.to_dict(), "learning_rate": 0.1}])
def test_from_dict_refuses_what_is_not_the_fields_of_a_run(values):
    with pytest.raises(ConfigError, match="not the fields of a run.*(model|learning_rate|NoneType|list)"):
        RunConfig.from_dict(values)


def test_names_of_fields_stay_in_one_line():
    with pytest.raises(ConfigError, match=r"'a\\nb'"):
        RunConfig.from_dict({**CONFIG.to_dict(), "a\nb": 1})


def test_a_name_too_long_for_a_folder_is_refused():
    assert len(dataclasses.replace(CONFIG, model="x" * 64, dataset="x" * 64, seed=2**63 - 1).name) < 250
    with pytest.raises(ConfigError, match="64 at most"):
        dataclasses.replace(CONFIG, model="x" * 65)

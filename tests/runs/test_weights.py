"""Weights on disk, snapshots, and runs that start from another run's weights."""

import json
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from rwclib import archive, models, training
from rwclib.errors import ArchiveError, ConfigError, OutOfTimeError
from rwclib.runs import weights
from rwclib.sweeps.sweep import run_all
from tests.conftest import contents, tables


@pytest.fixture
def base(config):
    return replace(config, model="lenet5", width=64, epochs=3, n_train=128, init="kaiming_uniform", snapshot_every=2)


def child_of(base, perturbation="flip_sign", **changes):
    return replace(base, parent=base.hash, perturbation=perturbation, **changes)


def whole(place):
    return archive.read_dir(place).extra["snapshots"].query("tensor == 'all'").set_index("epoch")


def final(results, config):
    """The weights that the run is kept with."""
    return weights.read(results, config.hash).state()


def weights_after(config, results, epochs):
    """The weights of the run, trained anew for fewer epochs."""
    short = replace(config, epochs=epochs)
    training.run(short, results=results, keep_weights=True)
    return final(results, short)


def test_a_written_file_is_a_safetensors_file(tmp_path):
    torch.manual_seed(0)
    tensors = {
        "a": torch.randn(3, 4, 2, 2).to(memory_format=torch.channels_last), "b": torch.tensor(7), "c": torch.empty(0),
        "d": torch.randn(5).bfloat16(), "e": torch.tensor([True, False]), "f": torch.randn(2, dtype=torch.float64),
    }  # fmt: skip
    weights.write(tmp_path / "some.safetensors", tensors, {"note": "é"})
    read = load_file(tmp_path / "some.safetensors")
    assert read.keys() == tensors.keys()
    for name, value in tensors.items():
        assert read[name].dtype == value.dtype
        assert torch.equal(read[name], value)


def test_snapshots_are_what_the_weights_themselves_say(base, tmp_path):
    table = whole(training.run(base, results=tmp_path / "a"))
    assert table.index.tolist() == [0, 2, 3]
    start, second, third = (weights_after(base, tmp_path / "b", epochs) for epochs in (0, 2, 3))
    w0, w2, w3 = (torch.cat([state[k].flatten() for k in start]).double().numpy() for state in (start, second, third))
    last = table.loc[3]
    assert last["size"] == w0.size == 61_706
    assert last["norm"] == pytest.approx(np.linalg.norm(w3))
    assert last["norm_start"] == pytest.approx(np.linalg.norm(w0))
    assert last["distance_previous"] == pytest.approx(np.linalg.norm(w3 - w2))
    assert last["distance_start"] == pytest.approx(np.linalg.norm(w3 - w0))
    assert last["cosine_start"] == pytest.approx(w3 @ w0 / np.linalg.norm(w3) / np.linalg.norm(w0))
    assert last["changed"] == np.mean(w3 != w0)
    for column, share in (("changed_1e3", 1e-3), ("changed_1e2", 1e-2)):
        assert last[column] == pytest.approx(np.mean(abs(w3 - w0) > share * abs(w0)), abs=1e-4)
    assert 0 < last["changed_1e2"] < last["changed"] <= 1


def test_nothing_has_changed_after_no_steps_and_everything_after_adding_a_constant(tmp_path):
    model = models.build("lenet5", num_classes=10)
    taken = weights.Snapshots(tmp_path)
    taken.take(model, 0)
    taken.take(model, 1)
    with torch.no_grad():
        for value in model.parameters():
            value += 1
    taken.take(model, 2)
    table = taken.table([name for name, _ in model.named_parameters()]).query("tensor == 'all'")
    for column in weights.THRESHOLDS:
        assert table[column].tolist() == [0, 0, 1]
    assert table["distance_start"].iloc[2] == pytest.approx(sum(p.numel() for p in model.parameters()) ** 0.5)


def test_a_flip_and_no_step_is_exactly_twice_the_norm_away(base, tmp_path):
    training.run(base, results=tmp_path, keep_weights=True)
    table = whole(training.run(child_of(base, epochs=0), results=tmp_path))
    assert table["distance_parent"].tolist() == [2 * table.loc[0, "norm_parent"]]
    assert table["cosine_parent"].tolist() == pytest.approx([-1])
    assert table["distance_start"].tolist() == [0]


def test_a_distortion_by_nothing_goes_on_from_the_parent(base, tmp_path):
    training.run(base, results=tmp_path, keep_weights=True)
    run = archive.read_dir(training.run(child_of(base, "distort:0.0", epochs=0), results=tmp_path))
    start, end = (run.extra["features"].set_index("when").loc[when] for when in ("start", "end"))
    assert whole(archive.run_dir(tmp_path, child_of(base, "distort:0.0", epochs=0)))["distance_parent"].tolist() == [0]
    for row in (start, end):
        assert row[["paired", "matched", "cka"]].tolist() == pytest.approx([1, 1, 1])
        assert row["test_top1"] == archive.read(tmp_path, base).epochs["test_top1"].iloc[-1]


def test_pretrained_starts_from_the_other_runs_weights_but_for_its_head(base, tmp_path):
    training.run(base, results=tmp_path, keep_weights=True)
    then = replace(base, init="pretrained:fashion_mnist_sample", parent=base.hash, epochs=0)
    training.run(then, results=tmp_path, keep_weights=True)
    old, new = (final(tmp_path, config) for config in (base, then))
    same = {name for name in old if torch.equal(old[name], new[name])}
    assert set(old) - same == {"classifier.4.weight", "classifier.4.bias"}


def test_a_colour_network_from_a_grey_one_answers_alike_to_grey_images():
    grey = models.build("vgg19_bn", num_classes=10, in_channels=1, width=8, seed=1)
    colour = models.build("vgg19_bn", num_classes=10, in_channels=3, width=8, seed=2)
    head = colour.classifier.weight.clone()
    models.transfer(colour, grey.state_dict())
    x = torch.randn(4, 1, 32, 32)
    torch.testing.assert_close(
        colour.features.eval()(x.expand(-1, 3, -1, -1)), grey.features.eval()(x), atol=1e-5, rtol=1e-4
    )
    assert torch.equal(colour.classifier.weight, head)
    back = models.build("vgg19_bn", num_classes=10, in_channels=1, width=8)
    models.transfer(back, colour.state_dict())
    torch.testing.assert_close(back.features.eval()(x), grey.features(x), atol=1e-5, rtol=1e-4)


def test_weights_of_another_network_do_not_fit():
    with pytest.raises(ConfigError, match="do not fit: layer1"):
        models.transfer(
            models.build("resnet18", num_classes=10, width=8), {"conv1.weight": torch.zeros(8, 3, 3, 3)}
            | {f"bn1.{name}": torch.zeros(8) for name in ("weight", "bias", "running_mean", "running_var")}
            | {"bn1.num_batches_tracked": torch.tensor(0)},
        )  # fmt: skip


def test_a_stopped_retraining_ends_like_an_undisturbed_one(base, tmp_path):
    base = replace(base, epochs=1)
    child = child_of(base, epochs=4)
    straight = run_all([child, base], results=tmp_path / "straight", jobs=1)
    assert straight.trained == [base.name, child.name]
    training.run(base, results=tmp_path / "parts", keep_weights=True)
    for _ in range(5):
        with pytest.raises(OutOfTimeError):
            training.run(child, results=tmp_path / "parts", deadline=0.0, threads=1)
    training.run(child, results=tmp_path / "parts", threads=1)
    names = ("snapshots.parquet", "features.parquet")
    parts, whole = (archive.run_dir(tmp_path / part, child) for part in ("parts", "straight"))
    assert tables(parts) == tables(whole)
    assert [(parts / name).read_bytes() for name in names] == [(whole / name).read_bytes() for name in names]


def test_a_killed_sweep_trains_no_parent_again(base, tmp_path):
    """The process that trains the child is killed outright; the next sweep goes on with it and leaves the parent alone."""
    from tests.conftest import sweep_process

    child = child_of(base, epochs=60)
    process = sweep_process([base, child], tmp_path)
    checkpoint = archive.cache_dir(tmp_path, child) / "checkpoint.safetensors"
    ended = time.time() + 120
    while not checkpoint.exists() and time.time() < ended:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoint.exists()
    parent = contents(archive.run_dir(tmp_path, base))
    report = run_all([base, child], results=tmp_path, jobs=1)
    assert (report.already, report.trained) == ([base.name], [child.name])
    assert contents(archive.run_dir(tmp_path, base)) == parent
    assert archive.read(tmp_path, child).record["provenance"]["resumed"] == 1
    assert list(tmp_path.rglob("*.safetensors")) == [weights.path(tmp_path, base.hash)]


def test_a_parent_whose_weights_are_gone_is_trained_again_and_stays_as_it_was(base, tmp_path):
    training.run(base, results=tmp_path)
    before = contents(archive.run_dir(tmp_path, base))
    report = run_all([child_of(base), base], results=tmp_path, jobs=1)
    assert sorted(report.trained) == sorted([base.name, child_of(base).name])
    assert report.already == []
    assert contents(archive.run_dir(tmp_path, base)) == before


def test_a_missing_parent_is_one_sentence(base, tmp_path):
    child = child_of(base)
    with pytest.raises(ArchiveError, match=f"the weights of the parent run {base.hash} are not in") as error:
        training.run(child, results=tmp_path)
    assert "\n" not in str(error.value)
    report = run_all([child], results=tmp_path, jobs=1)
    assert report.failed == {
        child.name: f"its parent {base.hash} is not among the runs and its weights are not kept; add the parent to the runs"
    }


def test_an_edited_parent_is_one_sentence(base, tmp_path):
    training.run(base, results=tmp_path, keep_weights=True)
    file = weights.path(tmp_path, base.hash)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    for damaged in (bytes(content), bytes(content[:-100]), b"", file.read_bytes().replace(b"lenet5", b"lenet6")):
        file.write_bytes(damaged)
        with pytest.raises(ArchiveError, match="was truncated or edited; delete it and start the sweep again") as error:
            training.run(child_of(base), results=tmp_path)
        assert "\n" not in str(error.value)


def test_a_parent_of_another_size_is_one_sentence(base, tmp_path):
    training.run(base, results=tmp_path, keep_weights=True)
    with pytest.raises(ConfigError, match=f"the parent run {base.hash} does not fit .*: features.0.weight has shape"):
        training.run(child_of(base, width=32), results=tmp_path)


def test_weights_of_another_data_set_than_named_are_refused(base, tmp_path):
    training.run(base, results=tmp_path, keep_weights=True)
    with pytest.raises(ConfigError, match="does not fit .*: it was trained on fashion_mnist_sample"):
        training.run(replace(base, init="pretrained:mnist", parent=base.hash), results=tmp_path)


@pytest.mark.parametrize("chunk", [2, 3])
def test_chunks_hold_no_child_beside_its_parent(base, tmp_path, chunk):
    runs = [child_of(base), base, child_of(base, "shuffle"), replace(base, seed=1), child_of(replace(base, seed=1))]
    report = run_all(
        [replace(run, epochs=1) if run.perturbation != "none" else run for run in runs],
        results=tmp_path,
        jobs=2,
        chunk=chunk,
    )
    assert len(report.trained) == 5


def test_a_checkpoint_of_other_evaluation_batches_is_not_gone_on_from(base, tmp_path, monkeypatch):
    with pytest.raises(OutOfTimeError):
        training.run(base, results=tmp_path, deadline=0.0)
    monkeypatch.setattr("rwclib.runs.checkpoint.TEST_BATCH", 50)
    with pytest.raises(ArchiveError, match="another version wrote it"):
        training.run(base, results=tmp_path)


def test_a_grandchild_of_gone_weights_gets_both_trained_again(base, tmp_path):
    then = replace(base, init="pretrained:fashion_mnist_sample", parent=base.hash, epochs=1)
    flipped = child_of(then)
    run_all([base, then], results=tmp_path, jobs=1)
    weights.path(tmp_path, base.hash).unlink()
    report = run_all([flipped, then, base], results=tmp_path, jobs=1)
    assert sorted(report.trained) == sorted(config.name for config in (base, then, flipped))
    orphan = run_all([flipped, then], results=tmp_path / "empty", jobs=1)
    assert set(orphan.failed) == {flipped.name, then.name}
    assert "is not among the runs" in orphan.failed[then.name]


def test_a_diverged_parent_takes_its_children_with_it(base, tmp_path):
    wild = replace(base, lr=1e9, epochs=4)
    report = run_all([child_of(wild), wild], results=tmp_path, jobs=1)
    assert set(report.diverged) == {wild.name, child_of(wild).name}
    assert "its parent" in report.diverged[child_of(wild).name]
    again = run_all([child_of(wild), wild], results=tmp_path, jobs=1)
    assert (again.already, set(again.diverged)) == ([wild.name], {child_of(wild).name})


def test_a_time_budget_leaves_children_for_the_next_call(base, tmp_path):
    child = child_of(base, epochs=1)
    report = run_all([child, base], results=tmp_path, jobs=1, time_budget=0.0)
    assert sorted(report.left) == sorted([child.name, base.name])
    assert sorted(run_all([child, base], results=tmp_path, jobs=1).trained) == sorted([child.name, base.name])


def test_what_imagenet_weights_there_are_none_of_is_refused():
    with pytest.raises(ConfigError, match="no ImageNet weights for lenet5 at width 64, but for resnet18"):
        models.build("lenet5", num_classes=10, init="pretrained")
    with pytest.raises(ConfigError, match="at width 8"):
        models.build("resnet18", num_classes=10, width=8, init="pretrained")


@pytest.mark.parametrize("name", [name for name, of in models.MODELS.items() if of.imagenet])
def test_torchvisions_networks_fit_ours_but_for_stem_and_head(name, monkeypatch):
    """Of torchvision's own network, with its initial weights in place of a download."""
    import torchvision

    other = torchvision.models.get_model(models.get(name).imagenet).state_dict()
    monkeypatch.setattr(models, "imagenet", lambda _: other)
    model = models.build(name, num_classes=10, in_channels=1, init="pretrained")
    state = model.state_dict()
    stem = next(key for key, value in state.items() if value.dim() == 4)
    copied = [key for key in state if key in other and torch.equal(state[key], other[key])]
    head = [key for key, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    assert {stem, f"{head}.weight", f"{head}.bias"} == set(state) - set(copied)
    middle = other[stem][..., 2:5, 2:5] if other[stem].shape[-1] == 7 else other[stem]
    torch.testing.assert_close(state[stem], middle.sum(1, keepdim=True))


@pytest.mark.parametrize("notes", [{"config": None}, {"config": "[]"}, {"config": "{}"}, [], None])
def test_weights_with_notes_of_another_form_are_refused(tmp_path, config, notes):
    model = nn.Linear(2, 2)
    weights.keep(tmp_path, config, model)
    file = weights.path(tmp_path, config.hash)
    if isinstance(notes, dict):
        notes = {"sha256": "0"} | notes
    weights.write(file, model.state_dict(), {"rwclib": json.dumps(notes)})
    with pytest.raises(ArchiveError, match="truncated or edited"):
        weights.read(tmp_path, config.hash)


def test_imagenet_weights_are_read_as_weights_alone(monkeypatch):
    asked = {}

    def load(url, **options):
        asked.update(options, url=url)
        return {}

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", load)
    assert models.imagenet("resnet18") == {}
    assert asked["weights_only"] is True
    assert asked["check_hash"] is True
    assert asked["url"].startswith("https://")

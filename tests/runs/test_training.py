"""run(config): real training, its tables against independent code, resuming, divergence."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from rwclib import RunConfig, RWCTracker, archive, data, models, training
from rwclib.errors import ArchiveError, ConfigError, DivergedError, OutOfTimeError
from rwclib.runs import checkpoint
from rwclib.runs.steps import Steps, best_engine
from tests.conftest import contents, tables


def test_a_run_learns_and_is_archived_with_its_provenance(config, tmp_path):
    place = training.run(replace(config, epochs=4, n_train=800), results=tmp_path)
    run = archive.read_dir(place)
    losses = run.epochs["train_loss"]
    assert losses.iloc[-1] < 0.7 * losses.iloc[0]
    assert run.epochs["train_top1"].iloc[-1] > 40
    assert (run.epochs["train_top5"] >= run.epochs["train_top1"]).all()
    assert list(run.epochs["epoch"]) == [1, 2, 3, 4]
    assert len(run.layers) == 4 * 21
    assert run.layers.groupby("group")["layer"].nunique().to_dict() == {
        "block1": 4, "block2": 5, "block3": 5, "block4": 5, "stem": 1, "head": 1,
    }  # fmt: skip
    record = run.record
    assert record["status"] == "done"
    assert record["provenance"]["data_source"].startswith("Fashion-MNIST")
    assert record["provenance"]["torch"] == torch.__version__
    assert len(record["provenance"]["epoch_seconds"]) == 4
    assert not list((tmp_path / ".cache").rglob("*"))


def test_rwc_in_the_archive_is_what_an_independent_loop_computes(config, tmp_path):
    config = replace(config, epochs=2)
    run = archive.read_dir(training.run(config, results=tmp_path))
    images = data.load(config.dataset).subset(config.n_train, config.n_test)
    model = models.build(config.model, num_classes=10, in_channels=1, width=config.width, seed=config.seed)
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    batches = data.Batches(
        images.x_train, images.y_train, image_size=32, normalize="none", device=torch.device("cpu"),
    )  # fmt: skip
    order, augmentation = training.generator(0, "order"), training.generator(0, "augmentation")
    for epoch in (1, 2):
        before = {name: p.detach().double().numpy().copy() for name, p in model.named_parameters() if p.dim() > 1}
        model.train()
        for x, y in batches.epoch(batches.plan(augmentation, order, flip=True, shuffle=True), config.batch_size):
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
        rows = run.layers[run.layers["epoch"] == epoch].set_index("layer")
        for name, p in model.named_parameters():
            if p.dim() > 1:
                after, start = p.detach().double().numpy(), before[name]
                assert rows.loc[name, "rwc"] == pytest.approx(
                    np.abs(after - start).sum() / np.abs(start).sum(), rel=1e-5
                )


def test_a_finished_run_is_left_alone(config, tmp_path):
    place = training.run(config, results=tmp_path)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()}
    assert training.run(config, results=tmp_path) == place
    assert {
        path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()
    } == before


def test_zero_epochs_give_empty_tables(config, tmp_path):
    run = archive.read_dir(training.run(replace(config, epochs=0), results=tmp_path))
    assert run.record["status"] == "done"
    assert len(run.layers) == len(run.epochs) == 0


@pytest.mark.parametrize("model", ["resnet18", "alexnet"])  # batch norm; dropout, which draws from the global generator
def test_a_run_stopped_after_every_single_batch_ends_with_the_same_tables(config, tmp_path, model):
    config = replace(config, model=model, epochs=2)
    whole = training.run(config, results=tmp_path / "whole")
    calls = 0
    while True:
        try:
            place = training.run(config, results=tmp_path / "parts", deadline=0.0)
            break
        except OutOfTimeError:
            calls += 1
    assert calls == 2 * (4 + 1)  # batches of 64 of 200 training images, one of 100 test images
    assert tables(place) == tables(whole)
    assert archive.read_dir(place).record["provenance"]["resumed"] == calls


def test_steps_that_are_undone_leave_no_trace(config):
    """What a CUDA graph's warm-up relies on."""

    def trained(optimizer, *, disturbed):
        torch.manual_seed(0)
        model = models.build("alexnet", num_classes=10, width=8, seed=0)
        optimizer = optimizer(model.parameters())
        steps = Steps(
            model, optimizer, torch.zeros(2, 3, dtype=torch.float64), batch_size=16, precision="fp32", engine="eager"
        )
        x, y = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 10
        for step in range(3):
            if disturbed and step != 1:
                with steps.undone():
                    for _ in range(3):
                        steps.train(x.flip(0), y)
            steps.train(x, y)
        return [*model.state_dict().values(), steps.sums]

    for optimizer in (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), lambda p: torch.optim.Adam(p, lr=0.01)):
        plain, disturbed = trained(optimizer, disturbed=False), trained(optimizer, disturbed=True)
        assert all(torch.equal(a, b) for a, b in zip(plain, disturbed, strict=True))


def test_the_engine_is_checked_before_anything_is_read(config, tmp_path):
    with pytest.raises(ConfigError, match="engine 'graph' needs a GPU"):
        training.run(config, results=tmp_path / "results", device="cpu", engine="graph")
    with pytest.raises(ConfigError, match="unknown engine 'magic'; known: eager, compile, graph, auto$"):
        training.run(config, results=tmp_path / "results", engine="magic")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("changes", [{"optimizer": "adam", "lr": 0.001}, {"shuffle": False}, {"momentum": 0.0}])
def test_resuming_is_exact_for_every_optimizer(config, tmp_path, changes):
    config = replace(config, epochs=2, **changes)
    whole = training.run(config, results=tmp_path / "whole")
    with pytest.raises(OutOfTimeError):
        training.run(
            config, results=tmp_path / "parts", checkpoint_seconds=0, deadline=time.time() + 1000,
            progress=_stop_after_first_epoch(),
        )  # fmt: skip
    place = training.run(config, results=tmp_path / "parts", checkpoint_seconds=0)
    assert tables(place) == tables(whole)


def _stop_after_first_epoch():
    """Interrupt the way a deadline does, but at a known epoch: the checkpoint of epoch 1 is on disk by then."""
    calls = []

    def progress(values):
        calls.append(values)
        if len(calls) == 2:
            raise OutOfTimeError("the test stops here")

    return progress


def test_seeds_and_settings_change_the_numbers_and_the_folder(config, tmp_path):
    config = replace(config, epochs=1)
    places = [training.run(c, results=tmp_path) for c in (config, replace(config, seed=1), replace(config, flip=False))]
    assert len(set(places)) == 3
    assert len({archive.read_dir(place).layers["rwc"].sum() for place in places}) == 3


def test_the_global_random_state_is_neither_read_nor_changed(config, tmp_path):
    config = replace(config, epochs=1)
    torch.manual_seed(1)
    first = training.run(config, results=tmp_path / "a")
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = training.run(config, results=tmp_path / "b")
    assert torch.equal(torch.get_rng_state(), state)
    assert tables(first) == tables(second)


def test_a_diverging_run_is_archived_as_diverged_and_not_trained_again(config, tmp_path):
    config = replace(config, lr=1e12, epochs=5)
    with pytest.raises(DivergedError, match="diverged in epoch") as first:
        training.run(config, results=tmp_path)
    assert "\n" not in str(first.value)
    record = json.loads((archive.run_dir(tmp_path, config) / "run.json").read_text())
    assert record["status"] == "diverged"
    assert 1 <= record["diverged"]["epoch"] <= 5
    before = contents(tmp_path)
    with pytest.raises(DivergedError):
        training.run(config, results=tmp_path)
    assert contents(tmp_path) == before


def test_a_damaged_run_is_named_kept_aside_and_trained_again(config, tmp_path, capsys):
    place = training.run(config, results=tmp_path)
    good = tables(place)
    (place / "layers.parquet").write_bytes(good["layers.parquet"][:-20])
    assert training.run(config, results=tmp_path) == place
    assert tables(place) == good
    aside = [p for p in place.parent.iterdir() if ".damaged-" in p.name]
    assert len(aside) == 1
    assert (aside[0] / "layers.parquet").read_bytes() == good["layers.parquet"][:-20]
    assert "layers.parquet was truncated or edited" in capsys.readouterr().err


def test_torch_compile_trains_to_nearly_the_same_numbers(config, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(
        torch, "compile", lambda model: compiled.append(model) or torch._dynamo.optimize("eager")(model)
    )
    plain = archive.read_dir(training.run(config, results=tmp_path / "a", device="cpu", engine="auto"))
    monkeypatch.setattr(training, "best_engine", lambda *words: "compile")
    fast = archive.read_dir(training.run(config, results=tmp_path / "b", device="cpu", engine="auto"))
    assert len(compiled) == 1
    assert [run.record["provenance"]["engine"] for run in (plain, fast)] == ["eager", "compile"]
    assert list(fast.layers["layer"]) == list(plain.layers["layer"])
    np.testing.assert_allclose(fast.layers["rwc"], plain.layers["rwc"], rtol=1e-4)


@pytest.mark.parametrize(
    ("device", "images", "engine"),
    [("cpu", 50_000, "eager"), ("cuda", 50_000, "graph"), ("cuda", 128, "graph"), ("cuda", 127, "eager")],
)
def test_auto_takes_graphs_of_full_batches_on_a_gpu(device, images, engine):
    config = RunConfig(model="resnet18", dataset="cifar10", batch_size=128, precision="bf16")
    assert best_engine(config, torch.device(device), images) == engine


def test_bf16_autocast_keeps_float32_weights_and_similar_changes(config, tmp_path):
    config = replace(config, epochs=1)
    exact = archive.read_dir(training.run(config, results=tmp_path))
    rough = archive.read_dir(training.run(replace(config, precision="bf16"), results=tmp_path))
    ratio = rough.layers["rwc"].median() / exact.layers["rwc"].median()
    assert ratio != 1
    assert 0.7 < ratio < 1.4


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")


@needs_gpu
@pytest.mark.filterwarnings("default")  # PyTorch's own, on precision and compilation
@pytest.mark.parametrize("engine", ["eager", "compile", "graph"])
def test_a_gpu_run_agrees_with_the_cpu(config, tmp_path, engine):
    config = replace(config, epochs=1)
    cpu = archive.read_dir(training.run(config, results=tmp_path / "cpu", device="cpu"))
    gpu = archive.read_dir(training.run(config, results=tmp_path / "gpu", device="cuda", engine=engine))
    assert gpu.record["provenance"]["engine"] == engine
    assert gpu.layers["rwc"].median() == pytest.approx(cpu.layers["rwc"].median(), rel=0.05)


@needs_gpu
@pytest.mark.filterwarnings("default")
def test_a_cuda_graph_trains_as_eager_steps_do_in_bf16_with_dropout(config, tmp_path):
    config = replace(config, model="alexnet", precision="bf16", lr=0.01, epochs=2, n_train=1000)
    eager, graph = (
        archive.read_dir(training.run(config, results=tmp_path / engine, device="cuda", engine=engine))
        for engine in ("eager", "graph")
    )
    assert graph.epochs["train_loss"].iloc[0] == pytest.approx(eager.epochs["train_loss"].iloc[0], rel=0.02)
    ratios = graph.layers.query("epoch == 1")["rwc"] / eager.layers.query("epoch == 1")["rwc"]
    assert (abs(ratios - 1) < 0.2).all()


@needs_gpu
@pytest.mark.filterwarnings("default")
def test_a_cuda_graph_draws_new_dropout_at_every_replay():
    model = models.build("alexnet", num_classes=10, width=8, seed=0).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    sums = torch.zeros(2, 3, dtype=torch.float64, device="cuda")
    steps = Steps(model, optimizer, sums, batch_size=16, precision="fp32", engine="graph")
    x, y, losses = torch.rand(16, 3, 32, 32, device="cuda"), torch.arange(16, device="cuda") % 10, []
    for _ in range(4):
        sums.zero_()
        steps.train(x, y)
        losses.append(sums[0, 0].item())
    assert len(set(losses)) == 4


@needs_gpu
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_run_in_cuda_graphs_goes_on_after_every_batch(config, tmp_path, optimizer):
    config = replace(config, optimizer=optimizer, lr=0.001, epochs=2)
    whole = archive.read_dir(training.run(config, results=tmp_path / "whole", device="cuda", engine="graph"))
    for _ in range(2 * (4 + 1)):
        with pytest.raises(OutOfTimeError):
            training.run(config, results=tmp_path / "parts", device="cuda", engine="graph", deadline=0.0)
    parts = archive.read_dir(training.run(config, results=tmp_path / "parts", device="cuda", engine="graph"))
    np.testing.assert_allclose(parts.layers["rwc"], whole.layers["rwc"], rtol=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": "resnet19"},
            f"unknown model 'resnet19'; known: {', '.join(sorted(models.MODELS))}",
        ),
        ({"dataset": "imagenet"}, "unknown data set 'imagenet'; known: mnist"),
        ({"n_train": 6001}, "n_train is 6001, but fashion_mnist_sample has 6000 train images"),
        ({"normalize": "imagenet"}, "needs colour images"),
    ],
)
def test_an_impossible_run_is_refused_in_one_sentence_and_writes_nothing(config, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        training.run(replace(config, **changes), results=tmp_path / "results")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "results").exists()


def test_an_unknown_device_is_refused(config, tmp_path):
    with pytest.raises(ConfigError, match="device 'tpu9' is not on this machine"):
        training.run(config, results=tmp_path / "results", device="tpu9")


def test_a_damaged_checkpoint_is_named_and_moved_aside(config, tmp_path):
    with pytest.raises(OutOfTimeError):
        training.run(config, results=tmp_path, deadline=0)
    file = archive.cache_dir(tmp_path, config) / checkpoint.FILE
    damaged = file.read_bytes()[:-100]
    file.write_bytes(damaged)
    assert checkpoint.epochs_done(file) == 0
    with pytest.raises(ArchiveError, match="the checkpoint of .* is damaged") as error:
        training.run(config, results=tmp_path)
    assert "\n" not in str(error.value)
    assert file.with_suffix(".damaged").read_bytes() == damaged
    assert training.run(config, results=tmp_path).is_dir()


@pytest.mark.long
def test_full_width_training_on_real_images_falls_and_tracks_what_the_weights_say(tmp_path):
    """Full-width ResNet-18, real images: the loss falls, and RWC is that of weights saved before and after."""
    images = data.load("cifar10" if data.path("cifar10").exists() else "fashion_mnist_sample").subset(96, None)
    model = models.build("resnet18", num_classes=10, in_channels=images.x_train.shape[3], seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    batches = data.Batches(images.x_train, images.y_train, image_size=32, normalize="none", device=torch.device("cpu"))
    tracker, before, losses = RWCTracker(model), {k: v.double().clone() for k, v in model.state_dict().items()}, []
    for seed in range(4):
        plan = batches.plan(torch.Generator(), torch.Generator().manual_seed(seed), flip=False, shuffle=True)
        for x, y in batches.epoch(plan, 16):
            loss = functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    for layer, value in tracker.step().items():
        change = (model.state_dict()[layer].double() - before[layer]).abs().sum() / before[layer].abs().sum()
        assert value == pytest.approx(change.item(), rel=1e-5)

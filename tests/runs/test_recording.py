"""Runs of so many iterations: where they end, what they record, and that a killed one goes on."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rwclib import RunConfig, archive, data, models, training
from rwclib.errors import ConfigError, OutOfTimeError
from rwclib.runs.recording import EVERY, GRID, IMAGES, LEVELS
from rwclib.sweeps import forecast as planning
from tests.conftest import tables


@pytest.fixture
def session():
    """Eleven batches: two epochs of five, and one batch more."""
    return RunConfig(
        model="softness_cnn", dataset="fashion_mnist_sample", iterations=11, n_train=240, n_test=300, batch_size=50,
        optimizer="adam", lr=1e-3, momentum=0.0, weight_decay=0.0,
    )  # fmt: skip


def test_the_network_has_the_layers_of_the_paper():
    model = models.build("softness_cnn", num_classes=10)
    assert {name: tuple(p.shape) for name, p in model.named_parameters() if p.dim() > 1} == {
        "conv1.weight": (16, 3, 5, 5), "conv2.weight": (36, 16, 5, 5), "fc1.weight": (128, 2304), "fc2.weight": (10, 128),
    }  # fmt: skip
    assert sum(p.numel() for p in model.parameters()) == 311_982
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_it_ends_after_its_iterations_and_records_on_the_way(session, tmp_path):
    place = training.run(session, results=tmp_path)
    run = archive.read_dir(place)
    assert "-i11-" in place.name
    assert run.epochs["epoch"].tolist() == [1, 2, 3]
    assert run.extra["filters_iterations"].tolist() == [1, 3, 10, 11]
    assert run.extra["filters_conv1"].shape == (4, 16, 1, 5, 5)
    assert run.extra["filters_conv2"].shape == (4, 36, 16, 5, 5)
    assert (place / "filters_conv1.npy").exists()
    assert run.extra["accuracy"]["iteration"].tolist() == [10]
    assert run.record["provenance"]["n_train"] == 240


def test_what_it_records_is_what_an_independent_loop_has(session, tmp_path):
    run = archive.read_dir(training.run(session, results=tmp_path, threads=1))
    images = data.load(session.dataset).subset(session.n_train, session.n_test)
    kind = {"image_size": 32, "normalize": "none", "device": torch.device("cpu")}
    train, test = (
        data.Batches(images.x_train, images.y_train, **kind),
        data.Batches(images.x_test, images.y_test, **kind),
    )
    model = models.build("softness_cnn", num_classes=10, in_channels=1).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    order, augmentation, done = training.generator(0, "order"), training.generator(0, "augmentation"), 0
    kept, accuracy = [], []
    for _ in range(3):
        for x, y in train.epoch(train.plan(augmentation, order, flip=False, shuffle=True), 50):
            if done == 11:
                break
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            done += 1
            if done in (1, 3, 10, 11):
                kept.append(model.conv2.weight.detach().numpy().copy())
            if done == 10:
                x, y = next(test.in_order(IMAGES))
                accuracy.append(100 * (model(x).argmax(1) == y).float().mean().item())
    np.testing.assert_allclose(run.extra["filters_conv2"], kept, atol=1e-6)
    assert run.extra["accuracy"]["test_top1"].tolist() == pytest.approx(accuracy)


def test_a_stopped_session_ends_with_the_same_tables_and_filters(session, tmp_path):
    whole = training.run(session, results=tmp_path / "whole", threads=1)
    parts, stops = None, 0
    while parts is None:  # after every batch of training and of evaluation
        try:
            parts = training.run(session, results=tmp_path / "parts", threads=1, deadline=0.0)
        except OutOfTimeError:
            stops += 1
    assert stops == 11 + 3 * 3
    assert tables(parts) == tables(whole)
    for name in ("filters_conv1.npy", "filters_conv2.npy", "filters_iterations.npy", "accuracy.parquet"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()


def test_the_grid_of_recordings_holds_the_papers_levels():
    assert set(LEVELS) <= set(GRID)
    assert EVERY == 10


def test_its_work_is_that_of_its_batches(session):
    one = planning.work(replace(session, iterations=1))
    assert planning.epochs(session) == 3
    image = planning.forward_flops("softness_cnn", session.dataset, 64, 32)
    assert planning.work(replace(session, iterations=5)) == pytest.approx(one + 4 * 50 * 3 * image)
    assert planning.work(session) == pytest.approx(one + (10 * 50 * 3 + 2 * 300 + IMAGES) * image)


def test_iterations_and_epochs_exclude_one_another(session):
    with pytest.raises(ConfigError, match="a run of 11 iterations has no number of epochs"):
        replace(session, epochs=2)

"""What theory predicts of study 1: planted factors, slopes and orders are found; the step-resolved run is the run."""

import numpy as np
import pandas as pd
import pytest

from rwclib import data, theory
from rwclib.runs import archive, training
from rwclib.studies import extensions, layerwise
from rwclib.studies.extensions import predicted
from rwclib.studies.study import select


@pytest.fixture(scope="module")
def quick():
    return layerwise.STUDY.tables(profile="quick", models=["resnet18"], datasets=["cifar10"])


def planted(tables, **columns):
    return archive.Tables(tables.runs, tables.layers.assign(**columns), tables.epochs)


def settled(tables, block4, epochs=60, seeds=(0, 42)):
    """Study 1's runs as if they had had the whole training set and so many epochs, in which block4 moves so much more."""
    first = tables.layers[tables.layers["epoch"] == 2]
    copies = pd.concat([first.assign(epoch=epoch) for epoch in range(1, epochs + 1)])
    noise = np.random.default_rng(0).normal(1, 0.01, len(copies))
    copies["rwc"] = np.where(copies["group"] == "block4", block4, 1.0) * 0.15 * noise
    both = [(tables.runs.assign(images=50_000, dataset=name), copies.assign(dataset=name)) for name in predicted.CIFAR]
    runs, layers = (pd.concat(parts, ignore_index=True) for parts in zip(*both, strict=True))
    for table in (runs, layers):
        table["hash"] = table["hash"] + table["dataset"]
        table["profile"] = "paper"
    return archive.Tables(runs, layers, pd.DataFrame())


def test_the_rho_form_is_the_theorys_for_the_runs_own_settings(quick):
    rows = predicted.layers(quick)
    assert rows["epoch"].min() == 2
    assert set(rows["group"]) == set(layerwise.figures.GROUPS["resnet18"])
    assert rows["steps"].unique().tolist() == [16]  # 2,048 images in batches of 128
    assert rows["expected"].to_numpy() == pytest.approx(theory.sgd(0.1, 1e-4, 0.9).change(16, rows["growth"]))
    cosine = (rows["growth"] ** 2 + 1 - rows["l2_ratio"] ** 2) / (2 * rows["growth"])
    assert cosine.to_numpy() == pytest.approx(rows["cosine"].to_numpy(), abs=1e-4)  # growth is that of the row's epoch


def test_planted_factor_and_slope_are_found(quick):
    rows = predicted.layers(quick)
    size = 3.0 + 0.5 * np.log(rows["size"])
    fits = predicted.fits(rows.assign(l2_ratio=0.6 * rows["expected"], factor=0.6, over=size))
    assert fits[["factor", "slope", "r2"]].to_numpy() == pytest.approx(np.array([[0.6, 0.5, 1.0]] * 2))
    assert predicted.r2(rows.assign(l2_ratio=np.random.default_rng(0).random(len(rows)))) < 0.1


def test_the_prediction_is_equilibrium_times_the_two_factors_times_what_the_estimator_adds(quick):
    rows = predicted.layers(quick).assign(factor=0.6, shape=0.9)
    table = predicted.published(rows).query("seed == 0").set_index("group")
    l2 = theory.sgd(0.1, 1e-4, 0.9).change(391)
    expected = 0.6 * 0.9 * l2 * theory.elementwise_mean([64 * 64 * 9, 512 * 512 * 9])
    assert table.loc[["block1", "block4"], "predicted"].to_numpy() == pytest.approx(expected)
    assert table.loc["block1", "published"] == 1.335  # figure 1


def test_epochs_are_settled_after_three_relaxation_times(quick):
    rows = predicted.layers(settled(quick, 1.0))
    assert (
        rows.loc[rows["settled"], "epoch"].min() == 21
    )  # 3 / (4 * 391 * 1e-4) is 19.2 epochs, and epoch 21 begins after 20
    assert not predicted.layers(quick)["settled"].any()


@pytest.mark.parametrize(("block4", "verdict"), [(1.0, "holds"), (1.4, "fails"), (0.6, "fails")])
def test_t5_is_judged_on_settled_epochs_alone(quick, block4, verdict):
    tables = settled(quick, block4)
    values = extensions.claims.values(tables)
    (claim,) = (claim for claim in extensions.STUDY.claims if claim.id == "T5")
    parts = extensions.claims.claims.details(values, [claim], ["reduced", "paper"])
    assert parts.loc[parts["profile"] == "paper", "verdict"].tolist() == [verdict] * 2


def test_the_claims_are_the_thirteen_and_what_no_run_can_judge_says_why(quick):
    table = extensions.STUDY.verdicts(quick)
    letters = {"T": 6, "N": 4, "F": 3}
    assert table["claim"].unique().tolist() == [f"{a}{i + 1}" for a, count in letters.items() for i in range(count)]
    reasons = table.set_index("claim")["reason"]
    assert reasons["T5"] == "needs 150 epochs"
    assert table.set_index("claim").loc["T2", "verdict"] == "not run"
    assert extensions.runs("paper") == []
    empty = select(quick, set())
    assert extensions.STUDY.verdicts(empty)["verdict"].unique().tolist() == ["not run"]
    assert predicted.layers(empty).empty
    assert predicted.published(predicted.layers(empty)).empty


def test_the_step_resolved_run_is_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("RWC_RESULTS", str(tmp_path))
    table = predicted.displacement("smoke", dataset=data.SAMPLE)
    assert sorted(table["lag"].unique()) == [1, 2, 3, 4]  # one epoch of 512 images
    assert table["start"].unique().tolist() == [1]
    config = layerwise.run_config("smoke", "resnet18", data.SAMPLE, 0)
    layers = pd.read_parquet(training.run(config, results=tmp_path, device="cpu") / "layers.parquet")
    second = layers[layers["epoch"] == 2].set_index("layer")["l2_ratio"]
    ours = table[table["lag"] == 4].set_index("layer")["l2_ratio"]
    assert ours.to_numpy() == pytest.approx(second.loc[ours.index].to_numpy(), rel=1e-2)
    assert (table.groupby("layer")["l2_ratio"].last() > table.groupby("layer")["l2_ratio"].first()).mean() > 0.9

"""Study 3: its grid, its tables against the archived runs, and its claims on planted numbers."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from rwclib import archive, claims, plotting_runs
from rwclib.claims import Claim
from rwclib.comparisons import Comparison, Difference, Group, Level
from rwclib.config import PROFILES
from rwclib.errors import ConfigError
from rwclib.studies import dynamics, dynamics_claims

from .conftest import ROOT

RESULTS = ROOT / "data" / "results"


@pytest.fixture(scope="module")
def found():
    return dynamics.tables(RESULTS, "quick")


@pytest.mark.parametrize("profile", PROFILES)
def test_the_grid_is_54_trainings_and_108_retrainings_to_a_seed(profile):
    seeds = len(dynamics.SIZES[profile]["seeds"])
    assert len(set(dynamics.grid(profile))) == 54 * seeds
    assert len(set(dynamics.retrainings(profile))) == 108 * seeds
    runs = dynamics.runs(profile)
    place = {config.hash: i for i, config in enumerate(runs)}
    assert len(place) == len(runs)
    assert all(place[config.parent] < i for i, config in enumerate(runs) if config.parent)


def test_names_of_runs_are_pinned_so_that_archived_runs_stay_theirs():
    config = dynamics.base_config("quick", "resnet18", "cifar10", "pretrained", "adam", 0)
    assert (config.init, config.parent) == ("pretrained:fashion_mnist", "84f68d8eeafc")
    assert config.hash == "d79e07f5ffdf"


def test_pretrained_is_left_out_without_a_data_set_to_pretrain_on():
    assert {config.init for config in dynamics.grid("quick", datasets=["cifar10"])} == {
        "kaiming_uniform",
        "kaiming_normal",
    }
    assert {config.init for config in dynamics.grid("quick", datasets=["fashion_mnist_sample"])} == {
        "kaiming_uniform",
        "kaiming_normal",
    }
    assert len(dynamics.grid("quick", datasets=["cifar10", "fashion_mnist"], models=["lenet5"])) == 6 + 4


@pytest.mark.parametrize("changes", [{"model": "alexnet"}, {"init": "xavier"}, {"optimizer": "lion"}])
def test_what_the_study_does_not_have_is_refused(changes):
    settings = {"model": "lenet5", "dataset": "mnist", "init": "pretrained", "optimizer": "sgd"} | changes
    with pytest.raises(ConfigError, match="in study dynamics; known: "):
        dynamics.base_config("quick", *settings.values(), 0)


def test_the_archive_holds_the_whole_of_quick(found):
    counts = dynamics.counts(found).set_index(["profile", "kind"])
    assert counts.loc[("quick", "trainings")].tolist() == [54, 54]
    assert counts.loc[("quick", "retrainings")].tolist() == [108, 108]
    assert set(found.runs["hash"]) == {config.hash for config in dynamics.runs("quick")}


def test_the_tables_are_the_archived_runs_numbers(found):
    ends = dynamics.endings(found)
    assert len(ends) == len(dynamics.runs("quick"))
    base = dynamics.base_config("quick", "vgg19", "mnist", "kaiming_normal", "sgd", 0)
    flipped = next(c for c in dynamics.retrainings("quick") if c.parent == base.hash and c.perturbation == "flip_sign")
    run, parent = archive.read(RESULTS, flipped), archive.read(RESULTS, base)
    last = run.extra["snapshots"].query("tensor == 'all' and epoch == @flipped.epochs").iloc[0]
    of_parent = parent.extra["snapshots"].query("tensor == 'all' and epoch == @base.epochs").iloc[0]
    row = dynamics.retrained(ends[ends["hash"] == flipped.hash]).iloc[0]
    assert row["w1"] == pytest.approx(of_parent["norm"], rel=1e-5)
    assert row["w2"] == last["norm"]
    assert row["distance"] == last["distance_parent"]
    assert row["cosine"] == pytest.approx(
        (row["w1"] ** 2 + row["w2"] ** 2 - row["distance"] ** 2) / 2 / row["w1"] / row["w2"], abs=1e-4
    )
    assert (
        dynamics.retrained(ends).loc[lambda rows: rows["distance"] == row["distance"], "before"].iloc[0]
        == parent.epochs["test_top1"].iloc[-1]
    )
    assert row["after"] == run.epochs["test_top1"].iloc[-1]


def test_the_steps_add_up_to_no_less_than_the_way_from_the_start(found):
    steps = dynamics.steps(found)
    assert set(steps["step"]) == {"0-5", "5-10", "10-15", "15-20"}
    cells = steps.groupby([*dynamics.CELL, "seed"])
    assert len(cells) == 54
    assert (cells["distance_previous"].sum() >= cells["distance_start"].last() - 1e-9).all()


def test_kinds_of_tensors_add_up_to_the_whole(found):
    kinds, moved = dynamics.kinds(found), dynamics.moved(dynamics.endings(found))
    of_lenet = kinds[(kinds["model"] == "lenet5") & (kinds["dataset"] == "mnist") & (kinds["optimizer"] == "sgd")]
    assert of_lenet["weights"].sum() == 61_706
    whole = moved.query("model == 'lenet5' and dataset == 'mnist' and optimizer == 'sgd'")["changed"].mean()
    assert np.average(of_lenet["changed"], weights=of_lenet["weights"]) == pytest.approx(whole)
    assert set(kinds.loc[kinds["model"] == "vgg19", "kind"]) == {"convolution", "linear", "bias"}
    assert set(kinds.loc[kinds["model"] == "resnet18", "kind"]) == {"convolution", "linear", "bias", "normalisation"}


def test_the_slides_norms_give_the_cosines_of_the_law_of_cosines():
    flips = dynamics.published().query("perturbation == 'flip_sign'")
    assert flips["cosine"].tolist() == pytest.approx([-0.99851, -0.94885, -0.93080], abs=1e-5)


def test_every_claim_is_judged_at_quick_or_says_why_not(found):
    table = dynamics_claims.verdicts(found)
    assert set(table["claim"]) == {f"D{i}" for i in range(1, 7)}
    assert table.groupby("claim").size().to_dict() == {"D1": 3, "D2": 3, "D3": 1, "D4": 1, "D5": 1, "D6": 1}
    for row in table.itertuples():
        assert (row.verdict == "not run") == bool(row.reason)
        assert row.verdict in ("not run", "holds", "unclear", "fails")


def test_shares_changed_are_weighted_by_the_tensors_sizes(found):
    parts = dynamics_claims.details(found).query("claim == 'D2'")
    ends = dynamics.endings(found)
    row = parts[
        (parts["definition"] == "by 1%") & parts["comparison"].str.contains("lenet5: kaiming_uniform, adam")
    ].iloc[0]
    expected = ends.query(
        "model == 'lenet5' and dataset == 'cifar10' and init == 'kaiming_uniform' and optimizer == 'adam' and perturbation == 'none'"
    )
    assert row["effect"] == pytest.approx(expected["changed_1e2"].iloc[0])
    assert row["low"] <= row["effect"] <= row["high"]


def test_an_empty_archive_gives_claims_not_run(tmp_path):
    assert set(dynamics_claims.scorecard(tmp_path)["verdict"]) == {"not run"}


def planted(values: dict[str, list[float]]) -> pd.DataFrame:
    rows = [
        {"profile": "quick", "model": "m", "dataset": "d", "group": group, "seed": seed, "layer": "all", "value": value}
        for group, of in values.items()
        for seed, value in enumerate(of)
    ]
    return pd.DataFrame(rows)


A, B = Group("m", "d", "a"), Group("m", "d", "b")


@pytest.mark.parametrize(
    ("values", "part", "effect", "verdict"),
    [
        ([0.1, 0.2, 0.3], Level(a=A, low=0, high=0.4), 0.2, "holds"),
        ([0.1, 0.2, 0.6], Level(a=A, low=0, high=0.4), 0.3, "unclear"),
        ([0.7, 0.8, 0.9], Level(a=A, low=0, high=0.4), 0.8, "fails"),
        ([0.1, 0.2, 0.3], Difference(a=A, b=B, high=2.0), 0.5, "holds"),
        ([-0.5, -0.4, -0.6], Difference(a=A, b=B, high=2.0), -0.2, "fails"),
        ([-0.5, 0.1, 0.4], Difference(a=A, b=B, high=2.0), 0.3, "unclear"),
    ],
)  # fmt: skip
def test_levels_and_differences_of_whole_runs(values, part, effect, verdict):
    table = planted({"a": values, "b": [-0.3, -0.3, -0.3]})
    found = claims.compare(table, replace(part, over="trainings"), "value")
    assert found["effect"] == pytest.approx(effect)
    assert (found["verdict"], found["seeds"], found["resampled"]) == (verdict, 3, "trainings")


def test_ratios_of_whole_runs_are_compared_on_the_log_scale():
    table = planted({"a": [2.0, 8.0], "b": [1.0, 1.0]})
    assert claims.compare(table, Comparison(A, B), "value")["effect"] == pytest.approx(4)


def test_the_weakest_level_is_the_one_nearest_to_the_edge():
    table = planted({"a": [0.1, 0.2, 0.3], "b": [0.35, 0.36, 0.37]})
    claim = Claim("X", "both are low", (Level(a=A, high=0.4), Level(a=B, high=0.4)))
    epochs = pd.DataFrame({"profile": ["quick"], "model": ["m"], "dataset": ["d"]})
    row = claims.scorecard(claims.details(table, epochs, [claim], ["quick"], {"value": "-"})).iloc[0]
    assert (row["verdict"], row["weakest"], row["unit"]) == ("holds", "b", "value")


def test_captions_give_the_range_of_training_accuracies_and_count_who_is_not_judged(found):
    small, large, learned, copies = dynamics.caption(found).split("\n")
    assert small.startswith(
        "LeNet-5: profile quick, width 64 of 64, 1,024 of 50,000 or 60,000 images, 20 epochs, 10 epochs of"
    )
    assert large.startswith("ResNet-18, VGG-19: profile quick, width 8 of 64")
    assert learned.startswith(
        "training top-1 at the end: LeNet-5 SGD 76-100%, Adam 81-100%; ResNet-18 SGD 93-100%, Adam 100%;"
    )
    assert learned.endswith("; shown, not judged: 2 of 54 have hardly learned")
    assert copies.endswith("; Fashion-MNIST, MNIST: pixel-exact, original order")


def test_what_is_retrained_from_a_network_that_has_hardly_learned_goes_with_it_and_is_drawn_hollow(found):
    ends = dynamics.endings(found)
    low = dynamics.moved(ends).query("~learned")
    assert low[dynamics.CELL[:2]].drop_duplicates().to_numpy().tolist() == [["vgg19", "cifar10"], ["vgg19", "mnist"]]
    again = dynamics.retrained(ends)
    kept = again.query("~learned").groupby("perturbation")[dynamics.CELL].apply(lambda of: of.to_numpy().tolist())
    assert kept["flip_sign"] == kept["distort:1e-06"] == low[dynamics.CELL].to_numpy().tolist()
    same = dynamics.similarities(found).query("~learned")
    assert set(same["model"]) == {"vgg19"}
    table = dynamics.labelled(again[again["perturbation"] == "flip_sign"])
    settings = {"x": "dataset", "y": "relative", "hue": "optimizer", "panel": "model", "ylabel": "y", "caption": "c"}
    figure = plotting_runs.points(table, **settings)
    hollow = [
        sum(len(dots.get_offsets()) for dots in axes.collections if not len(dots.get_facecolor()))
        for axes in figure.axes
    ]
    assert hollow == [0, 0, 2]

"""Study 3: its grid, its tables against the archived runs, and its claims on planted numbers."""

import numpy as np
import pandas as pd
import pytest

from rwclib import archive, features
from rwclib.analysis import plotting_runs
from rwclib.errors import ConfigError
from rwclib.runs.config import PROFILES
from rwclib.runs.weights import COLUMNS
from rwclib.studies import dynamics
from rwclib.studies.dynamics import claims as dynamics_claims
from tests.conftest import ROOT

RESULTS = ROOT / "data" / "results"


@pytest.fixture(scope="module")
def found():
    return dynamics.STUDY.tables(RESULTS, "quick")


@pytest.mark.parametrize(("profile", "seeds"), list(zip(PROFILES, (1, 1, 2, 2, 2), strict=True)))
def test_the_grid_is_54_trainings_and_108_retrainings_to_a_seed(profile, seeds):
    trainings = 36 if profile == "narrow" else 54  # LeNet-5 has one width
    assert len(set(dynamics.grid(profile))) == trainings * seeds
    assert len(set(dynamics.retrainings(profile))) == 2 * trainings * seeds
    runs = dynamics.runs(profile)
    place = {config.hash: i for i, config in enumerate(runs)}
    assert len(place) == len(runs)
    assert all(place[config.parent] < i for i, config in enumerate(runs) if config.parent)


def test_names_of_runs_are_pinned_so_that_archived_runs_stay_theirs():
    config = dynamics.run_config("quick", "resnet18", "cifar10", "pretrained", "adam", 0)
    assert (config.init, config.parent) == ("pretrained:fashion_mnist", "84f68d8eeafc")
    assert config.hash == "d79e07f5ffdf"


@pytest.mark.parametrize("dataset", ["cifar10", "fashion_mnist_sample"])
def test_pretrained_is_left_out_without_a_data_set_to_pretrain_on(dataset):
    inits = {config.init for config in dynamics.grid("quick", datasets=[dataset])}
    assert inits == {"kaiming_uniform", "kaiming_normal"}
    assert len(dynamics.grid("quick", datasets=["cifar10", "fashion_mnist"], models=["lenet5"])) == 6 + 4


@pytest.mark.parametrize("changes", [{"model": "alexnet"}, {"init": "xavier"}, {"optimizer": "lion"}])
def test_what_the_study_does_not_have_is_refused(changes):
    settings = {"model": "lenet5", "dataset": "mnist", "init": "pretrained", "optimizer": "sgd"} | changes
    with pytest.raises(ConfigError, match="in study dynamics; known: "):
        dynamics.run_config("quick", *settings.values(), 0)


def test_the_archive_holds_the_whole_of_quick(found):
    counts = dynamics.figures.counts(found).set_index(["profile", "kind"])
    assert counts.loc[("quick", "trainings")].tolist() == [54, 54]
    assert counts.loc[("quick", "retrainings")].tolist() == [108, 108]
    assert set(found.runs["hash"]) == {config.hash for config in dynamics.runs("quick")}


def test_the_tables_are_the_archived_runs_numbers(found):
    ends = dynamics.figures.endings(found)
    assert len(ends) == len(dynamics.runs("quick"))
    base = dynamics.run_config("quick", "vgg19", "mnist", "kaiming_normal", "sgd", 0)
    flipped = next(c for c in dynamics.retrainings("quick") if c.parent == base.hash and c.perturbation == "flip_sign")
    run, parent = archive.read(RESULTS, flipped), archive.read(RESULTS, base)
    last = run.extra["snapshots"].query("tensor == 'all' and epoch == @flipped.epochs").iloc[0]
    of_parent = parent.extra["snapshots"].query("tensor == 'all' and epoch == @base.epochs").iloc[0]
    row = dynamics.figures.retrained(ends[ends["hash"] == flipped.hash]).iloc[0]
    assert row["w1"] == pytest.approx(of_parent["norm"], rel=1e-5)
    assert row["w2"] == last["norm"]
    assert row["distance"] == last["distance_parent"]
    w1, w2, distance = row["w1"], row["w2"], row["distance"]
    assert row["cosine"] == pytest.approx((w1**2 + w2**2 - distance**2) / 2 / w1 / w2, abs=1e-4)
    again = dynamics.figures.retrained(ends).set_index("distance")
    assert again.loc[distance, "before"] == parent.epochs["test_top1"].iloc[-1]
    assert row["after"] == run.epochs["test_top1"].iloc[-1]


def test_the_steps_add_up_to_no_less_than_the_way_from_the_start(found):
    steps = dynamics.figures.steps(found)
    assert set(steps["step"]) == {"0-5", "5-10", "10-15", "15-20"}
    cells = steps.groupby([*dynamics.figures.CELL, "seed"])
    assert len(cells) == 54
    assert (cells["distance_previous"].sum() >= cells["distance_start"].last() - 1e-9).all()


def test_kinds_of_tensors_add_up_to_the_whole(found):
    kinds, moved = dynamics.figures.kinds(found), dynamics.figures.moved(dynamics.figures.endings(found))
    of_lenet = kinds[(kinds["model"] == "lenet5") & (kinds["dataset"] == "mnist") & (kinds["optimizer"] == "sgd")]
    assert of_lenet["weights"].sum() == 61_706
    whole = moved.query("model == 'lenet5' and dataset == 'mnist' and optimizer == 'sgd'")["changed"].mean()
    assert np.average(of_lenet["changed"], weights=of_lenet["weights"]) == pytest.approx(whole)
    assert set(kinds.loc[kinds["model"] == "vgg19", "kind"]) == {"convolution", "linear", "bias"}
    assert set(kinds.loc[kinds["model"] == "resnet18", "kind"]) == {"convolution", "linear", "bias", "normalisation"}


def test_the_slides_norms_give_the_cosines_of_the_law_of_cosines():
    flips = dynamics.figures.published().query("perturbation == 'flip_sign'")
    assert flips["cosine"].tolist() == pytest.approx([-0.99851, -0.94885, -0.93080], abs=1e-5)


def features_of(r):
    """Three features over 64 images whose correlations are exactly r, -0.3 and -0.3."""
    x = np.random.default_rng(0).normal(size=(64, 3))
    x = np.linalg.qr(x - x.mean(0))[0]
    return x @ np.linalg.cholesky([[1, r, -0.3], [r, 1, -0.3], [-0.3, -0.3, 1]]).T


def slides(config):
    """What the slides say of one run: of its snapshot, and `top1`, `paired`, and the `r` of its features."""
    large, adam = config.model != "lenet5", config.optimizer == "adam"
    share = {"resnet18": 0.3, "lenet5": 1.0, "vgg19": 0.95}[config.model]
    parent = {"none": np.nan, "distort:1e-06": 0.05, "flip_sign": 2.0}[config.perturbation]
    return {
        "changed": share, "changed_1e3": share - 0.001, "changed_1e2": share - 0.004, "norm_start": 10.0,
        "distance_start": 4.0 if large and adam else 2.0, "norm_parent": 10.0, "distance_parent": 10 * parent,
        "top1": 95.0, "paired": 0.95, "r": 0.4 if large and adam else 0.2,
    }  # fmt: skip


def planted(change=lambda config: {}, seeds=(0,)):
    """The whole of `quick`, each run as in `slides` but for `change(config)`; a run that is changed to None is left out."""
    runs, snapshots, epochs, measured, arrays = [], [], [], [], {}
    for config in [*dynamics.grid("quick", seeds=seeds), *dynamics.retrainings("quick", seeds=seeds)]:
        changes = change(config)
        if changes is None:
            continue
        of = slides(config) | changes
        key = {"profile": "quick", "hash": config.hash}
        runs.append({**config.to_dict(), **key, "data_note": "exact"})
        snapshots.append(dict.fromkeys(COLUMNS, 1.0) | key | {"tensor": "all", "epoch": config.epochs, "size": 9} | of)
        names = {"model": config.model, "dataset": config.dataset, "seed": config.seed}
        epochs.append({**key, **names, "epoch": config.epochs, "train_top1": of["top1"]})
        shared = {
            **key,
            "test_top1": 50.0,
            "features": 3,
            "varying": 3,
            "paired": of["paired"],
            "matched": 1.0,
            "cka": 1.0,
        }
        measured += [{**shared, "when": when, "correlation": (of["r"] - 0.6) / 3} for when in ("start", "end")]
        if config.perturbation == "none":
            arrays[config.hash, "penultimate"] = features_of(of["r"])
    extra = {"snapshots": pd.DataFrame(snapshots), "features": pd.DataFrame(measured)}
    return archive.Tables(pd.DataFrame(runs), pd.DataFrame(columns=["hash"]), pd.DataFrame(epochs), extra, arrays)


def judged(*arguments, **settings):
    return dynamics.STUDY.verdicts(planted(*arguments, **settings)).set_index(["claim", "definition"]).sort_index()


def only(**settings):
    """Whether a run has these settings; `init` is the beginning of its own."""

    def chosen(config):
        return all(str(getattr(config, name)).startswith(str(value)) for name, value in settings.items())

    return chosen


def where(chosen, **changes):
    return lambda config: changes if chosen(config) else {}


def test_in_the_slides_world_all_claims_hold():
    table = judged()
    assert set(table["verdict"]) == {"holds"}
    assert table.groupby("claim").size().to_dict() == {"D1": 3, "D2a": 3, "D2b": 3, "D3": 1, "D4": 2, "D5": 1, "D6": 1}
    parts = dynamics.STUDY.details(planted()).query("profile == 'quick'")
    parts = parts.groupby(["claim", "definition"])["effect"].first()
    assert parts[["D3", "D4", "D5", "D6"]].tolist() == pytest.approx([2.0, 0.2, 0.2 / 3, 1.0, 2.0])


def test_shares_of_parameters_are_exact_and_one_training_refutes_them():
    """ResNet-18 changes at most 40% everywhere, LeNet 99.5% or more, VGG-19 90% or more."""
    one = only(model="resnet18", dataset="mnist", init="pretrained", optimizer="adam", perturbation="none")
    table = judged(where(one, changed=0.41, changed_1e3=0.39))
    assert table.loc["D1", ["verdict", "holds", "fails"]].to_numpy().tolist() == [
        ["fails", 17, 1], ["holds", 18, 0], ["holds", 18, 0]
    ]  # fmt: skip
    row = table.loc[("D1", "at all")]
    assert row[["closest", "effect", "spread"]].tolist() == ["resnet18 mnist: pretrained, Adam", 0.41, "exact"]
    assert row["low"] == row["high"] == 0.41
    seed = where(lambda c: one(c) and c.seed == 42, changed=0.9)
    row = judged(seed, seeds=(0, 42)).loc[("D1", "at all")]
    assert row[["verdict", "effect", "seeds"]].tolist() == ["fails", 0.9, 2]  # not the mean over seeds, 0.6
    for model, dataset, share, claim, word in (
        ("lenet5", "cifar10", 0.994, "D2a", "fails"), ("vgg19", "cifar10", 0.89, "D2b", "fails"), ("vgg19", "mnist", 0.89, "D2b", "holds")
    ):  # fmt: skip
        table = judged(where(only(model=model, dataset=dataset), changed_1e2=share))
        assert table.loc[claim, "verdict"].to_dict() == {"at all": "holds", "by 0.1%": "holds", "by 1%": word}


def test_d3_is_the_ratio_of_distances_over_the_norm_at_the_start_in_the_large_networks():
    row = judged(where(only(model="vgg19", optimizer="adam"), distance_start=8.0, norm_start=40.0)).loc[("D3", "-")]
    assert row[["verdict", "effect", "equal"]].tolist() == ["fails", pytest.approx(1.0), 3]
    row = judged(where(only(model="lenet5", optimizer="adam"), distance_start=0.1)).loc[("D3", "-")]
    assert row["verdict"] == "holds"


def test_d4_compares_pairs_of_one_start_that_are_trained_alike():
    """Where SGD has trained 11 points less, the pair says nothing; where all pairs have, the claim is not run."""
    sgd = only(model="resnet18", dataset="cifar10", optimizer="sgd")
    for top1, row in ((84.0, ["mean of positive r", 2, 0.2]), (85.0, ["mean of positive r", 3, (0.2 + 0.2 - 0.5) / 3])):
        one = where(lambda c: sgd(c) and c.init == "kaiming_normal", top1=top1, r=0.9)
        parts = (
            dynamics.STUDY.details(planted(one)).query("claim == 'D4' and profile == 'quick'").set_index("comparison")
        )
        first = parts.loc["resnet18 cifar10: Adam - SGD"].iloc[0]
        assert first[["definition", "seeds", "effect"]].tolist() == [*row[:2], pytest.approx(row[2])]
    table = judged(where(sgd, top1=84.0))
    assert set(table.loc["D4", "verdict"]) == {"not run"}
    reason = "no pair of trainings within 10 points of each other on some of its data sets"
    assert set(table.loc["D4", "reason"]) == {reason}
    assert table.loc[("D3", "-"), "verdict"] == "holds"


def test_d4_fails_where_adams_features_correlate_no_more_or_in_lenet_as_well():
    table = judged(where(only(model="vgg19", optimizer="adam"), r=0.22))
    assert table.loc["D4", "verdict"].tolist() == ["fails"] * 2
    assert table.loc["D4", "equal"].tolist() == [3, 3]
    table = judged(where(only(model="lenet5", optimizer="adam"), r=0.3))
    assert table.loc["D4", "verdict"].to_dict() == {"mean of positive r": "fails", "mean r": "holds"}  # 0.1 and 0.033


def test_mean_positive_is_the_mean_of_the_positive_correlations_between_features_that_vary():
    x = np.random.default_rng(3).normal(size=(20, 5))
    x[:, 2] = 4.0
    pairs = [np.corrcoef(x[:, i], x[:, j])[0, 1] for i in range(5) for j in range(i) if 2 not in (i, j)]
    assert len(pairs) == 6
    assert features.mean_positive(x) == pytest.approx(np.mean([r for r in pairs if r > 0]))
    assert features.mean_positive(features_of(0.4)) == pytest.approx(0.4)
    assert np.isnan(features.mean_positive(features_of(-0.1)))


def test_d5_is_the_share_of_retrainings_that_come_back_judged_by_its_mean():
    """A retraining comes back if it ends within twice the slides' largest distance and with features alike."""
    assert pytest.approx(2 * 1.3 / 23.43, abs=1e-12) == dynamics_claims.CLOSE
    distorted = only(perturbation="distort")
    for changes, share in (({"distance_parent": 1.10}, 1.0), ({"distance_parent": 1.12}, 0.0), ({"paired": 0.89}, 0.0)):
        row = judged(where(distorted, **changes)).loc[("D5", "-")]
        assert row[["effect", "verdict"]].tolist() == [pytest.approx(share), "holds" if share else "fails"]
    first = only(perturbation="distort", init="kaiming_normal")
    row = judged(where(first, paired=0.5)).loc[("D5", "-")]
    assert row[["closest", "effect"]].tolist() == ["mean of the cells", pytest.approx(2 / 3)]
    networks = where(only(perturbation="distort", model="vgg19"), paired=0.5)
    row = judged(networks).loc[("D5", "-")]  # 6 of 18 cells, where nothing comes back
    assert row[["verdict", "effect", "holds", "fails"]].tolist() == ["holds", pytest.approx(2 / 3), 12, 6]


def test_d6_is_the_distance_over_the_norm_after_a_sign_flip():
    flipped = only(perturbation="flip", model="vgg19", dataset="mnist")
    row = judged(where(flipped, distance_parent=14.0)).loc[("D6", "-")]
    assert row[["verdict", "effect", "holds", "fails"]].tolist() == ["fails", pytest.approx(1.4), 16, 2]


def test_what_has_hardly_learned_is_not_judged_nor_what_was_retrained_from_it():
    low = only(model="vgg19", dataset="cifar10")
    needed = {"D2b", "D3", "D4", "D5", "D6"}
    table = judged(where(low, top1=32.0))
    missing = table[table["verdict"] == "not run"]
    assert set(missing.index.get_level_values("claim")) == needed
    assert set(missing["reason"]) == {"hardly learned: vgg19 cifar10"}
    table = judged(where(lambda c: low(c) and c.perturbation == "none", top1=32.0))
    missing = table[table["verdict"] == "not run"]
    assert set(missing.index.get_level_values("claim")) == needed
    assert "some of its trainings are missing or have hardly learned" in set(missing["reason"])
    again = judged(where(lambda c: low(c) and c.perturbation != "none", top1=10.0))
    assert set(again["verdict"]) == {"holds"}


def test_a_half_trained_profile_does_not_take_the_place_of_a_whole_one():
    """Of the data sets and networks whose six trainings are not all there nothing is judged."""
    missing = only(model="lenet5", dataset="mnist", init="kaiming_normal", optimizer="sgd", perturbation="none")
    found = dynamics.figures.candidates(planted(lambda c: None if missing(c) else {}))
    trained = found.runs[found.runs["perturbation"] == "none"]
    assert len(trained) == 48
    assert not ((trained["model"] == "lenet5") & (trained["dataset"] == "mnist")).any()
    few = planted(lambda c: {} if missing(c) else None)
    assert set(dynamics.STUDY.verdicts(few)["verdict"]) == {"not run"}


def test_the_archives_scorecard_has_every_claim_once_per_definition_or_says_why_not(found):
    table = dynamics.STUDY.verdicts(found)
    sizes = {"D1": 3, "D2a": 3, "D2b": 3, "D3": 1, "D4": 2, "D5": 1, "D6": 1}
    assert table.groupby("claim").size().to_dict() == sizes
    assert ((table["verdict"] == "not run") == (table["reason"] != "")).all()
    parts = dynamics.STUDY.details(found)
    ends = dynamics.figures.endings(found).query(
        "model == 'lenet5' and dataset == 'cifar10' and init == 'kaiming_uniform' and optimizer == 'adam' and perturbation == 'none'"
    )
    label = "lenet5 cifar10: kaiming_uniform, Adam"
    row = parts[(parts["profile"] == "quick") & (parts["definition"] == "by 1%") & (parts["comparison"] == label)]
    assert row["effect"].item() == pytest.approx(ends["changed_1e2"].item())


def test_an_empty_archive_gives_claims_not_run(tmp_path):
    table = dynamics.STUDY.scorecard(tmp_path)
    assert set(table["verdict"]) == {"not run"}
    assert set(table["reason"]) == {"no runs at one profile for all of it"}


def test_captions_give_the_range_of_training_accuracies_and_count_who_is_not_judged(found):
    small, large, learned, copies = dynamics.figures.caption(found).split("\n")
    assert small.startswith(
        "LeNet-5: profile quick, width 64 of 64, 1,024 of 50,000 or 60,000 images, 20 epochs, 10 epochs of"
    )
    assert large.startswith("ResNet-18, VGG-19: profile quick, width 8 of 64")
    tops = "LeNet-5 SGD 76-100%, Adam 81-100%; ResNet-18 SGD 93-100%, Adam 100%;"
    assert learned.startswith(f"training top-1 at the end: {tops}")
    assert learned.endswith("; shown, not judged: 2 of 54 have hardly learned")
    assert copies.endswith("; Fashion-MNIST, MNIST: pixel-exact, original order")


def test_what_is_retrained_from_a_network_that_has_hardly_learned_goes_with_it_and_is_drawn_hollow(found):
    ends = dynamics.figures.endings(found)
    cell = dynamics.figures.CELL
    low = dynamics.figures.moved(ends).query("~learned")
    assert low[cell[:2]].drop_duplicates().to_numpy().tolist() == [["vgg19", "cifar10"], ["vgg19", "mnist"]]
    again = dynamics.figures.retrained(ends)
    for kind in ("flip_sign", "distort:1e-06"):
        kept = again[~again["learned"] & (again["perturbation"] == kind)]
        assert kept[cell].to_numpy().tolist() == low[cell].to_numpy().tolist()
    same = dynamics.figures.similarities(found).query("~learned")
    assert set(same["model"]) == {"vgg19"}
    table = dynamics.figures.labelled(again[again["perturbation"] == "flip_sign"])
    settings = {"x": "dataset", "y": "relative", "hue": "optimizer", "panel": "model", "ylabel": "y", "caption": "c"}
    figure = plotting_runs.points(table, **settings)
    dots = [[dots for dots in axes.collections if not len(dots.get_facecolor())] for axes in figure.axes]
    hollow = [sum(len(each.get_offsets()) for each in of_panel) for of_panel in dots]
    assert hollow == [0, 0, 2]

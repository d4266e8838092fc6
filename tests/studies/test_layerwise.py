"""Study 1: its runs are the paper's, its figures and claims are complete, its pictures show the numbers."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from rwclib import archive, claims, plotting
from rwclib.errors import ConfigError
from rwclib.runs.config import PROFILES
from rwclib.studies import captions, layerwise
from rwclib.studies.layerwise import claims as layerwise_claims
from rwclib.studies.layerwise import two_definitions
from rwclib.studies.study import learned

PUBLISHED = {  # verdicts of the figures' medians
    "fails": ["L15"],
    "holds": ["L1", "L3", "L5", "L6", "L10", "L11", "L12", "L14"],
    "unclear": ["L2", "L4", "L7", "L8", "L9", "L13", "L17"],
}


@pytest.fixture(scope="module")
def everything():
    return layerwise.STUDY.tables()


@pytest.fixture(scope="module")
def quick():
    return layerwise.STUDY.tables(profile="quick")


def test_the_paper_profile_is_the_papers():
    runs = [run for run in layerwise.runs("paper") if run.model == "resnet18"]
    assert len(runs) == 4 * 5
    for run in runs:
        grey = run.dataset in ("mnist", "fashion_mnist")
        assert (run.lr, run.momentum, run.weight_decay, run.batch_size) == (0.1, 0.9, 1e-4, 128)
        assert run.epochs == (20 if grey else 150)  # what the figures show; the text says 150 everywhere
        assert (run.width, run.n_train, run.n_test, run.image_size, run.optimizer) == (64, None, None, 32, "sgd")
        assert (run.crop_padding, run.flip, run.normalize) == ((0, True, "none") if grey else (4, True, "imagenet"))
    assert {run.seed for run in runs} == {0, 42, 123, 1000, 1234}


def test_profiles_are_of_the_promised_sizes():
    sizes = {profile: layerwise.runs(profile, models=["resnet18"]) for profile in PROFILES}
    assert [len(sizes[name]) for name in ("smoke", "quick", "reduced", "narrow", "paper")] == [4, 8, 12, 20, 20]
    assert all((run.width, run.n_train, run.epochs) == (8, 512, 2) for run in sizes["smoke"])
    assert all(run.width == 16 and run.n_train >= 2000 and run.epochs >= 8 for run in sizes["quick"])
    assert all((run.width, run.n_train, run.epochs) == (16, 10_000, 30) for run in sizes["reduced"])
    assert {run.seed for run in sizes["reduced"]} == {0, 42, 123}
    assert [replace(run, width=64) for run in sizes["narrow"]] == sizes["paper"]
    assert [run.seed for run in sizes["quick"]] == [0, 0, 0, 0, 42, 42, 42, 42]  # every data set its first seed first
    alexnet = {run.dataset: (run.width, run.epochs) for run in layerwise.runs("reduced", models=["alexnet"], seeds=[0])}
    assert alexnet == {"cifar10": (32, 60), "cifar100": (32, 60), "mnist": (16, 30), "fashion_mnist": (16, 30)}


HASHES = {
    ("quick", "resnet18", "cifar10", 0): "ac3aa1d3fcb7", ("reduced", "resnet18", "cifar100", 0): "3ace44d37e5c",
    ("quick", "vgg19_bn", "cifar10", 0): "231fb717bd9a", ("reduced", "vgg19_bn", "cifar10", 0): "d9534fac9ef1",
    ("quick", "alexnet", "mnist", 42): "5e672478dc84", ("reduced", "alexnet", "cifar10", 0): "f4aa4d535f3e",
}  # fmt: skip


def test_run_names_are_pinned_so_that_archived_runs_stay_theirs():
    assert {settings: layerwise.run_config(*settings).hash for settings in HASHES} == HASHES


@pytest.mark.parametrize("bad", [{"profile": "huge"}, {"models": ["resnet19"]}, {"datasets": ["x"]}])
def test_unknown_names_are_refused(bad):
    with pytest.raises(ConfigError, match="unknown"):
        layerwise.runs(**{"profile": "quick"} | bad)


def test_vgg_and_alexnet_have_table_1s_hyperparameters():
    runs = [run for run in layerwise.runs("paper") if run.model != "resnet18"]
    assert len(runs) == 2 * 4 * 5
    rates = {(run.model, run.dataset): (run.lr, run.weight_decay) for run in runs}
    assert {rates["vgg19_bn", dataset] for dataset in layerwise.DATASETS} == {(0.05, 5e-4)}
    assert [rates["alexnet", dataset][0] for dataset in layerwise.DATASETS] == [0.001, 0.01, 0.1, 0.1]
    assert {rates["alexnet", dataset][1] for dataset in layerwise.DATASETS} == {1e-4}
    for run in runs:
        twin = layerwise.run_config("paper", "resnet18", run.dataset, run.seed)
        assert run == replace(twin, model=run.model, lr=run.lr, weight_decay=run.weight_decay)


def test_all_twenty_figures_have_published_medians():
    published = layerwise.figures.published()
    for number, (model, dataset, groups) in layerwise.figures.FIGURES.items():
        rows = published[published["figure"] == number]
        assert (set(rows["group"]), set(rows["model"]), set(rows["dataset"])) == (set(groups), {model}, {dataset})
    assert sorted(layerwise.figures.FIGURES) == sorted(set(published["figure"])) == list(range(1, 21))
    last = published["dataset"].map(layerwise.figures.DRAWN).fillna(layerwise.figures.EPOCHS)
    assert (published["epochs"] == last).all()


# What the paper's sentences say, as changes of the groups; no world can have all: L17 contradicts L2 and L13.
WORLD = {
    ("resnet18", "cifar10"): (1, 2, 4, 4), ("resnet18", "cifar100"): (1, 2, 4, 8),
    ("resnet18", "mnist"): (1, 1, 4, 2), ("resnet18", "fashion_mnist"): (2, 2, 8, 4),
    ("vgg19_bn", "cifar10"): (1, 4, 2), ("vgg19_bn", "cifar100"): (2, 5, 6),
    ("vgg19_bn", "mnist"): (2, 4, 1), ("vgg19_bn", "fashion_mnist"): (4, 8, 2),
    ("alexnet", "cifar10"): (1, 4, 2), ("alexnet", "cifar100"): (1, 2, 4),
    ("alexnet", "mnist"): (1, 2, 4), ("alexnet", "fashion_mnist"): (1, 2, 4),
}  # fmt: skip


def planted(world=WORLD, profile="quick", hardly=(), miss=0.0):
    """Runs of two seeds whose groups change as `world` says, 10 times as much in the first epoch and elementwise.

    The (model, data set) in `hardly` train to 25% alone; test accuracies exceed the published by `miss`.
    """
    layers, epochs = [], []
    for (model, dataset), changes in world.items():
        for seed in (0, 42):
            names = {"profile": profile, "model": model, "dataset": dataset, "seed": seed}
            run = names | {"hash": f"{model}{dataset}{seed}"}
            layers += [
                {**run, "group": group, "epoch": epoch, "rwc": value, "rwc_elementwise": 10 * value}
                for group, change in zip(layerwise_claims.GROUPS[model], changes, strict=True)
                for epoch, value in ((1, 10 * change), (2, change), (3, change))
            ]
            top1 = 25.0 if (model, dataset) in hardly else 90.0
            test = layerwise.NETWORKS[model]["top1"][dataset] + miss
            epochs.append({**run, "epoch": 3, "train_top1": top1, "test_top1": test})
    runs = pd.DataFrame(epochs)[["profile", "model", "dataset", "seed", "hash"]].assign(data_note="exact")
    return archive.Tables(runs, pd.DataFrame(layers), pd.DataFrame(epochs))


def of_eq_1(found):
    return layerwise.STUDY.verdicts(found, metrics={"rwc": "Eq. 1"}).set_index("claim")


def test_the_seventeen_claims_compare_groups_that_the_networks_have():
    assert [claim.id for claim in layerwise_claims.CLAIMS] == [f"L{i}" for i in range(1, 18)]
    for claim in layerwise_claims.CLAIMS:
        for cell in (cell for part in claim.comparisons for cell in part.cells):
            groups = {
                group
                for model, _, names in layerwise.figures.FIGURES.values()
                if model == cell.model
                for group in names
            }
            assert cell.group in (groups if cell.quantity == "change" else {"test top-1"})
        assert {dataset for _, dataset in claim.runs} <= set(layerwise.DATASETS)
    assert {claim.id: len(claim.comparisons) for claim in layerwise_claims.CLAIMS} == {
        "L1": 2, "L2": 2, "L3": 3, "L4": 5, "L5": 3, "L6": 7, "L7": 3, "L8": 3, "L9": 3, "L10": 4, "L11": 2, "L12": 2, "L13": 4,
        "L14": 12, "L15": 7, "L16": 12, "L17": 6,
    }  # fmt: skip
    assert [claim.id for claim in layerwise_claims.CLAIMS if claim.in_general] == ["L6", "L14"]


def test_a_groups_value_is_the_log_of_its_median_over_layers_and_drawn_epochs_infinities_in_the_ranks():
    found, epochs = planted(), np.tile(np.arange(1, 31), 2)
    rows = pd.DataFrame({"epoch": epochs, "layer": np.repeat(["a", "b"], 30), "rwc": epochs + 0.0})
    rows["rwc_elementwise"] = rows["rwc"].where(rows["epoch"] < 12, np.inf)
    one = {"profile": "quick", "model": "alexnet", "group": "late", "seed": 0}
    tables = [rows.assign(**one, dataset="mnist"), rows.assign(**one, dataset="cifar10")]
    tables.append(tables[0].assign(group="head"))
    values = layerwise_claims.values(replace(found, layers=pd.concat(tables))).query("quantity == 'change'")
    values = values.set_index(["dataset", "definition"])["value"]
    assert len(values) == 4
    assert np.exp(values["mnist", "Eq. 1"]) == pytest.approx(11)  # epochs 2 to 20
    assert np.exp(values["mnist", "elementwise"]) == pytest.approx(11)
    assert np.exp(values["cifar10", "Eq. 1"]) == pytest.approx(16)  # 2 to 30
    assert values["cifar10", "elementwise"] == np.inf
    means = layerwise_claims.values(replace(found, layers=tables[0]), statistic="mean").set_index("definition")["value"]
    assert np.exp(means["elementwise"]) == pytest.approx(np.arange(2, 12).mean())


def test_medians_that_are_infinite_say_nothing_of_each_other():
    found = planted()
    infinite = found.layers["group"].isin(["block1", "block2"])
    found.layers["rwc_elementwise"] = found.layers["rwc_elementwise"].where(~infinite, np.inf)
    table = layerwise.STUDY.verdicts(found, ["resnet18"]).query("definition == 'elementwise'").set_index("claim")
    assert table.loc[["L1", "L6"], "verdict"].tolist() == ["unclear"] * 2
    assert table.loc["L5", "not run"] == 0


def test_in_the_papers_world_all_claims_hold_but_l17_which_contradicts_l2_and_l13():
    table = layerwise.STUDY.verdicts(planted())
    judged = table[~table["claim"].isin(["L16", "L17"])]
    assert len(judged) == 2 * 15
    assert set(judged["verdict"]) == {"holds"}
    parts = layerwise.STUDY.details(planted()).query("claim == 'L17' and profile == 'quick' and definition == 'Eq. 1'")
    assert parts.loc[parts["verdict"] != "holds", ["comparison", "verdict"]].to_numpy().tolist() == [
        ["resnet18 cifar10: block3 / block4", "equal"], ["alexnet mnist: middle / late", "fails"]
    ]  # fmt: skip
    assert table.loc[table["claim"] == "L17", "verdict"].tolist() == ["fails"] * 2
    other = of_eq_1(planted(WORLD | {("resnet18", "cifar10"): (1, 2, 4, 2), ("alexnet", "mnist"): (1, 4, 2)}))
    assert set(other.index[other["verdict"] == "fails"]) == {"L2", "L13"}
    assert other.loc["L17", "verdict"] == "holds"


@pytest.mark.parametrize(
    ("changes", "fails"),
    [
        ({("resnet18", "cifar10"): (1, 1, 4, 4)}, {"L1", "L17"}),  # equal blocks refute a claimed difference
        ({("resnet18", "cifar10"): (1, 2, 4, 4), ("resnet18", "cifar100"): (1, 2, 4, 4)}, {"L2", "L3", "L15", "L17"}),
        ({("resnet18", "mnist"): (1, 2, 4, 2)}, {"L4", "L17"}),  # block2 not below block4
        ({("resnet18", "mnist"): (1, 1, 4, 0.5)}, {"L4", "L17"}),
        ({("resnet18", "fashion_mnist"): (2, 2, 8, 8)}, {"L5", "L17"}),
        ({("vgg19_bn", "cifar10"): (2, 4, 1)}, {"L7", "L8", "L17"}),
        ({("vgg19_bn", "cifar100"): (2, 6, 6)}, {"L15", "L17"}),
        ({("vgg19_bn", "cifar100"): (2, 5, 25)}, {"L9", "L17"}),  # farther from 1 than on CIFAR-10
        ({("vgg19_bn", "mnist"): (1, 4, 2)}, {"L10", "L17"}),
        ({("alexnet", "cifar10"): (1, 2, 4)}, {"L11", "L17"}),
        ({("alexnet", "cifar100"): (1, 4, 2)}, {"L12", "L15", "L17"}),
        ({("alexnet", "fashion_mnist"): (2, 1, 4)}, {"L13", "L17"}),
    ],
)  # fmt: skip
def test_each_claim_fails_where_its_own_groups_say_otherwise(changes, fails):
    table = of_eq_1(planted(WORLD | changes))
    assert set(table.index[table["verdict"] == "fails"]) == fails


def test_what_is_said_in_general_is_judged_by_the_mean_of_the_cells():
    """A data set or a network that goes the other way does not refute it; most of them do."""
    table = of_eq_1(planted(WORLD | {("vgg19_bn", "fashion_mnist"): (1, 2, 0.5), ("alexnet", "cifar10"): (4, 2, 1)}))
    assert table.loc[["L6", "L14"], ["verdict", "closest"]].to_numpy().tolist() == [["holds", "mean of the cells"]] * 2
    assert table.loc["L6", ["holds", "fails"]].tolist() == [4, 3]
    assert table.loc["L6", "effect"] == pytest.approx((2 * 2 * 2 * 2 / 2 / 2 / 2) ** (1 / 7))
    turned = {pair: changes if pair[0] == "alexnet" else changes[::-1] for pair, changes in WORLD.items()}
    table = of_eq_1(planted(turned))
    assert table.loc["L14", ["verdict", "holds"]].tolist() == ["fails", 6]


def test_alexnet_at_25_percent_has_hardly_learned_and_what_needs_it_is_not_run():
    pair = ("alexnet", "cifar10")
    table = of_eq_1(planted(hardly=[pair]))
    missing = table[table["verdict"] == "not run"].drop("L16")
    assert {claim.id for claim in layerwise_claims.CLAIMS if pair in claim.runs} == {"L11", "L14", "L16", "L17"}
    assert set(missing.index) == {"L11", "L14"}  # one comparison that fails refutes L17 all the same
    assert set(missing["reason"]) == {"hardly learned: alexnet cifar10"}
    assert set(missing["profile"]) == {"-"}
    assert set(of_eq_1(planted(hardly=list(WORLD)))["verdict"]) == {"not run"}


def test_accuracies_are_judged_at_the_published_size_alone():
    for profile, miss, verdict in (("paper", 1.0, "holds"), ("paper", -3.0, "fails"), ("reduced", 0.0, "not run")):
        row = of_eq_1(planted(profile=profile, miss=miss)).loc["L16"]
        assert row["verdict"] == verdict
        assert row["reason"] == ("" if verdict != "not run" else "needs the paper profile")
        assert verdict == "not run" or row["effect"] == pytest.approx(miss)


def test_the_published_medians_are_judged_with_their_reading_error_and_refute_a_conclusion():
    parts = two_definitions.published_details().set_index(["claim", "comparison"])
    assert parts.loc[("L14", "vgg19_bn mnist: late / early"), "effect"] == pytest.approx(0.555 / 0.994)
    fails = parts[parts["verdict"] == "fails"]  # not all decide: L14 is judged by its mean
    assert list(fails.index) == [
        ("L14", "vgg19_bn mnist: late / early"), ("L14", "vgg19_bn fashion_mnist: late / early"),
        ("L15", "vgg19_bn cifar100: late / middle"),
    ]  # fmt: skip
    half = np.log(parts["high"] / parts["effect"])
    assert half.loc["L1"].to_numpy() == pytest.approx(0.1 * np.sqrt(2), rel=1e-3)  # two medians, each read to about 10%
    verdicts = claims.verdicts(parts.reset_index()).groupby("verdict")["claim"].agg(list).to_dict()
    assert verdicts == PUBLISHED


def test_the_archives_scorecard_has_every_claim_once_per_definition_and_profile_that_judges_it(everything):
    table = layerwise.STUDY.verdicts(everything)
    assert not table.duplicated(["claim", "definition", "profile"]).any()
    assert table["claim"].unique().tolist() == [f"L{i}" for i in range(1, 18)]
    assert (table.groupby("claim")["definition"].agg(set) == {"Eq. 1", "elementwise"}).drop("L16").all()
    low = learned(everything)[1]
    for row in table.itertuples():
        needed = next(claim.runs for claim in layerwise_claims.CLAIMS if claim.id == row.claim)
        assert (row.verdict == "not run") == bool(row.reason)
        if row.claim == "L16":
            assert row.reason == "needs the paper profile"
        elif row.verdict == "not run":
            pairs = [" ".join(run[1:]) for run in sorted(low) if run[0] == "reduced" and run[1:] in needed]
            assert row.reason == f"hardly learned: {', '.join(pairs)}"
        else:
            assert row.low <= row.effect <= row.high
            assert len(row.data) == len({dataset for _, dataset in needed})
    assert set(table["profile"]) == {"paper", "narrow", "reduced", "quick", "-"}


def test_one_profile_can_be_asked_for(everything):
    quick = layerwise.STUDY.verdicts(everything, profile="quick")
    assert len(quick) == 2 * 16 + 1
    assert set(quick["profile"]) == {"quick", "-"}
    best = layerwise.STUDY.verdicts(everything).query("profile == 'quick'")
    same = best.merge(quick, on=["claim", "definition", "effect"])
    assert len(same) == len(best) > 10


def test_a_run_that_has_hardly_learned_is_not_judged_its_other_seed_is(quick):
    low = (quick.epochs["model"] == "resnet18") & (quick.epochs["dataset"] == "cifar10") & (quick.epochs["seed"] == 0)
    tables = replace(quick, epochs=quick.epochs.assign(train_top1=quick.epochs["train_top1"].mask(low, 32.4)))
    kept, bad = learned(tables)
    assert ("quick", "resnet18", "cifar10") in bad
    assert kept.runs.query("model == 'resnet18' and dataset == 'cifar10'")["seed"].tolist() == [42]
    table = layerwise.STUDY.verdicts(tables, ["resnet18"])
    assert table.query("claim == 'L1'")["seeds"].tolist() == [1, 1]


def test_the_committed_archive_is_sound_and_holds_what_the_notebook_shows(quick):
    results = archive.default_results()
    assert archive.verify(results) == []
    assert len(quick.runs) == 3 * 4 * 2
    seeds = layerwise.STUDY.tables(results, "reduced").runs.groupby(["model", "dataset"])["seed"].agg(set)
    assert len(seeds) == 3 * 4
    assert all(found >= {0, 42} for found in seeds)
    assert not (quick.runs["data_note"] == "unknown").any()


def test_an_empty_archive_gives_empty_tables_and_no_error(tmp_path):
    tables = layerwise.STUDY.tables(tmp_path)
    assert tables.layers.empty
    assert list(layerwise.figures.draw(tables, "resnet18", "cifar10", tmp_path, "x")) == []
    assert set(layerwise.STUDY.scorecard(tmp_path)["verdict"]) == {"not run"}
    assert set(layerwise.figures.group_medians(tables, "resnet18")["source"]) == {"published"}
    assert captions.runs_shown(tables, "resnet18").empty


def test_a_diverged_run_enters_no_figure(tmp_path, quick):
    from rwclib import training
    from rwclib.errors import DivergedError

    config = layerwise.run_config("smoke", "resnet18", "fashion_mnist_sample", 0)
    provenance = {"n_train": 1, "device": "cpu", "train_and_test_seconds": 1.0}
    record = {"status": "diverged", "provenance": provenance, "diverged": {"epoch": 1, "train_loss": "nan"}}
    archive.write(tmp_path, config, record, quick.layers.head(3), quick.epochs.head(3))
    with pytest.raises(DivergedError):
        training.run(config, results=tmp_path)
    assert layerwise.STUDY.tables(tmp_path, "smoke", datasets=["fashion_mnist_sample"]).layers.empty


def test_figure_numbers_are_those_of_the_archived_tables(quick):
    numbers = layerwise.figures.figure_table(quick.layers, 7).set_index(["definition", "group"])
    rows = quick.layers.query("model == 'resnet18' and dataset == 'mnist' and group == 'block2' and epoch > 1")
    assert numbers.loc[("Eq. 1", "block2"), "mean"] == pytest.approx(rows["rwc"].mean())
    assert numbers.loc[("elementwise", "block2"), "median"] == pytest.approx(rows["rwc_elementwise"].median())
    assert numbers.loc[("elementwise", "block2"), "published_median"] == 0.713
    assert np.isnan(numbers.loc[("Eq. 1", "block2"), "published_median"])


def test_infinite_values_count_in_the_ranks_of_medians_and_not_in_means(quick):
    layers = quick.layers
    rows = layers.query("model == 'resnet18' and dataset == 'mnist' and group == 'block2' and epoch > 1").index
    least = layers.loc[rows, "rwc"].nsmallest(len(rows) // 2 + 1).index
    planted = layers.assign(rwc=layers["rwc"].mask(layers.index.isin(least[:-1]), np.inf))
    row = layerwise.figures.figure_table(planted, 7).set_index(["definition", "group"]).loc[("Eq. 1", "block2")]
    assert row["infinite"] == len(rows) // 2
    assert row["median"] == planted.loc[rows, "rwc"].median() > layers.loc[rows, "rwc"].median()
    assert np.isfinite(row["mean"])
    assert row["p90"] == np.inf


def test_figures_draw_a_line_per_layer_and_carry_an_honest_caption(tmp_path, quick):
    drawn = list(layerwise.figures.draw(quick, "resnet18", "cifar10", tmp_path, "x"))
    assert [number for number, _, _ in drawn] == [1, 2, 3]
    assert {path.name for path in tmp_path.iterdir()} == {
        f"x_fig{n:02d}_cifar10_block{n}_block{n + 1}.{kind}" for n in (1, 2, 3) for kind in ("png", "pdf")
    }
    figure = drawn[0][1]
    size, learned, copy = figure.get_supxlabel().split("\n")
    assert size == "profile quick: width 16 of 64, 2,048 of 50,000 images, 8 epochs (published: 150), fp32, seeds 0, 42"
    assert learned == "training top-1 38%; band: range over seeds"
    assert copy.startswith("data copy: pixel-exact but for 109")
    left, right = figure.axes
    assert sum(line.get_linewidth() == 0.6 for line in left.lines) == 4 + 5
    assert "Eq. 1" in left.get_ylabel()
    assert [line.get_ydata()[0] for line in right.lines if line.get_linestyle() == "--"] == [1.335, 1.606]
    layer = quick.layers.query("model == 'resnet18' and dataset == 'cifar10' and layer == 'layer1.0.conv1.weight'")
    of_seeds = layer.pivot(index="seed", columns="epoch", values="rwc")
    np.testing.assert_allclose(left.lines[0].get_ydata(), np.exp(np.log(of_seeds).mean()))
    block = quick.layers.query("model == 'resnet18' and dataset == 'cifar10' and group == 'block1'")
    medians = block.pivot_table("rwc", "seed", "epoch", "median")
    thick = next(line for line in left.lines if line.get_label() == "block1 median")
    np.testing.assert_allclose(thick.get_ydata(), np.exp(np.log(medians).mean()))


def test_figures_end_with_the_published_ones_and_say_so(tmp_path, quick):
    later = {"layers": quick.layers.assign(epoch=quick.layers["epoch"] * 4), "runs": quick.runs.assign(epochs=32)}
    shift = replace(quick, **later)
    lengths = {"mnist": "the first 20 of 32 epochs (published: 20 of 150)", "cifar10": "32 epochs (published: 150)"}
    for dataset, last in (("mnist", 20), ("cifar10", 32)):
        _, figure, numbers = next(layerwise.figures.draw(shift, "resnet18", dataset, tmp_path, "x"))
        assert max(line.get_xdata().max() for line in figure.axes[0].lines if line.get_linewidth() == 0.6) == last
        assert lengths[dataset] in figure.get_supxlabel()
        rows = shift.layers.query("dataset == @dataset and group == 'block1' and epoch <= @last and epoch > 1")
        assert numbers["mean"].iloc[0] == pytest.approx(rows["rwc"].mean())


def test_vgg_and_alexnet_figures_show_three_groups(tmp_path, quick):
    for model, number, lines in (("vgg19_bn", 13, 16), ("alexnet", 17, 5)):
        (found, figure, numbers), *rest = layerwise.figures.draw(quick, model, "cifar10", tmp_path, "x")
        assert (found, rest) == (number, [])
        assert sum(line.get_linewidth() == 0.6 for line in figure.axes[0].lines) == lines
        assert numbers["group"].tolist() == ["early", "middle", "late"] * 2


def test_the_same_numbers_give_the_same_files(tmp_path, quick):
    for folder in ("a", "b"):
        list(layerwise.figures.draw(quick, "resnet18", "mnist", tmp_path / folder, "x"))
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_accuracies_stand_beside_the_published_ones(everything):
    table = layerwise.figures.accuracy_table(everything.epochs).set_index(["model", "dataset", "profile"])
    row = table.loc[("resnet18", "cifar10", "quick")]
    assert row["published"] == 91
    last = everything.epochs.query("model == 'resnet18' and dataset == 'cifar10' and profile == 'quick' and epoch == 8")
    assert row["test_top1"] == pytest.approx(last["test_top1"].mean())
    assert row["miss"] == pytest.approx(last["test_top1"].mean() - 91)
    assert row["seeds"] == len(last) == 2
    assert ("resnet18", "cifar10", "reduced") in table.index
    empty = layerwise.STUDY.tables(profile="paper", datasets=["svhn"]).epochs
    none = layerwise.figures.accuracy_table(empty, ["alexnet"])
    assert none["profile"].tolist() == ["not run"] * 4
    assert none["published"].tolist() == [81, 53, 98.5, 89.5]


def test_a_data_set_that_cannot_be_had_is_named_and_left_out(tmp_path, monkeypatch, capsys):
    def no_network(*arguments, **options):
        raise OSError("network is unreachable")

    monkeypatch.setenv("RWC_DATA_DIR", str(tmp_path / "none"))
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    options = {"results": tmp_path / "results", "retrain": True, "device": "cpu", "jobs": 1}
    tables, datasets = layerwise.STUDY.prepare("smoke", ["resnet18"], datasets=["mnist", "svhn"], **options)
    out = capsys.readouterr().out
    assert datasets == ["fashion_mnist_sample"]
    assert "not run: data set mnist could not be fetched" in out
    assert "not run: data set svhn could not be fetched" in out
    assert "training on the bundled Fashion-MNIST sample" in out
    assert set(tables.layers["dataset"]) == {"fashion_mnist_sample"}
    drawn = layerwise.figures.draw(tables, "resnet18", datasets[0], tmp_path, "x")
    assert [number for number, _, _ in drawn] == [10, 11, 12]


def test_group_medians_are_drawn_on_a_log_axis_with_the_published_ones(quick):
    medians = layerwise.figures.group_medians(quick, "resnet18")
    figure = plotting.group_medians(medians, title="t", caption="c")
    tops = [
        "CIFAR-10\n{}38%",
        "CIFAR-100\n{}9%\nshown, not judged:\nhas hardly learned",
        "MNIST\n{}96%",
        "Fashion-MNIST\n{}86%",
    ]
    assert [axes.get_title() for axes in figure.axes] == [top.format("training top-1 ") for top in tops]
    rows = quick.layers.query("model == 'resnet18' and dataset == 'mnist' and group == 'block3' and seed == 42")
    value = medians.query("dataset == 'mnist' and group == 'block3' and seed == 42 and source == 'Eq. 1'")["value"]
    assert value.item() == rows.query("1 < epoch <= 20")["rwc"].median()
    assert all(axes.get_yscale() == "log" for axes in figure.axes)
    table = medians.pivot_table("value", ["dataset", "source"], "group", lambda seeds: np.exp(np.log(seeds).mean()))
    for axes, dataset in zip(figure.axes, layerwise.DATASETS, strict=True):
        lines = [line for line in axes.lines if line.get_linestyle() != "None"]  # the others carry the error bars
        for line, source in zip(lines, ("Eq. 1", "elementwise", "published"), strict=True):
            np.testing.assert_allclose(line.get_ydata().astype(float), table.loc[(dataset, source)])
    assert set(medians["source"]) == {"Eq. 1", "elementwise", "published"}
    groups = layerwise.figures.group_medians(quick, "alexnet")["group"].unique()
    assert groups.tolist() == ["early", "middle", "late"]


def test_the_overviews_caption_says_how_far_the_runs_are_from_the_published_ones(quick):
    caption = layerwise.figures.overview_caption(quick, "resnet18")
    _, colour, grey, copies = caption.split("\n")
    size = "quick, width 16 of 64, 2,048 of {} images, 8 epochs (published: {})"
    assert colour == f"CIFAR-10, CIFAR-100: {size.format('50,000', '150')}, seeds 0, 42"
    assert grey.startswith(f"MNIST, Fashion-MNIST: {size.format('60,000', '20 of 150')}")
    assert copies.startswith("data copies: CIFAR-10: pixel-exact but for 109 of 60,000 images")


def test_it_is_said_which_runs_are_shown_but_not_judged():
    last = pd.DataFrame({"dataset": ["cifar10"] * 3, "train_top1": [32.4, 32.6, 99.0]})  # the line is at 32.5%
    assert captions.progress(last) == "training top-1 55%; shown, not judged: 1 of 3 has hardly learned"
    assert captions.progress(last[1:]) == "training top-1 66%"
    assert captions.progress(last[:1], "low") == "training top-1 low; shown, not judged: has hardly learned"
    runs = pd.DataFrame({"dataset": ["cifar10", "mnist"], "width": 64, "images": [50_000, 60_000]})
    assert captions.size(runs) == "width 64 of 64, all 50,000 or 60,000 images"

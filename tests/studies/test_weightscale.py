"""Study 2: its runs, clustered curves, tables and claims, on the archive and on planted tables."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import timm

from rwclib import archive, models
from rwclib.errors import ConfigError
from rwclib.runs.config import PROFILES
from rwclib.studies import weightscale
from rwclib.studies.captions import ACCURACIES
from rwclib.studies.study import learned, load
from rwclib.studies.weightscale import NETWORKS, STUDY, audit, figures
from rwclib.tracker import weight_tensors


@pytest.fixture(scope="module")
def quick():
    return STUDY.tables(profile="quick")


def test_runs_have_the_papers_settings():
    runs = weightscale.grid("paper", seeds=[0])
    assert len(runs) == 3 * 3
    for run in runs:
        assert (run.optimizer, run.lr, run.weight_decay, run.epochs, run.width) == ("adam", 1e-3, 0.0, 25, 64)
        assert (run.image_size, run.batch_size) == ((224, 32) if run.model == "efficientnet_b4" else (32, 128))
        assert (run.n_train, run.n_test) == (None, None)
    assert {run.model for run in runs} == {"resnet34", "resnet50", "efficientnet_b4"}


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_has_a_pair_of_resolutions_and_no_run_twice(profile):
    small, large = weightscale.resolutions(profile)
    assert {(run.model, run.dataset, run.seed) for run in (small, large)} == {("efficientnet_b4", "cifar10", 0)}
    assert small.image_size == 32 < large.image_size
    hashes = [run.hash for run in weightscale.runs(profile)]
    assert len(set(hashes)) == len(hashes)
    assert {small.hash, large.hash} <= set(hashes)
    assert weightscale.resolutions(profile, models=["resnet34"]) == []


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="unknown model 'alexnet' in study weightscale"):
        weightscale.runs("quick", models=["alexnet"])
    with pytest.raises(ConfigError, match="unknown profile"):
        weightscale.runs("huge")


@pytest.mark.parametrize(
    ("name", "width", "parameters", "groups"),
    [
        ("resnet34", 64, 21_282_122, {"stem": 1, "block1": 6, "block2": 9, "block3": 13, "block4": 7, "head": 1}),
        ("resnet50", 64, 23_520_842, {"stem": 1, "block1": 10, "block2": 13, "block3": 19, "block4": 10, "head": 1}),
        ("efficientnet_b4", 64, 17_566_546, {"DW": 32, "PW": 32, "PWL": 30, "SE": 64, "stem": 1, "head": 2}),
        ("efficientnet_b4", 8, 170_412, {"DW": 16, "PW": 16, "PWL": 15, "SE": 32, "stem": 1, "head": 2}),
    ],
)
def test_networks_have_the_layers_of_each_group(name, width, parameters, groups):
    network = models.build(name, num_classes=10, width=width)
    assert sum(p.numel() for p in network.parameters()) == parameters
    names = pd.Series([models.get(name).group(layer) for layer in weight_tensors(network)])
    assert names.value_counts().to_dict() == groups


def test_efficientnet_is_timms_without_drop_path():
    timms = timm.create_model("tf_efficientnet_b4", num_classes=10)
    assert str(models.build("efficientnet_b4", num_classes=10)) == str(timms)


def test_a_pair_of_resolutions_counts_only_where_both_runs_are():
    rows = planted("efficientnet_b4").assign(group="DW", layer="blocks.0.0.conv_dw.weight", depth=1)
    pair = [rows.assign(profile="quick", hash=name, rwc=value) for name, value in (("a", 1.0), ("b", 2.0))]
    layers = pd.concat([*pair, rows.assign(profile="reduced", hash="c")])
    runs = pd.DataFrame({"hash": ["a", "b", "c"], "image_size": [32, 64, 32]})
    table = audit.resolution_table(archive.Tables(runs, layers, pd.DataFrame()))
    assert table.values.tolist() == [["quick", "blocks.0.0.conv_dw.weight", 0, 1.0, 2.0]]
    assert audit.resolution_table(archive.Tables(runs, pair[0], pd.DataFrame())).empty


def test_a_layer_that_is_all_zero_is_left_out_of_the_curves():
    table = planted()
    table.loc[table["layer"] == "layer7", "rwc"] = np.nan
    assert len(figures.curves(table, "all", "rwc")) == 19


def planted(model="resnet34", dataset="cifar10", layers=20, seeds=(0,), profile="quick"):
    """Runs whose change doubles in the second half, with a stem, a head and one spike under the elementwise definition."""
    rows = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        for depth in range(layers + 2):
            group = "stem" if depth == 0 else "head" if depth == layers + 1 else f"block{1 + 4 * (depth - 1) // layers}"
            for epoch in range(1, 11):
                value = (1 if depth <= layers // 2 else 2) * (1 + 0.01 * rng.standard_normal())
                spike = 100.0 if depth == 5 and epoch in (3, 4, 5) else 1.0
                rows.append((seed, depth + 1, f"layer{depth}", group, epoch, value, 10 * value * spike))
    table = pd.DataFrame(rows, columns=["seed", "depth", "layer", "group", "epoch", "rwc", "rwc_elementwise"])
    return table.assign(model=model, dataset=dataset, profile=profile)


def test_panels_leave_out_first_and_last_layer_and_number_clusters_from_the_least_change():
    tables = archive.Tables(pd.DataFrame(), planted(), pd.DataFrame())
    one, elementwise = figures.panels(tables, ["resnet34"], ["cifar10"])
    assert len(one.curves) == 20
    assert (one.definition, elementwise.definition) == ("Eq. 1", "elementwise")
    means = [one.curves[one.labels == label].to_numpy().mean() for label in range(one.k)]
    assert means == sorted(means)
    table = figures.figure_table([one, elementwise])
    assert table.groupby("definition")["layers"].sum().to_dict() == {"Eq. 1": 20, "elementwise": 20}
    assert "layer5" in table.loc[table["definition"] == "elementwise", "names"].iloc[-1]


def resnets(dataset, change, spike=1.0, models=weightscale.RESNETS, seeds=(0, 42)):
    """Runs whose layer at each depth from 2 to 21 (five to a block) changes by `change(depth)`.

    `spike`: by how much more layer5 changes in three epochs, elementwise.
    """
    table = pd.concat([planted(model, dataset, seeds=seeds) for model in models], ignore_index=True)
    table["rwc"] = table["depth"].map(change) * (1 + 0.001 * (table["epoch"] + table["seed"] / 42) % 3)
    spikes = (table["layer"] == "layer5") & table["epoch"].isin([3, 4, 5])
    return table.assign(rwc_elementwise=10 * table["rwc"] * np.where(spikes, spike, 1.0))


def rising(depth):
    """Slowly, so that no cluster of layers stands out."""
    return 1 + 0.001 * depth


def efficientnets(dataset, primitive, changes, seeds=(0, 42)):
    """Runs whose layers of one primitive change by `changes`, in order of depth; those of the other between by 1."""
    rows = []
    for seed, (depth, change), group in itertools.product(seeds, enumerate(changes), ("DW", "PW")):
        value = change if group == primitive else 1.0
        layer = f"blocks.{depth}.{group}"
        rows += [(seed, depth, layer, group, epoch, 9 * value if epoch == 1 else value) for epoch in (1, 2, 3)]
    table = pd.DataFrame(rows, columns=["seed", "depth", "layer", "group", "epoch", "rwc"])
    return table.assign(rwc_elementwise=10 * table["rwc"], model="efficientnet_b4", dataset=dataset, profile="quick")


def archived(*parts, top1=95.0, miss=0.0, profile="quick"):
    """Tables of these runs: training top-1 `top1`, or accuracies that exceed the published by `miss`."""
    layers = pd.concat(parts, ignore_index=True).assign(profile=profile)
    layers["hash"] = layers["model"] + layers["dataset"] + layers["seed"].astype(str)
    keys = ["profile", "model", "dataset", "seed", "hash"]
    runs = layers[keys].drop_duplicates(ignore_index=True).assign(data_note="exact")
    published = [NETWORKS[model]["accuracy"][on] for model, on in zip(runs["model"], runs["dataset"], strict=True)]
    epochs = runs.assign(epoch=10).join(pd.DataFrame(published, columns=ACCURACIES) + miss)
    return archive.Tables(runs, layers, epochs if miss else epochs.assign(train_top1=top1))


def judged(*parts, **settings):
    """Verdicts by claim and definition of what these runs are enough for."""
    table = STUDY.verdicts(archived(*parts, **settings)).set_index(["claim", "definition"])
    return table[table["verdict"] != "not run"]


def test_change_that_falls_with_depth_on_cifar_10_and_rises_on_cifar_100_makes_w1_and_w2_hold():
    falls, rises = (lambda depth: 1 - 0.01 * depth), (lambda depth: 1 + 0.01 * depth)
    table = judged(resnets("cifar10", falls), resnets("cifar100", rises))
    assert table.loc[["W1", "W2"], "verdict"].tolist() == ["holds"] * 4
    assert table.loc["W1", "effect"].to_numpy() == pytest.approx(-1)
    table = judged(resnets("cifar10", rises), resnets("cifar100", rises))
    assert table.loc[["W1", "W2"], "verdict"].tolist() == ["fails"] * 4
    assert table.loc["W2", ["holds", "fails"]].to_numpy().tolist() == [[2, 2]] * 2


def test_w3_is_the_share_of_blocks_3_and_4_in_one_cluster_and_their_ratio():
    """Blocks 3 and 4 are the layers of depth 12 to 21."""

    def parts(change):
        table = STUDY.details(archived(resnets("svhn", change))).query("profile == 'quick'")
        rows = table[(table["claim"] == "W3") & table["comparison"].str.startswith("resnet34")]
        return rows[rows["definition"] == "Eq. 1"][["effect", "verdict"]].to_numpy().tolist()

    early = {**dict.fromkeys(range(1, 7), 5.0), **dict.fromkeys(range(7, 12), 9.0), 22: 9.0}
    assert parts(lambda depth: early.get(depth, 1.0)) == [[1.0, "holds"], [pytest.approx(1.0), "holds"]]
    two_apart = early | {20: 9.0, 21: 9.0}  # the median of block 4 stays where it is
    assert parts(lambda depth: two_apart.get(depth, 1.0)) == [[0.8, "fails"], [pytest.approx(1.0, rel=0.01), "holds"]]
    block_4 = early | dict.fromkeys(range(17, 22), 5.0)
    assert parts(lambda depth: block_4.get(depth, 1.0)) == [[0.5, "fails"], [pytest.approx(5.0, rel=0.01), "fails"]]


@pytest.mark.parametrize(
    ("claim", "dataset", "primitive", "changes", "effect", "verdict"),
    [
        ("W4", "cifar10", "DW", (4, 4, 4, 2, 2, 2, 9, 1, 1), 2.0, "holds"),  # medians of thirds: 4, 2, 1
        ("W4", "cifar10", "DW", (4, 4, 4, 1, 1, 1, 2, 2, 2), 0.5, "fails"),
        ("W4", "cifar10", "DW", (4, 4, 4, 2, 2, 2, 2, 2, 2), 1.0, "fails"),
        ("W5", "cifar100", "PW", (1, 1, 1, 9, 9, 9, 1.6, 1.6, 1.6), 1.6, "holds"),
        ("W5", "cifar100", "PW", (1, 1, 1, 9, 9, 9, 1.4, 1.4, 1.4), 1.4, "fails"),
        ("W6", "svhn", "DW", (3, 3, 3, 3, 3, 3, 3, 1, 2), 2.0, "holds"),
        ("W6", "svhn", "DW", (1, 1, 1, 1, 1, 1, 1, 3, 3), 1 / 3, "fails"),
    ],
)  # fmt: skip
def test_efficientnets_claims_are_about_thirds_by_depth_and_the_last_two_layers(
    claim, dataset, primitive, changes, effect, verdict
):
    table = judged(efficientnets(dataset, primitive, changes))
    assert set(table.index) == {(claim, "Eq. 1"), (claim, "elementwise")}
    assert set(table["verdict"]) == {verdict}
    assert table["effect"].to_numpy() == pytest.approx(effect)


def test_a_spike_under_one_definition_only_meets_w7_there_and_not_under_the_other():
    table = judged(*(resnets(dataset, rising, spike=50.0) for dataset in ("cifar10", "cifar100"))).loc["W7"]
    assert table.loc["elementwise", "verdict"] == "holds"
    assert table.loc["Eq. 1", ["verdict", "equal"]].tolist() == ["fails", 4]
    assert table.loc[["elementwise", "Eq. 1"], "effect"].to_numpy() == pytest.approx([50, 1], rel=0.01)


def test_a_seed_without_outlier_clusters_says_nothing_on_w7():
    """Nor do its other layers, though they all rise to twice their median: the effect is that of the other seed."""
    parts = []
    for dataset in ("cifar10", "cifar100"):
        calm = resnets(dataset, rising, models=["resnet34"], seeds=(42,))
        calm.loc[calm["epoch"] == 7, ["rwc", "rwc_elementwise"]] *= 2
        parts += [resnets(dataset, rising, spike=50.0, models=["resnet34"], seeds=(0,)), calm]
    rows = STUDY.details(archived(*parts), ["resnet34"])
    rows = rows.query("claim == 'W7' and profile == 'quick' and definition == 'elementwise'")
    assert rows["seeds"].tolist() == [1, 1]
    assert rows["effect"].to_numpy() == pytest.approx(50, rel=0.01)


def test_outlier_clusters_are_small_and_move_more_than_the_average_layer():
    layers = figures.spiking(planted(), "cifar10")
    assert layers["spiking"] == ["layer5"]
    assert set(layers["other"]) == {f"layer{i}" for i in range(1, 21) if i != 5}
    calm = planted()
    calm.loc[calm["layer"] == "layer5", "rwc_elementwise"] = 1e-3  # an outlier that moves less
    assert figures.spiking(calm, "cifar10")["spiking"] == []


@pytest.mark.parametrize(
    ("profile", "miss", "verdict", "reason"),
    [("paper", 1.5, "holds", ""), ("paper", -2.5, "fails", ""), ("reduced", 1.5, "not run", "needs the paper profile")],
)
def test_accuracies_are_judged_at_the_published_size_alone(profile, miss, verdict, reason):
    pairs = itertools.product(NETWORKS, weightscale.DATASETS)
    every = [efficientnets(dataset, "DW", [1.0]).assign(model=model) for model, dataset in pairs]
    tables = archived(*every, miss=miss, profile=profile)
    (row,) = STUDY.verdicts(replace(tables, layers=tables.layers.iloc[:0])).query("claim == 'W8'").to_dict("records")
    assert (row["verdict"], row["reason"]) == (verdict, reason)


def test_networks_that_have_hardly_learned_are_not_judged():
    table = STUDY.verdicts(archived(resnets("cifar10", lambda depth: depth), top1=32.0)).set_index("claim")
    assert set(table["verdict"]) == {"not run"}
    assert set(table.loc["W1", "reason"]) == {"hardly learned: resnet34 cifar10, resnet50 cifar10"}
    assert set(table.loc["W3", "reason"]) == {"no runs at one profile for all of it"}
    one = STUDY.verdicts(archived(resnets("cifar10", lambda depth: depth), top1=33.0)).set_index("claim")
    assert set(one.loc["W1", "verdict"]) == {"fails"}


def test_trends_are_rank_correlations_over_the_layers_of_a_group():
    table = planted()
    table = table.assign(rwc=table["depth"] + 0.001 * table["epoch"], rwc_elementwise=-1.0 * table["depth"])
    row = figures.trends(table).iloc[0]
    assert row[["layers", "Eq. 1", "elementwise"]].tolist() == pytest.approx([20, 1.0, -1.0])


def test_the_archive_holds_the_quick_runs_and_they_can_be_judged(quick):
    pairs = set(quick.runs[["model", "dataset"]].itertuples(index=False, name=None))
    assert pairs == set(itertools.product(NETWORKS, weightscale.DATASETS))
    assert (quick.epochs.groupby("hash")["epoch"].max() == 25).all()
    assert not (quick.runs["data_note"] == "unknown").any()


def test_the_archives_scorecard_has_every_claim_once_per_definition_and_profile_that_judges_it():
    tables = STUDY.tables()
    table = STUDY.verdicts(tables)
    assert not table.duplicated(["claim", "definition", "profile"]).any()
    assert table["claim"].unique().tolist() == [f"W{i}" for i in range(1, 9)]
    assert (table.groupby("claim")["definition"].agg(set) == {"Eq. 1", "elementwise"}).drop("W8").all()
    assert ((table["verdict"] == "not run") == (table["reason"] != "")).all()
    hardly = {f"{model} {dataset}" for _, model, dataset in learned(tables)[1]}
    for reason in table.loc[table["reason"].str.startswith("hardly learned: "), "reason"]:
        assert set(reason.partition(": ")[2].split(", ")) <= hardly


def test_an_empty_archive_gives_claims_not_run(tmp_path):
    assert STUDY.scorecard(tmp_path)["verdict"].tolist() == ["not run"] * (2 * 7 + 1)


def test_accuracies_stand_beside_the_published():
    epochs = STUDY.tables().epochs
    table = figures.accuracy_table(epochs[epochs["dataset"] != "svhn"]).set_index(["model", "dataset"])
    assert set(table.index) == set(itertools.product(NETWORKS, weightscale.DATASETS))
    assert table.loc[("resnet50", "svhn"), ["profile", "test_top1"]].tolist() == ["not run", "- (94.5)"]


def test_depthwise_layers_deep_in_the_network_move_less_at_32_pixels_than_at_a_larger_size():
    table = audit.resolution_table(load(weightscale.resolutions))
    small, large = table.filter(regex="px$")
    ratio = table[small] / table[large]
    assert ratio[table["stage"] >= 4].median() < 0.7 < ratio[table["stage"] < 3].median()


def test_captions_say_how_deep_the_network_is_and_how_far_it_has_learned(quick):
    _, efficient, copy = figures.caption(quick, ["efficientnet_b4"], "cifar10").split("\n")
    assert efficient == (
        "EfficientNet-B4, half as deep (16 of 32 depthwise layers), profile quick: width 8 of 64, 2,048 of 50,000 images, "
        "25 epochs (published: 25), fp32, seed 0; training top-1 21%; shown, not judged: has hardly learned"
    )
    assert copy.startswith("data copy: pixel-exact")
    resnet = figures.caption(quick, ["resnet34"], "cifar10")
    assert "deep" not in resnet
    assert resnet.split("\n")[1].endswith("; training top-1 56%")
    half = quick.layers.query("model == 'efficientnet_b4' and group == 'DW'")
    whole = pd.concat([half, half.assign(layer=half["layer"] + "b")])
    assert figures.depth_words(whole) == figures.depth_words(quick.layers.query("model == 'resnet34'")) == ""


def test_the_pairs_caption_gives_both_accuracies():
    pair = load(weightscale.resolutions, profile="quick")
    text = audit.resolution_caption(pair, audit.resolution_table(pair))
    start = "CIFAR-10, EfficientNet-B4, half as deep (16 of 32 depthwise layers), profile quick: width 8 of 64"
    assert text.startswith(start)
    assert "6 epochs (published: 25)" in text
    assert "training top-1 13% (32 px), 19% (64 px); shown, not judged: has hardly learned\n" in text

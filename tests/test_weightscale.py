"""Study 2: its runs, clustered curves, tables and claims, on the archive and on planted tables."""

import numpy as np
import pandas as pd
import pytest

from rwclib import archive, models
from rwclib.config import PROFILES
from rwclib.errors import ConfigError
from rwclib.studies import base, weightscale, weightscale_claims
from rwclib.tracker import weight_tensors


def test_runs_have_the_papers_settings():
    runs = weightscale.grid("paper", seeds=[0])
    assert len(runs) == 3 * 3
    for run in runs:
        assert (run.optimizer, run.lr, run.weight_decay, run.epochs, run.width) == ("adam", 1e-3, 0.0, 25, 64)
        efficient = run.model == "efficientnet_b4"
        assert (run.image_size, run.batch_size) == ((224, 32) if efficient else (32, 128))
        assert (run.n_train, run.n_test) == (None, None)
    assert {run.model for run in runs} == {"resnet34", "resnet50", "efficientnet_b4"}


def test_every_profile_has_a_pair_of_resolutions_and_no_run_twice():
    for profile in PROFILES:
        pair = weightscale.resolutions(profile)
        assert len(pair) == 2
        assert {(run.model, run.dataset, run.seed) for run in pair} == {("efficientnet_b4", "cifar10", 0)}
        small, large = (run.image_size for run in pair)
        assert small == 32 < large
        runs = weightscale.runs(profile)
        assert len({run.hash for run in runs}) == len(runs)
        assert set(pair) <= set(runs)
    assert weightscale.resolutions("quick", models=["resnet34"]) == []


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
    assert (
        pd.Series([models.get(name).group(layer) for layer in weight_tensors(network)]).value_counts().to_dict()
        == groups
    )


def test_efficientnet_is_timms_without_drop_path():
    import timm

    ours, timms = (
        models.build("efficientnet_b4", num_classes=10),
        timm.create_model("tf_efficientnet_b4", num_classes=10),
    )
    assert str(ours) == str(timms)


def test_a_pair_of_resolutions_counts_only_where_both_runs_are():
    rows = planted("efficientnet_b4").assign(group="DW", layer="blocks.0.0.conv_dw.weight", depth=1)
    pair = [rows.assign(profile="quick", hash=name, rwc=value) for name, value in (("a", 1.0), ("b", 2.0))]
    layers = pd.concat([*pair, rows.assign(profile="reduced", hash="c")])
    runs = pd.DataFrame({"hash": ["a", "b", "c"], "image_size": [32, 64, 32]})
    table = weightscale.resolution_table(archive.Tables(runs, layers, pd.DataFrame()))
    assert table.values.tolist() == [["quick", "blocks.0.0.conv_dw.weight", 0, 1.0, 2.0]]
    assert weightscale.resolution_table(archive.Tables(runs, pair[0], pd.DataFrame())).empty


def test_a_layer_that_is_all_zero_is_left_out_of_the_curves():
    table = planted()
    table.loc[table["layer"] == "layer7", "rwc"] = np.nan
    assert len(weightscale.curves(table, "all", "rwc")) == 19


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
    found = archive.Tables(pd.DataFrame(), planted(), pd.DataFrame())
    one, elementwise = weightscale.panels(found, "resnet34", "cifar10")
    assert len(one.curves) == 20
    assert (one.definition, elementwise.definition) == ("Eq. 1", "elementwise")
    means = [one.curves[one.labels == label].to_numpy().mean() for label in range(one.k)]
    assert means == sorted(means)
    table = weightscale.figure_table([one, elementwise])
    assert table.groupby("definition")["layers"].sum().to_dict() == {"Eq. 1": 20, "elementwise": 20}
    assert "layer5" in table.loc[table["definition"] == "elementwise", "names"].iloc[-1]


def test_outlier_clusters_and_their_surroundings_become_groups():
    found = weightscale_claims.spiking(planted())
    assert set(found.loc[found["group"] == "spiking", "layer"]) == {"layer5"}
    assert set(found.loc[found["group"] == "surrounding", "layer"]) == {f"layer{i}" for i in (2, 3, 4, 6, 7, 8)}
    assert weightscale_claims.spiking(planted(model="efficientnet_b4")).empty


def test_a_spike_under_one_definition_only_fails_the_claim_under_the_other():
    parts = [
        planted(model, dataset, seeds=(0, 1)) for model in weightscale.RESNETS for dataset in ("cifar10", "cifar100")
    ]
    layers = pd.concat(parts, ignore_index=True)
    keys = ["model", "dataset", "seed", "profile", "epoch"]
    epochs = layers[keys].drop_duplicates().assign(train_top1=90.0, hash="x")
    epochs["hash"] = epochs["model"] + epochs["dataset"] + epochs["seed"].astype(str)
    layers = layers.merge(epochs[[*keys, "hash"]])
    runs = epochs.drop_duplicates("hash").assign(data_note="exact")
    table = weightscale_claims.verdicts(archive.Tables(runs, layers, epochs), models=weightscale.RESNETS)
    table = table.set_index(["claim", "definition"])["verdict"]
    assert table["W7", "elementwise"] == "holds"
    assert table["W7", "Eq. 1"] != "holds"
    assert table["W1", "Eq. 1"] == "fails"  # later layers move twice as much
    assert table["W2", "Eq. 1"] == "fails"  # on both data sets
    assert table["W3", "Eq. 1"] == "not run"
    assert table["W8", "-"] == "not run"


def test_trends_are_rank_correlations_over_the_layers_of_a_group():
    table = planted()
    table = table.assign(rwc=table["depth"] + 0.001 * table["epoch"], rwc_elementwise=-1.0 * table["depth"])
    found = weightscale.trends(table).iloc[0]
    assert found["layers"] == 20
    assert (found["Eq. 1"], found["elementwise"]) == pytest.approx((1.0, -1.0))


def test_the_archive_holds_the_quick_runs_and_they_can_be_judged():
    found = weightscale.tables(profile="quick")
    pairs = set(zip(found.runs["model"], found.runs["dataset"], strict=True))
    assert pairs == {(model, dataset) for model in weightscale.MODELS for dataset in ("cifar10", "cifar100")}
    assert (found.epochs.groupby("hash")["epoch"].max() == 25).all()
    assert not (found.runs["data_note"] == "unknown").any()
    table = weightscale_claims.verdicts(found)
    assert table["claim"].unique().tolist() == [f"W{i}" for i in range(1, 9)]
    missing = table[table["verdict"] == "not run"]
    assert set(missing["claim"]) == {"W3", "W6", "W8"}  # SVHN, and accuracies
    assert (missing["reason"] != "").all()


def test_accuracies_stand_beside_the_published():
    table = weightscale.accuracy_table(weightscale.tables().epochs)
    assert set(zip(table["model"], table["dataset"], strict=True)) == {
        (model, dataset) for model in weightscale.MODELS for dataset in weightscale.DATASETS
    }
    row = table[(table["model"] == "resnet50") & (table["dataset"] == "svhn")].iloc[0]
    assert (row["profile"], row["test_top1"]) == ("not run", "- (94.5)")


def test_depthwise_layers_deep_in_the_network_move_less_at_32_pixels_than_at_a_larger_size():
    table = weightscale.resolution_table(base.load(weightscale.resolutions))
    small, large = [name for name in table.columns if name.endswith("px")]
    ratio = table[small] / table[large]
    assert ratio[table["stage"] >= 4].median() < 0.7 < ratio[table["stage"] < 3].median()


def test_captions_say_how_deep_the_network_is_and_how_far_it_has_learned():
    found = weightscale.tables(profile="quick")
    _, efficient, copy = weightscale.caption(found, ["efficientnet_b4"], "cifar10").split("\n")
    assert efficient == (
        "EfficientNet-B4, half as deep (16 of 32 depthwise layers), profile quick: width 8 of 64, 2,048 of 50,000 images, "
        "25 epochs (published: 25), fp32, seed 0; training top-1 21%; shown, not judged: has hardly learned"
    )
    assert copy.startswith("data copy: pixel-exact")
    resnet = weightscale.caption(found, ["resnet34"], "cifar10")
    assert "deep" not in resnet
    assert resnet.split("\n")[1].endswith("; training top-1 56%")
    full = found.layers.query("model == 'efficientnet_b4' and group == 'DW'")
    twice = pd.concat([full, full.assign(layer=full["layer"] + "b")])
    assert weightscale._depth(twice) == weightscale._depth(found.layers.query("model == 'resnet34'")) == ""


def test_the_pairs_caption_gives_both_accuracies():
    pair = base.load(weightscale.resolutions, profile="quick")
    text = weightscale.resolution_caption(pair, weightscale.resolution_table(pair))
    assert text.startswith(
        "CIFAR-10, EfficientNet-B4, half as deep (16 of 32 depthwise layers), profile quick: width 8 of 64"
    )
    assert "6 epochs (published: 25)" in text
    assert "training top-1 13% (32 px), 19% (64 px); shown, not judged: has hardly learned\n" in text

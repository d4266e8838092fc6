"""Verdicts on planted data: what holds, fails, is unclear or not run, and why."""

import numpy as np
import pandas as pd
import pytest

from rwclib import claims, scorecards
from rwclib.claims import Claim, rising
from rwclib.comparisons import Accuracy, Comparison, Group, Nearer


def planted(means, *, seeds=3, noise=0.0, layers=4, epochs=4, dataset="d", profile="quick", stream=1):
    """Layers whose mean RWC is what `means` says by group; elementwise is ten times that, reversed in order."""
    rng, rows = np.random.default_rng(stream), []
    reverse = dict(zip(means, reversed(means.values()), strict=True))
    for seed in range(seeds):
        for group, mean in means.items():
            for layer in range(layers):
                for epoch in range(1, epochs + 1):
                    factor = np.exp(noise * rng.normal()) * (100 if epoch == 1 else 1)
                    rows.append(
                        (
                            "m",
                            dataset,
                            profile,
                            seed,
                            group,
                            f"{group}.{layer}",
                            epoch,
                            mean * factor,
                            10 * reverse[group] * factor,
                        )
                    )
    return pd.DataFrame(
        rows, columns=["model", "dataset", "profile", "seed", "group", "layer", "epoch", "rwc", "rwc_elementwise"]
    )


CLAIM = rising("X1", "a < b < c", "m", "d", "a", "b", "c")


NO_EPOCHS = pd.DataFrame(columns=["model", "dataset", "profile", "seed", "epoch", "test_top1"])


def verdicts(table, claim=CLAIM, epochs=NO_EPOCHS):
    return claims.scorecard(claims.details(table, epochs, [claim], ["quick", "paper"])).set_index("definition")


def test_the_effect_is_the_ratio_of_means_after_the_first_epoch():
    row = claims.compare(planted({"a": 1.0, "b": 1.5}), Comparison(Group("m", "d", "b"), Group("m", "d", "a")), "rwc")
    assert row["effect"] == pytest.approx(1.5)
    assert (row["low"], row["high"]) == pytest.approx((1.5, 1.5))


def test_a_claim_holds_under_one_definition_and_fails_under_the_other():
    table = verdicts(planted({"a": 1.0, "b": 1.5, "c": 3.0}, noise=0.01))
    assert table["verdict"].to_dict() == {"Eq. 1": "holds", "elementwise": "fails"}


def test_the_weakest_comparison_speaks_for_the_claim():
    assert verdicts(planted({"a": 1.0, "b": 1.2, "c": 3.0})).loc["Eq. 1", "weakest"] == "b / a"
    assert verdicts(planted({"a": 1.0, "b": 4.0, "c": 3.0})).loc["Eq. 1", "weakest"] == "c / b"


def test_noise_that_swamps_the_effect_is_unclear():
    table = verdicts(planted({"a": 1.0, "b": 1.02, "c": 1.04}, noise=1.0, layers=2))
    assert table.loc["Eq. 1", "verdict"] == "unclear"
    assert table.loc["Eq. 1", "low"] < 1 < table.loc["Eq. 1", "high"]


def test_similarity_holds_inside_its_band_and_fails_outside():
    similar = Claim("X2", "a like b", (Comparison(Group("m", "d", "b"), Group("m", "d", "a"), 0.9, 1.1),))
    assert verdicts(planted({"a": 1.0, "b": 1.05}), similar).loc["Eq. 1", "verdict"] == "holds"
    assert verdicts(planted({"a": 1.0, "b": 1.3}), similar).loc["Eq. 1", "verdict"] == "fails"
    assert verdicts(planted({"a": 1.0, "b": 0.7}), similar).loc["Eq. 1", "verdict"] == "fails"


def test_one_seed_is_resampled_over_layers_and_says_so():
    one, three = (verdicts(planted({"a": 1.0, "b": 2.0, "c": 4.0}, seeds=n, noise=0.1)) for n in (1, 3))
    assert one.loc["Eq. 1", ["seeds", "resampled"]].tolist() == [1, "layers"]
    assert three.loc["Eq. 1", ["seeds", "resampled"]].tolist() == [3, "seeds"]
    assert one.loc["Eq. 1", "low"] < one.loc["Eq. 1", "effect"] < one.loc["Eq. 1", "high"]


def test_a_missing_group_or_run_is_not_run():
    table = verdicts(planted({"a": 1.0, "b": 2.0}))
    assert set(table["verdict"]) == {"not run"}
    assert set(verdicts(planted({"a": 1.0, "b": 2.0, "c": 3.0}, dataset="other"))["verdict"]) == {"not run"}


def test_a_claim_is_judged_on_the_most_telling_profile_that_has_all_its_runs():
    both = [planted({"a": 1.0, "b": 2.0, "c": 3.0}), planted({"a": 3.0, "b": 2.0, "c": 1.0}, profile="paper")]
    assert verdicts(pd.concat(both)).loc["Eq. 1", ["profile", "verdict"]].tolist() == ["paper", "fails"]
    across = Claim("X3", "d below e", (Comparison(Group("m", "e", "a"), Group("m", "d", "a")),))
    table = pd.concat([*both, planted({"a": 2.0}, dataset="e")])
    assert verdicts(table, across).loc["Eq. 1", ["profile", "weakest"]].tolist() == [
        "quick",
        "e / d, a",
    ]  # `paper` lacks data set e


def test_infinite_values_are_left_out_of_the_means():
    table = planted({"a": 1.0, "b": 1.5, "c": 3.0})
    table.loc[(table["group"] == "b") & (table["epoch"] == 3), "rwc"] = np.inf
    assert verdicts(table).loc["Eq. 1", "effect"] == pytest.approx(1.5)


def test_a_layer_that_is_always_infinite_is_left_out_and_the_others_speak():
    table = planted({"a": 1.0, "b": 1.5, "c": 3.0})
    table.loc[table["layer"] == "b.0", "rwc"] = np.inf
    assert verdicts(table).loc["Eq. 1", "effect"] == pytest.approx(1.5)


def nearer(a, b, c, d, **settings):
    """Verdict of `a / b` on set d nearer to 1 than `c / d` on set e."""
    table = pd.concat(
        [planted({"a": a, "b": b}, **settings), planted({"a": c, "b": d}, dataset="e", stream=2, **settings)]
    )
    part = Nearer(Group("m", "d", "a"), Group("m", "d", "b"), c=Group("m", "e", "a"), d=Group("m", "e", "b"))
    return verdicts(table, Claim("X4", "nearer", (part,))).loc["Eq. 1"]


def test_nearer_to_one_is_measured_on_both_sides_of_one():
    row = nearer(1.1, 1.0, 1.0, 2.0)
    assert row["verdict"] == "holds"
    assert row["effect"] == pytest.approx(2.0 / 1.1)
    assert row["weakest"] == "a / b nearer to 1 than on e"
    assert nearer(3.0, 1.0, 1.0, 2.0)["verdict"] == "fails"
    assert nearer(1.0, 3.0, 2.0, 1.0, seeds=1)["verdict"] == "fails"
    assert nearer(1.5, 1.0, 1.5, 1.0, noise=0.3, layers=2, seeds=1)["verdict"] == "unclear"


def accuracies(*misses, profile="paper"):
    rows = [
        ("m", "d", profile, seed, epoch, 90 + miss + (epoch - 3))
        for seed, miss in enumerate(misses)
        for epoch in (3, 1, 2)
    ]
    return pd.DataFrame(rows, columns=NO_EPOCHS.columns)


def accuracy_row(*misses, profile="paper"):
    claim = Claim("X5", "accuracy", (Accuracy("m", "d", 90.0),), profile="paper")
    epochs = accuracies(*misses, profile=profile)
    return verdicts(planted({"a": 1.0}, profile=profile), claim, epochs).loc["-"]


def test_accuracies_are_judged_in_points_after_the_last_epoch_and_on_both_sides():
    row = accuracy_row(0.5, -0.5, 1.5)
    assert row[["verdict", "unit", "seeds", "resampled"]].tolist() == ["holds", "points", 3, "seeds"]
    assert row["effect"] == pytest.approx(0.5)
    assert accuracy_row(-4.0, -3.0)["verdict"] == "fails"
    assert accuracy_row(3.0, 4.0)["verdict"] == "fails"
    assert accuracy_row(0.0, -4.0, 0.0)["verdict"] == "unclear"
    one = accuracy_row(-1.0)
    assert one[["verdict", "resampled", "effect"]].tolist() == ["unclear", "-", -1.0]
    assert np.isnan(one["low"])


def test_a_claim_of_one_profile_is_not_run_at_another():
    assert accuracy_row(0.0, profile="quick")["verdict"] == "not run"


def test_a_claim_about_several_networks_can_be_cut_down_to_one():
    claim = Claim("X6", "two", tuple(Comparison(Group(m, "d", "a"), Group(m, "d", "b")) for m in ("m", "n")))
    assert [len(c.comparisons) for c in claims.about([claim, CLAIM], ["n"])] == [1]
    assert claims.about([claim], ["m", "n"]) == [claim]
    assert [claim.label(part) for part in claim.comparisons] == ["m: a / b", "n: a / b"]


def test_one_seed_and_a_group_of_one_layer_leave_nothing_to_draw_from():
    row = verdicts(planted({"a": 1.0, "b": 2.0, "c": 4.0}, seeds=1, layers=1)).loc["Eq. 1"]
    assert row[["verdict", "resampled", "effect"]].tolist() == ["unclear", "-", 2.0]


def mixed(b, c, noisy):
    """a = 1; the layers of group `noisy` scatter by a factor of about 4, so that one seed leaves it unclear."""
    table = planted({"a": 1.0, "b": b, "c": c}, seeds=1, noise=0.01)
    scatter = table["layer"].map(lambda layer: 4.0 ** (int(layer[-1]) % 2 * 2 - 1) if layer[0] == noisy else 1.0)
    return verdicts(table.assign(rwc=table["rwc"] * scatter)).loc["Eq. 1"]


def test_the_comparison_shown_has_the_claims_verdict():
    row = mixed(0.9, 0.4, "c")  # b / a fails narrowly, c / b is far below 1 but scatters
    assert row[["verdict", "weakest", "holds", "unclear", "fails"]].tolist() == ["fails", "b / a", 0, 1, 1]
    row = mixed(1.03, 1.6, "c")  # b / a holds narrowly, c / b is unclear
    assert row[["verdict", "weakest", "holds", "unclear", "fails"]].tolist() == ["unclear", "c / b", 1, 1, 0]


def test_published_medians_are_judged_with_their_reading_errors_in_quadrature():
    def judge(a, b, low=1.0, high=np.inf):
        part = Comparison(Group("m", "d", "b"), Group("m", "d", "a"), low, high)
        return claims.of_medians(part, {Group("m", "d", "a"): a, Group("m", "d", "b"): b})

    assert judge(1.0, 1.5) == (pytest.approx(1.5), "holds")
    assert judge(1.0, 1.16) == (pytest.approx(1.16), "holds")
    assert judge(1.0, 1.14)[1] == "unclear"
    assert judge(1.5, 1.0)[1] == "fails"
    assert judge(1.0, 1.0, 0.9, 1.1)[1] == "unclear"  # the error is wider than the band
    assert np.isnan(claims.of_medians(CLAIM.comparisons[0], {})[0])
    assert claims.of_medians(Accuracy("m", "d", 90.0), {})[1] == "-"


def test_intervals_are_called_what_they_are():
    assert scorecards.interval_text(2, "seeds") == "range of 2 seeds"
    assert scorecards.interval_text(5, "seeds") == "95%, over 5 seeds"
    assert scorecards.interval_text(1, "layers") == "95%, over layers of 1 seed"
    assert scorecards.interval_text(1, "-") == "none (1 seed)"


@pytest.mark.parametrize("seeds", [2, 3])
def test_the_interval_of_two_or_three_seeds_is_their_range(seeds):
    row = verdicts(planted({"a": 1.0, "b": 2.0, "c": 4.0}, seeds=seeds, noise=0.2)).loc["Eq. 1"]
    table = planted({"a": 1.0, "b": 2.0, "c": 4.0}, seeds=seeds, noise=0.2).query("epoch > 1")
    means = table.groupby(["seed", "group"])["rwc"].mean().unstack()
    upper, lower = row["weakest"].split(" / ")
    ratios = means[upper] / means[lower]
    assert (row["low"], row["high"]) == pytest.approx((ratios.min(), ratios.max()))


def test_tables_print_points_and_ratios_and_name_each_data_copy_once():
    rows = pd.concat(
        [
            verdicts(planted({"a": 1.0, "b": 1.5, "c": 3.0})).reset_index(),
            accuracy_row(0.5, -0.5).to_frame().T.assign(definition="-"),
        ]
    )
    rows = rows.assign(
        text="t",
        reason="",
        train_top1=[(50.0, 90.4)] * 2 + [(50.0, 50.4)],
        data=[["D: exact"], ["D: exact"], ["E: a copy"]],
    )
    for text in (scorecards.to_text(rows), scorecards.to_markdown(rows)):
        assert "1.50 [1.50, 1.50]" in text
        assert "+0.00 [-0.50, +0.50] points" in text
        assert text.count("D: exact") == 1
        assert "50-90%" in text
        assert "50%" in text


def test_a_tally_names_each_claim_once_under_its_verdict():
    verdict = ["holds", "fails", "holds", "fails", "unclear", "not run"]
    table = pd.DataFrame(
        {
            "claim": ["L1", "L1", "L2", "L2", "D3", "D4"],
            "definition": ["a", "b", "a", "b", "-", "-"],
            "verdict": verdict,
        }
    )
    assert scorecards.tallies(table) == [
        "a: 2 hold (L1, L2)",
        "b: 2 fail (L1, L2)",
        "finding: 1 unclear (D3), 1 not run (D4)",
    ]


def test_thirds_of_a_group_are_by_depth_and_every_layer_lies_in_one():
    table = planted({"a": 1.0}, layers=8)
    depth = {layer: i for i, layer in enumerate(sorted(table["layer"].unique()))}
    table = table.assign(depth=table["layer"].map(depth), rwc=table["layer"].map(depth) + 1.0)
    groups = {third: Group("m", "d", "a", third) for third in ("early", "middle", "late")}
    found = claims.compare(table, Comparison(groups["late"], groups["early"]), "rwc")
    assert found["effect"] == pytest.approx(np.mean([7, 8]) / np.mean([1, 2, 3]))
    found = claims.compare(table, Comparison(groups["middle"], groups["early"]), "rwc")
    assert found["effect"] == pytest.approx(5 / 2)
    claim = Claim("T", "t", (Comparison(groups["late"], groups["early"]),))
    assert claim.label(claim.comparisons[0]) == "late a / early a"


def test_accuracies_of_every_kind_can_be_claimed():
    epochs = pd.DataFrame({"model": "m", "dataset": "d", "seed": [0, 0, 1, 1], "epoch": [1, 2, 1, 2],
                           "train_top5": [10.0, 99.0, 20.0, 97.0]})  # fmt: skip
    found = claims.compare_accuracy(epochs, Accuracy("m", "d", 99.0, kind="train_top5"))
    assert found["effect"] == pytest.approx(-1.0)
    assert found["verdict"] == "unclear"  # one of the seeds is exactly 2 points away
    assert Accuracy("m", "d", 99.0, kind="train_top5").label == "train top-5 - published"

"""Verdicts on planted data: what holds, fails, is unclear or not run, and why."""

import numpy as np
import pandas as pd
import pytest

from rwclib import claims
from rwclib.claims import Claim, Comparison, Group, rising


def planted(means, *, seeds=3, noise=0.0, layers=4, epochs=4, dataset="d", profile="quick"):
    """Layers whose mean RWC is what `means` says by group; elementwise is ten times that, reversed in order."""
    rng, rows = np.random.default_rng(1), []
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


def verdicts(table, claim=CLAIM):
    return claims.scorecard(table, [claim], ["quick", "paper"]).set_index("definition")


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
    assert verdicts(table, across).loc["Eq. 1", ["profile", "weakest"]].tolist() == ["quick", "e / d, a"]


def test_infinite_values_are_left_out_of_the_means():
    table = planted({"a": 1.0, "b": 1.5, "c": 3.0})
    table.loc[(table["group"] == "b") & (table["epoch"] == 3), "rwc"] = np.inf
    assert verdicts(table).loc["Eq. 1", "effect"] == pytest.approx(1.5)

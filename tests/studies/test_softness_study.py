"""Study 4: its sessions, its tables against the archived runs, and its claims on planted scores."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage, stats

from rwclib import RunConfig, archive, claims, data, models, softness
from rwclib.analysis import plotting_runs
from rwclib.errors import ConfigError
from rwclib.runs.config import PROFILES
from rwclib.runs.recording import GRID, LEVELS
from rwclib.studies import softness as study
from rwclib.studies.softness import claims as softness_claims
from tests.conftest import ROOT

RESULTS = ROOT / "data" / "results"
LENGTHS = [length for length, count in study.DESIGN.items() for _ in range(count)]


@pytest.fixture(scope="module")
def found():
    return study.STUDY.tables(RESULTS, "reduced")


@pytest.fixture(scope="module")
def parts(found):
    return study.STUDY.details(found)


def simulated(make, lengths=LENGTHS):
    """Tables of sessions whose filters at each iteration are `make(iteration, rng)`: {layer: (filters, channels, 5, 5)}."""
    rows, arrays = [], {}
    for seed, length in enumerate(lengths):
        name = f"session{seed}"
        at = sorted(
            {1, length} | {iteration for iteration in (study.figures.EARLY, study.figures.LATE) if iteration < length}
        )
        kept = [make(iteration, np.random.default_rng(seed)) for iteration in at]
        arrays[name, "filters_iterations"] = np.array(at)
        arrays |= {(name, f"filters_{layer}"): np.array([of[layer] for of in kept]) for layer in study.figures.LAYERS}
        rows.append({"hash": name, "profile": "reduced", "iterations": length, "seed": seed, "model": "softness_cnn",
                     "dataset": "cifar10", "data_note": "simulated"})  # fmt: skip
    keys = ["hash", "profile", "model", "dataset", "seed"]
    epochs = pd.DataFrame(rows)[keys].assign(epoch=1, train_top1=50.0)
    return archive.Tables(pd.DataFrame(rows), pd.DataFrame(columns=["hash"]), epochs, {}, arrays)


def smoothed(iteration, rng):
    """Random filters, the smoother the later; 4 and 6 of them."""
    width = 0.05 * iteration**0.3  # 0.5 pixels after 2,000 iterations, 1.1 after 30,000
    shapes = {"conv1": (4, 3, 5, 5), "conv2": (6, 4, 5, 5)}
    return {
        layer: ndimage.gaussian_filter(rng.normal(size=shape), (0, 0, width, width)) for layer, shape in shapes.items()
    }


# What a session has after EARLY and LATE iterations: the score of every layer, way and image, number of soft images, Moran's I.
AFTER = {
    study.figures.EARLY: {"score": 5.0, "soft": 0, "morans_i": 0.1},
    study.figures.LATE: {"score": 4.0, "soft": 20, "morans_i": 0.3},
}
FITS = [
    (layer, model, image) for layer in study.figures.LAYERS for model in softness.LAWS for image in study.figures.IMAGES
]
NO_SLOPE = [("conv2", "linear", "bird"), ("conv2", "linear", "static"), ("conv2", "exponential", "bird")]


def papers_r2(layer, model, image):
    return 0.2 if layer == "conv1" else 0.9 if model == "power" else 0.5


def papers_p(layer, model, image):
    return 0.5 if (layer, model, image) in NO_SLOPE else 0.001


@pytest.fixture
def planted(monkeypatch):
    """The claims on sessions and fits with given numbers, by default the paper's; see `AFTER`, `papers_r2`, `papers_p`.

    Args:
        after: what a session has other than `AFTER`, by (seed, iteration, layer, way, image).
        r2, p: of a layer's fit on one image, of all pictures; `others`: added to r2 and p of those that are not printed.
    """

    def judge(after=lambda *of: {}, r2=papers_r2, p=papers_p, others=lambda picture: 0.0):
        sessions, lines = [], []
        ways = [(layer, way) for layer in study.figures.LAYERS for way in study.figures.WAYS[layer]]
        for seed, length in enumerate(LENGTHS):
            for iteration in (at for at in AFTER if at <= length):
                for (layer, way), image in ((way, image) for way in ways for image in study.figures.IMAGES):
                    row = AFTER[iteration] | {"score": 4 + 0.001 * seed if iteration > study.figures.EARLY else 5}
                    row = row | after(seed, iteration, layer, way, image)
                    keys = {
                        "seed": seed,
                        "iterations": length,
                        "iteration": iteration,
                        "layer": layer,
                        "way": way,
                        "image": image,
                    }
                    sessions.append({**row, **keys})
        for layer, way in ways:
            for model, image in ((model, image) for model in softness.LAWS for image in study.figures.IMAGES):
                for picture in range(17 if image == "bird" else study.figures.NOISES):
                    printed = picture == study.figures.PRINTED[image]
                    more = 0.0 if printed else others(picture)
                    values = {"r2": r2(layer, model, image) + more, "p": p(layer, model, image) + more}
                    keys = {
                        "layer": layer,
                        "way": way,
                        "model": model,
                        "image": image,
                        "picture": picture,
                        "printed": printed,
                    }
                    lines.append({**values, **keys})
        table = pd.DataFrame(sessions)
        monkeypatch.setattr(study.figures, "scores", lambda found, **_: table)
        monkeypatch.setattr(
            study.figures, "clustering", lambda found, **_: table.drop_duplicates(["seed", "iteration", "layer"])
        )
        monkeypatch.setattr(study.figures, "r_squared", lambda found: pd.DataFrame(lines))
        found = simulated(lambda iteration, rng: dict.fromkeys(study.figures.LAYERS, 0.0))
        return study.STUDY.verdicts(found).set_index(["claim", "definition"]).sort_index()

    return judge


@pytest.mark.parametrize("profile", PROFILES)
def test_every_session_has_a_seed_of_its_own(profile):
    runs = study.runs(profile)
    assert [run.seed for run in runs] == list(range(len(runs)))
    assert {run.batch_size for run in runs} == {50}
    assert {run.optimizer for run in runs} == {"adam"}


def test_reduced_is_the_papers_design_and_the_others_are_as_the_page_says():
    assert [run.iterations for run in study.runs("reduced")] == LENGTHS
    assert (len(LENGTHS), sum(LENGTHS)) == (11, 136_003)
    assert list(study.DESIGN) == list(LEVELS)
    assert set(study.SIZES["paper"]["sessions"].values()) == {10}
    quick = study.SIZES["quick"]["sessions"]
    assert (len(quick), max(quick), set(quick.values())) == (5, 2000, {3})
    assert [run.seed for run in study.runs("reduced", seeds=[2, 10])] == [2, 10]


def test_names_of_runs_are_pinned_so_that_archived_runs_stay_theirs():
    assert study.runs("reduced")[-1].name == "softness_cnn-cifar10-w64-i50000-s10-7970155cb8dc"
    assert study.runs("quick")[-1].name == "softness_cnn-cifar10-w64-i2000-s14-21f9ea9926a4"


@pytest.mark.parametrize("which", [{"models": ["resnet18"]}, {"datasets": ["imagenet"]}])
def test_what_the_study_does_not_have_is_refused(which):
    with pytest.raises(ConfigError, match="unknown (model|data set) .*known: "):
        study.runs("quick", **which)
    with pytest.raises(ConfigError, match="unknown profile 'huge'"):
        study.runs("huge")


def test_the_archive_holds_the_papers_eleven_sessions_and_all_of_quick(found):
    assert set(found.runs["hash"]) == {run.hash for run in study.runs("reduced")}
    quick = study.STUDY.tables(RESULTS, "quick")
    assert set(quick.runs["hash"]) == {run.hash for run in study.runs("quick")}
    counts = study.figures.counts(found)
    assert counts["sessions"].tolist() == counts["in the paper"].tolist() == list(study.DESIGN.values())


def test_the_archived_filters_are_those_after_each_iteration_of_the_grid(found):
    for run, iterations, filters in study.figures.sessions(found):
        assert iterations.tolist() == [i for i in GRID if i <= run.iterations]
        assert filters["conv1"].shape == (len(iterations), 16, 3, 5, 5)
        assert filters["conv2"].shape == (len(iterations), 36, 16, 5, 5)
        start = models.build("softness_cnn", num_classes=10, seed=run.seed)
        moved = abs(filters["conv1"][0] - start.conv1.weight.detach().numpy())
        assert moved.max() < 1.01e-4  # one step of Adam


def test_accuracies_are_of_every_tenth_iteration_of_the_longest_session(found):
    table = study.figures.accuracy(found)
    assert table["iteration"].tolist() == list(range(10, 50_001, 10))
    assert table["test_top1"].iloc[-500:].mean() > 60
    assert table["test_top1"].iloc[0] < 30


def test_the_birds_are_those_of_the_rule():
    if not data.path("cifar10").exists():
        pytest.skip("needs CIFAR-10")
    chosen = study.figures.choose_birds(data.load("cifar10"))
    np.testing.assert_allclose(study.figures.birds(), chosen.transpose(0, 3, 1, 2) / 255, atol=1e-6)


def test_the_pictures_have_the_networks_shape():
    for name in study.figures.IMAGES:
        image = study.figures.picture(name)
        assert (image.shape, image.dtype) == ((3, 32, 32), np.float64)
        assert 0 <= image.min() < image.max() <= 1
    static = study.figures.picture("static")
    assert set(np.unique(static)) == {0, 1}
    assert 0.45 < static.mean() < 0.55
    np.testing.assert_array_equal(static[0], static[2])
    assert (np.diff(softness.softness_scores(study.figures.birds().mean(1))) > 0).all()


def test_layer_2_is_applied_in_both_readings_as_they_say(found):
    _, _, filters = next(study.figures.sessions(found))
    last, image = {layer: of[-1] for layer, of in filters.items()}, study.figures.picture("bird")
    model = models.build("softness_cnn", num_classes=10)
    import torch

    with torch.no_grad():
        for layer, of in last.items():
            model.get_submodule(layer).weight.copy_(torch.from_numpy(of))
            model.get_submodule(layer).bias.zero_()
        model.double()
        through = model.conv2(model.pool1(model.relu1(model.conv1(torch.from_numpy(image)[None]))))[0].numpy()
    np.testing.assert_allclose(study.figures.filtered(last, "conv2", "through", image), through, atol=1e-12)
    grey = ndimage.correlate(image.mean(0), last["conv2"][7].mean(0, dtype=np.float64), mode="constant")
    np.testing.assert_allclose(study.figures.filtered(last, "conv2", "image", image)[7], grey, atol=1e-12)
    assert study.figures.filtered(last, "conv1", "image", image).shape == (16, 32, 32)


def test_scores_are_sums_over_the_filters_last_recorded(found):
    table = study.figures.scores(found)
    assert len(table) == 11 * 3 * 2
    run, _, filters = list(study.figures.sessions(found))[-1]
    last = {layer: of[-1] for layer, of in filters.items()}
    expected = sum(
        softness.softness_score(of)
        for of in study.figures.filtered(last, "conv2", "through", study.figures.picture("static"))
    )
    row = table[table["seed"] == run.seed].query("layer == 'conv2' and way == 'through' and image == 'static'")
    assert row["score"].item() == pytest.approx(expected)
    assert row["filters"].item() == 36
    two = replace(found, runs=found.runs[found.runs["iterations"].isin([1, 2000])].iloc[[0, 3]])
    whole = study.figures.scores(two, all_iterations=True)
    ends = whole[whole["iteration"] == whole["iterations"]].drop(columns="iteration").reset_index(drop=True)
    assert len(whole) > 4 * len(ends)
    pd.testing.assert_frame_equal(ends, study.figures.scores(two).drop(columns="iteration"))


def test_the_archived_sessions_are_judged_by_their_own_fits(found, parts):
    """S6 by the printed pictures' lines, exactly; S4 and S5 by the mean R^2 over pictures."""
    of = parts[(parts["profile"] == "reduced") & (parts["definition"] == "on the image")]
    of = of.set_index(["claim", "comparison"])
    scores = study.figures.scores(found).query("layer == 'conv2' and way == 'image'")
    for image in study.figures.IMAGES:
        rows = scores[scores["image"] == image]
        line = stats.linregress(np.log(rows["iterations"]), np.log(rows["score"]))
        p, mean = of.loc[("S6", f"p, conv2 power {image}")], of.loc[("S4", f"R2, conv2 power {image}")]
        assert p["effect"] == pytest.approx(line.pvalue)
        assert (p["spread"], p["seeds"]) == ("exact", 1)
        assert mean["seeds"] == (17 if image == "bird" else 12)
        assert mean["low"] < mean["effect"] < mean["high"]
    table = claims.verdicts(parts)
    assert table["claim"].unique().tolist() == [f"S{i}" for i in range(1, 7)]
    assert table.groupby("claim").size().tolist() == [1, 2, 1, 2, 2, 2]
    assert set(table["profile"]) == {"reduced"}
    assert not table.duplicated(["claim", "definition"]).any()


def test_r_squared_has_every_picture_once_and_names_the_printed_ones(monkeypatch):
    few = simulated(smoothed, [1, 1, 2000, 2000, 30_000])
    monkeypatch.setattr(study.figures, "NOISES", 2)
    birds = study.figures.birds()[:3]
    monkeypatch.setattr(study.figures, "birds", lambda: birds)
    table = study.figures.r_squared(few)
    assert table.groupby(["panel", "model", "image"])["picture"].agg(list).map(tuple).unique().tolist() == [
        (0, 1, 2),
        (0, 1),
    ]
    assert len(table) == 3 * 3 * 5
    printed = table[table["printed"]].groupby("image")["picture"].unique().to_dict()
    assert printed == {"bird": [1], "static": [0]}
    row = table.query("panel == 'conv1' and model == 'linear' and image == 'bird' and printed").iloc[0]
    scores = study.figures.scores(few).query("layer == 'conv1' and image == 'bird'")
    assert row["r2"] == pytest.approx(stats.linregress(scores["iterations"], scores["score"]).rvalue ** 2)


def test_smoother_filters_cluster_more_and_give_softer_images(monkeypatch):
    monkeypatch.setattr(study.figures, "NOISES", 1)
    birds = study.figures.birds()[:2]
    monkeypatch.setattr(study.figures, "birds", lambda: birds)
    for make, sign, verdict in (
        (smoothed, -1, "holds"),
        (lambda i, rng: smoothed(6e7 / max(i, 1000), rng), 1, "fails"),
    ):
        table = study.STUDY.details(simulated(make)).query("profile == 'reduced'").set_index("claim")
        assert table.loc["S1", "verdict"] == verdict
        assert len(table.loc["S2"]) == 8
        assert (sign * np.log(table.loc["S2", "effect"]) > 0.03).all()


def test_in_the_papers_world_all_claims_hold_but_s3_of_three_sessions(planted):
    table = planted(others=lambda picture: 0.01 * (picture % 3 - 1))
    assert table.drop("S3")["verdict"].unique().tolist() == ["holds"]
    assert table.loc["S3", "verdict"].tolist() == ["fails"]  # the sessions do not differ at all
    assert table.loc["S1", "effect"].item() == pytest.approx(0.2)
    assert table.loc["S2", "effect"].to_numpy() == pytest.approx(0.8, rel=0.01)


def test_s1_is_about_layer_1_and_the_sessions_that_lasted(planted):
    """Those of fewer iterations do not count, nor does layer 2."""

    def clusters(late, of_others=-1.0):
        def after(seed, iteration, layer, way, image):
            if layer == "conv2" or LENGTHS[seed] < study.figures.LATE:
                return {"morans_i": of_others}
            return {"morans_i": 0.1 + 0.001 * seed if iteration == study.figures.EARLY else late}

        return planted(after).loc[("S1", "-")]

    assert clusters(0.3)["verdict"] == "holds"
    assert clusters(0.3)["seeds"] == 3
    assert clusters(0.13)["verdict"] == "fails"  # by less than 0.05
    assert clusters(-0.1)["verdict"] == "fails"


def test_s2_is_judged_by_every_layer_and_image_in_each_reading(planted):
    def harder(seed, iteration, layer, way, image):
        return (
            {"score": 6.0 + 0.01 * seed}
            if (iteration, layer, way, image) == (study.figures.LATE, "conv2", "through", "static")
            else {}
        )

    table = planted(harder).loc["S2"]
    assert table.loc["through layer 1", ["verdict", "holds", "fails"]].tolist() == ["fails", 3, 1]
    assert table.loc["on the image", ["verdict", "holds"]].tolist() == ["holds", 4]


@pytest.mark.parametrize(
    ("late", "early", "verdict"),
    [((30, 10, 20), 0, "unclear"), ((50, 1, 9), 0, "holds"), ((40, 20, 30), 25, "holds"), ((19, 20, 21), 0, "fails")],
)
def test_s3_is_the_standard_deviation_over_sessions_in_units_of_the_gain_with_chi_squareds_interval(
    planted, late, early, verdict
):
    row = planted(soft_images(late, early)).loc[("S3", "-")]
    effect = np.std(late, ddof=1) / (np.mean(late) - early)
    assert row[["effect", "seeds", "verdict"]].tolist() == [pytest.approx(effect), 3, verdict]
    assert [row["low"], row["high"]] == pytest.approx(effect * np.sqrt(2 / stats.chi2.ppf([0.975, 0.025], 2)))


def soft_images(late, early):
    """Of the long sessions' layer 1 so many soft images of the bird; of all else any number."""
    last = dict(zip([seed for seed, length in enumerate(LENGTHS) if length >= study.figures.LATE], late, strict=True))

    def after(seed, iteration, layer, way, image):
        if (layer, image) != ("conv1", "bird") or seed not in last:
            return {"soft": 1000 * seed}
        return {"soft": last[seed] if iteration == study.figures.LATE else early}

    return after


def test_without_any_gain_s3_is_unclear(planted):
    assert planted(soft_images((10, 20, 30), 20)).loc[("S3", "-"), "verdict"] == "unclear"


def test_s4_needs_a_power_law_of_high_r2_ahead_of_the_two_others(planted):
    scatter = {"others": lambda picture: 0.01 * (picture % 3 - 1)}

    def verdict(**r2):
        return planted(r2=lambda layer, *of: r2.get(of[0], 0.2) if layer == "conv2" else 0.2, **scatter).loc[
            "S4", "verdict"
        ]

    assert verdict(power=0.9, exponential=0.5).tolist() == ["holds"] * 2
    assert verdict(power=0.84, exponential=0.5).tolist() == ["fails"] * 2
    assert verdict(power=0.9, exponential=0.95).tolist() == ["fails"] * 2
    assert verdict(power=0.9, linear=0.95).tolist() == ["fails"] * 2


def test_r2_is_judged_over_the_pictures_with_students_t(planted):
    """The replicates are 17 birds and 12 noises; S5 fails if one fit but the power law in layer 2 has 0.8 or more."""
    fit = ("conv1", "exponential", "static")
    rows = planted(r2=lambda *of: 0.85 if of == fit else 0.2, others=lambda picture: 0.01 * picture).loc["S5"]
    r2 = 0.85 + 0.01 * np.arange(12)
    assert rows["verdict"].tolist() == ["fails"] * 2
    for row in rows.itertuples():
        assert (row.closest, row.seeds, row.fails) == ("R2, conv1 exponential static", 12, 1)
        half = stats.t.ppf(0.975, 11) * r2.std(ddof=1) / np.sqrt(12)
        assert (row.effect, row.low, row.high) == pytest.approx((r2.mean(), r2.mean() - half, r2.mean() + half))
    wide = planted(r2=lambda *of: 0.7 if of == fit else 0.2, others=lambda picture: 0.02 * picture).loc["S5"]
    assert wide["verdict"].tolist() == ["unclear"] * 2


def test_s6_is_about_the_printed_pictures_alone_exactly(planted):
    table = planted(others=lambda picture: 0.5).loc["S6"]
    assert table["verdict"].tolist() == ["holds"] * 2
    assert table["holds"].tolist() == [12 + 6] * 2
    assert set(table["spread"]) == {"exact"}
    for fit in (("conv2", "linear", "bird"), ("conv2", "power", "static"), ("conv1", "linear", "static")):
        other = planted(p=lambda *of, fit=fit: 0.051 - papers_p(*of) / 10 if of == fit else papers_p(*of)).loc["S6"]
        assert other[["verdict", "fails"]].to_numpy().tolist() == [["fails", 1]] * 2, fit
    low = planted(r2=lambda *of: 0.31 if of == ("conv1", "power", "bird") else papers_r2(*of)).loc["S6"]
    assert low[["verdict", "closest"]].to_numpy().tolist() == [["fails", "R2 of the single fit, conv1 power bird"]] * 2


def test_eleven_sessions_cannot_have_a_significant_slope_with_a_very_low_r2():
    assert softness.p_of_r2(softness_claims.LOW, 11) > softness_claims.SIGNIFICANT


def test_without_long_sessions_nothing_is_judged_and_the_reason_is_said(tmp_path):
    table = study.STUDY.verdicts(simulated(smoothed, [1, 1, 100, 100, 2000, 2000]))
    assert set(table["verdict"]) == {"not run"}
    assert set(table["reason"]) == {"needs CIFAR-10 sessions of 30,000 iterations"}
    empty = study.STUDY.scorecard(tmp_path)
    assert set(empty["verdict"]) == {"not run"}
    assert empty["claim"].nunique() == 6


def test_a_short_session_of_two_profiles_counts_once_in_each(found):
    """The sessions of one iteration of `quick` and `reduced` are the same runs."""
    everything = study.STUDY.tables(RESULTS)
    assert everything.runs["hash"].duplicated().any()
    best = study.figures.at_largest_profile(everything)
    assert best.runs["profile"].unique().tolist() == ["reduced"]
    assert len(best.runs) == 11
    assert study.figures.fits(study.figures.scores(best))["n"].unique().tolist() == [11]
    assert len(study.figures.select_profile(everything, "quick").runs) == 15


def test_one_session_to_a_length_is_not_judged():
    assert study.figures.judgeable(simulated(smoothed, list(study.DESIGN))) == []
    assert study.figures.judgeable(simulated(smoothed)) == ["reduced"]


def test_sessions_on_other_images_are_not_judged_as_cifar_10s():
    tables = simulated(smoothed)
    tables.runs["dataset"] = "fashion_mnist_sample"
    assert set(study.STUDY.verdicts(tables)["verdict"]) == {"not run"}
    assert len(study.figures.at_largest_profile(tables).runs) == 11


def test_a_config_of_another_study_is_not_touched_by_iterations():
    assert "iterations" not in RunConfig(model="lenet5", dataset="mnist").canonical_json()


def test_r_squared_is_drawn_as_bars_of_the_printed_picture_and_a_dot_for_every_one(found):
    rng, rows = np.random.default_rng(0), []
    for panel in ("conv1", "conv2, image"):
        for model in softness.LAWS:
            for image, printed in study.figures.PRINTED.items():
                r2 = rng.uniform(size=5)
                r2[printed] = 0.99 if panel == "conv1" else 0.0
                rows += [(panel, model, image, k, k == printed, value) for k, value in enumerate(r2)]
    table = pd.DataFrame(rows, columns=["panel", "model", "image", "picture", "printed", "r2"]).sample(
        frac=1, random_state=0
    )
    figure = plotting_runs.fit_bars(
        table.sort_values("panel"), title="t", caption="c", published={"conv1 power bird": 0.5}
    )
    left, right = figure.axes
    assert {bar.get_height() for bar in left.patches} == {0.99}
    dots = {tuple(line.get_ydata()) for line in right.lines}
    assert dots == {
        tuple(of.sort_values("picture")["r2"]) for _, of in table[table["panel"] != "conv1"].groupby(["model", "image"])
    }
    assert [line.get_ydata()[0] for line in left.lines if line.get_marker() == "D"] == [0.5]
    text = study.figures.r_squared_caption(found, table.sort_values("panel"))
    assert "place of this bird among the 5 by R² of the power model: conv1: 1; conv2, image: 5" in text

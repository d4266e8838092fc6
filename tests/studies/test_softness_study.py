"""Study 4: its sessions, its tables against the archived runs, and its claims on planted scores."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage, stats

from rwclib import RunConfig, archive, claims, data, models, softness
from rwclib.analysis import plotting_runs
from rwclib.errors import ConfigError
from rwclib.runs.config import PROFILES
from rwclib.runs.recording import GRID, LEVELS
from rwclib.studies import softness as study
from rwclib.studies.softness import claims as softness_claims
from rwclib.studies.softness import figures
from rwclib.studies.softness.figures import EARLY, IMAGES, LATE, LAYERS, NOISES, PRINTED, WAYS
from tests.conftest import ROOT

RESULTS = ROOT / "data" / "results"
LENGTHS = [length for length, count in study.DESIGN.items() for _ in range(count)]
NO_SLOPE = [("conv2", "linear", "bird"), ("conv2", "linear", "static"), ("conv2", "exponential", "bird")]


@pytest.fixture(scope="module")
def archived():
    return study.STUDY.tables(RESULTS, "reduced")


def simulated(make, lengths=LENGTHS):
    """Tables of sessions whose filters at each iteration are `make(iteration, rng)`: {layer: (filters, channels, 5, 5)}."""
    arrays = {}
    for seed, length in enumerate(lengths):
        iterations = sorted({1, length, *(iteration for iteration in (EARLY, LATE) if iteration < length)})
        filters = [make(iteration, np.random.default_rng(seed)) for iteration in iterations]
        arrays[f"session{seed}", "filters_iterations"] = np.array(iterations)
        for layer in LAYERS:
            arrays[f"session{seed}", f"filters_{layer}"] = np.array([kept[layer] for kept in filters])
    runs = pd.DataFrame({"hash": [f"session{seed}" for seed in range(len(lengths))], "seed": range(len(lengths))})
    runs = runs.assign(profile="reduced", model="softness_cnn", dataset="cifar10")
    epochs = runs.assign(epoch=1, train_top1=50.0)
    runs = runs.assign(iterations=lengths, data_note="simulated")
    return archive.Tables(runs, pd.DataFrame(columns=["hash"]), epochs, {}, arrays)


def smoothed(iteration, rng):
    """Random filters, the smoother the later; 4 and 6 of them."""
    width = 0.05 * iteration**0.3  # 0.5 pixels after 2,000 iterations, 1.1 after 30,000
    shapes = {"conv1": (4, 3, 5, 5), "conv2": (6, 4, 5, 5)}
    return {
        layer: ndimage.gaussian_filter(rng.normal(size=shape), (0, 0, width, width)) for layer, shape in shapes.items()
    }


def papers_session(seed, iteration):
    """What a session has after EARLY and LATE iterations: the score and number of soft images, and Moran's I."""
    if iteration == EARLY:
        return {"score": 5.0, "soft": 0, "morans_i": 0.1}
    return {"score": 4 + 0.001 * seed, "soft": 20, "morans_i": 0.3}


def papers_r2(layer, model, image):
    return 0.2 if layer == "conv1" else 0.9 if model == "power" else 0.5


def papers_p(layer, model, image):
    return 0.5 if (layer, model, image) in NO_SLOPE else 0.001


@pytest.fixture
def planted(monkeypatch):
    """The claims on sessions and fits with given numbers, by default the paper's: `papers_session`, `papers_r2`, `papers_p`.

    Args:
        after: what a session has other than the paper's, by (seed, iteration, layer, way, image).
        r2, p: of a layer's fit on one image, of all pictures; `others`: added to r2 and p of those that are not printed.
    """

    def judge(after=lambda *session: {}, r2=papers_r2, p=papers_p, others=lambda picture: 0.0):
        sessions, lines = [], []
        for (seed, length), iteration, ways, image in itertools.product(
            enumerate(LENGTHS), (EARLY, LATE), WAYS, IMAGES
        ):
            if iteration <= length:
                key = dict(zip(("layer", "way", "image"), (*ways, image), strict=True), seed=seed, iteration=iteration)
                row = papers_session(seed, iteration) | after(seed, iteration, *ways, image)
                sessions.append({**row, **key, "iterations": length})
        for (layer, way), model, image in itertools.product(WAYS, softness.LAWS, IMAGES):
            for picture in range(17 if image == "bird" else NOISES):
                more = 0.0 if picture == PRINTED[image] else others(picture)
                fit = (layer, model, image)
                lines.append((*fit, way, picture, picture == PRINTED[image], r2(*fit) + more, p(*fit) + more))
        table = pd.DataFrame(sessions)
        lines = pd.DataFrame(lines, columns=["layer", "model", "image", "way", "picture", "printed", "r2", "p"])
        morans = table.drop_duplicates(["seed", "iteration", "layer"])
        for name, result in (("scores", table), ("clustering", morans), ("r_squared", lines)):
            monkeypatch.setattr(figures, name, lambda tables, result=result, **options: result)
        tables = simulated(lambda iteration, rng: dict.fromkeys(LAYERS, 0.0))
        return study.STUDY.verdicts(tables).set_index(["claim", "definition"]).sort_index()

    return judge


@pytest.fixture
def few_pictures(monkeypatch):
    """Three birds and two noises instead of 17 and 12."""
    birds = figures.birds()[:3]
    monkeypatch.setattr(figures, "NOISES", 2)
    monkeypatch.setattr(figures, "birds", lambda: birds)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_session_has_a_seed_of_its_own(profile):
    runs = study.runs(profile)
    assert [run.seed for run in runs] == list(range(len(runs)))
    assert all((run.batch_size, run.optimizer) == (50, "adam") for run in runs)
    assert bool(runs) == (profile != "narrow")  # its network has one width


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


def test_the_archive_holds_the_papers_eleven_sessions_and_all_of_quick(archived):
    assert set(archived.runs["hash"]) == {run.hash for run in study.runs("reduced")}
    quick = study.STUDY.tables(RESULTS, "quick")
    assert set(quick.runs["hash"]) == {run.hash for run in study.runs("quick")}
    counts = figures.counts(archived)
    assert counts["sessions"].tolist() == counts["in the paper"].tolist() == list(study.DESIGN.values())


def test_the_archived_filters_are_those_after_each_iteration_of_the_grid(archived):
    for run, iterations, filters in figures.sessions(archived):
        assert iterations.tolist() == [i for i in GRID if i <= run.iterations]
        assert filters["conv1"].shape == (len(iterations), 16, 3, 5, 5)
        assert filters["conv2"].shape == (len(iterations), 36, 16, 5, 5)
        start = models.build("softness_cnn", num_classes=10, seed=run.seed)
        moved = abs(filters["conv1"][0] - start.conv1.weight.detach().numpy())
        assert moved.max() < 1.01e-4  # one step of Adam


def test_accuracies_are_of_every_tenth_iteration_of_the_longest_session(archived):
    table = figures.accuracy(archived)
    assert table["iteration"].tolist() == list(range(10, 50_001, 10))
    assert table["test_top1"].iloc[-500:].mean() > 60
    assert table["test_top1"].iloc[0] < 30


@pytest.mark.skipif(not data.path("cifar10").exists(), reason="needs CIFAR-10")
def test_the_birds_are_those_of_the_rule():
    chosen = figures.choose_birds(data.load("cifar10"))
    np.testing.assert_allclose(figures.birds(), chosen.transpose(0, 3, 1, 2) / 255, atol=1e-6)


def test_the_pictures_have_the_networks_shape():
    for name in figures.IMAGES:
        image = figures.picture(name)
        assert (image.shape, image.dtype) == ((3, 32, 32), np.float64)
        assert 0 <= image.min() < image.max() <= 1
    static = figures.picture("static")
    assert set(np.unique(static)) == {0, 1}
    assert 0.45 < static.mean() < 0.55
    np.testing.assert_array_equal(static[0], static[2])
    assert (np.diff(softness.softness_scores(figures.birds().mean(1))) > 0).all()


def test_layer_2_is_applied_in_both_readings_as_they_say(archived):
    _, _, filters = next(figures.sessions(archived))
    last, image = {layer: kept[-1] for layer, kept in filters.items()}, figures.picture("bird")
    model = models.build("softness_cnn", num_classes=10)
    weights = {f"{layer}.weight": torch.from_numpy(kept) for layer, kept in last.items()}
    biases = {f"{layer}.bias": torch.zeros(len(kept)) for layer, kept in last.items()}
    model.load_state_dict(weights | biases, strict=False)
    model.double()
    with torch.no_grad():
        through = model.conv2(model.pool1(model.relu1(model.conv1(torch.from_numpy(image)[None]))))[0].numpy()
    np.testing.assert_allclose(figures.filtered(last, "conv2", "through", image), through, atol=1e-12)
    grey = ndimage.correlate(image.mean(0), last["conv2"][7].mean(0, dtype=np.float64), mode="constant")
    np.testing.assert_allclose(figures.filtered(last, "conv2", "image", image)[7], grey, atol=1e-12)
    assert figures.filtered(last, "conv1", "image", image).shape == (16, 32, 32)


def test_scores_are_sums_over_the_filters_last_recorded(archived):
    table = figures.scores(archived)
    assert len(table) == 11 * 3 * 2
    run, _, filters = list(figures.sessions(archived))[-1]
    last = {layer: kept[-1] for layer, kept in filters.items()}
    images = figures.filtered(last, "conv2", "through", figures.picture("static"))
    row = table[table["seed"] == run.seed].query("layer == 'conv2' and way == 'through' and image == 'static'")
    assert row["score"].item() == pytest.approx(sum(map(softness.softness_score, images)))
    assert row["filters"].item() == 36
    two = replace(archived, runs=archived.runs[archived.runs["iterations"].isin([1, 2000])].iloc[[0, 3]])
    whole = figures.scores(two, all_iterations=True)
    ends = whole[whole["iteration"] == whole["iterations"]].reset_index(drop=True)
    assert len(whole) > 4 * len(ends)
    pd.testing.assert_frame_equal(ends, figures.scores(two))


def test_the_archived_sessions_are_judged_by_their_own_fits(archived):
    """S6 by the printed pictures' lines, exactly; S4 and S5 by the mean R^2 over pictures."""
    details = study.STUDY.details(archived)
    rows = details.query("profile == 'reduced' and definition == 'on the image'").set_index(["claim", "comparison"])
    scores = figures.scores(archived).query("layer == 'conv2' and way == 'image'")
    for image in IMAGES:
        of_image = scores[scores["image"] == image]
        line = stats.linregress(np.log(of_image["iterations"]), np.log(of_image["score"]))
        p, mean = rows.loc[("S6", f"p, conv2 power {image}")], rows.loc[("S4", f"R2, conv2 power {image}")]
        assert p["effect"] == pytest.approx(line.pvalue)
        assert (p["spread"], p["seeds"]) == ("exact", 1)
        assert mean["seeds"] == (17 if image == "bird" else 12)
        assert mean["low"] < mean["effect"] < mean["high"]
    table = claims.verdicts(details)
    assert table.groupby("claim").size().to_dict() == {"S1": 1, "S2": 2, "S3": 1, "S4": 2, "S5": 2, "S6": 2}
    assert table["claim"].is_monotonic_increasing
    assert set(table["profile"]) == {"reduced"}
    assert not table.duplicated(["claim", "definition"]).any()


def test_r_squared_has_every_picture_once_and_names_the_printed_ones(few_pictures):
    sessions = simulated(smoothed, [1, 1, 2000, 2000, 30_000])
    table = figures.r_squared(sessions)
    pictures = table.groupby(["panel", "model", "image"])["picture"].agg(tuple)
    assert pictures.unique().tolist() == [(0, 1, 2), (0, 1)]
    assert len(table) == 3 * 3 * 5
    printed = table[table["printed"]].groupby("image")["picture"].unique().to_dict()
    assert printed == {"bird": [1], "static": [0]}
    row = table.query("panel == 'conv1' and model == 'linear' and image == 'bird' and printed").iloc[0]
    scores = figures.scores(sessions).query("layer == 'conv1' and image == 'bird'")
    assert row["r2"] == pytest.approx(stats.linregress(scores["iterations"], scores["score"]).rvalue ** 2)


@pytest.mark.parametrize(("rougher", "sign", "verdict"), [(False, -1, "holds"), (True, 1, "fails")])
def test_smoother_filters_cluster_more_and_give_softer_images(few_pictures, rougher, sign, verdict):
    sessions = simulated(lambda i, rng: smoothed(6e7 / max(i, 1000) if rougher else i, rng))
    table = study.STUDY.details(sessions).query("profile == 'reduced'").set_index("claim")
    assert table.loc["S1", "verdict"] == verdict
    assert len(table.loc["S2"]) == 8
    assert (sign * np.log(table.loc["S2", "effect"]) > 0.03).all()


def scatter(picture):
    return 0.01 * (picture % 3 - 1)


def test_in_the_papers_world_all_claims_hold_but_s3_of_three_sessions(planted):
    table = planted(others=scatter)
    assert table.drop("S3")["verdict"].unique().tolist() == ["holds"]
    assert table.loc["S3", "verdict"].tolist() == ["fails"]  # the sessions do not differ at all
    assert table.loc["S1", "effect"].item() == pytest.approx(0.2)
    assert table.loc["S2", "effect"].to_numpy() == pytest.approx(0.8, rel=0.01)


@pytest.mark.parametrize(("late", "verdict"), [(0.3, "holds"), (0.13, "fails"), (-0.1, "fails")])
def test_s1_is_about_layer_1_and_the_sessions_that_lasted(planted, late, verdict):
    """Those of fewer iterations do not count, nor does layer 2; a gain of less than 0.05 does not make it hold."""

    def after(seed, iteration, layer, way, image):
        if layer == "conv2" or LENGTHS[seed] < LATE:
            return {"morans_i": -1.0}
        return {"morans_i": 0.1 + 0.001 * seed if iteration == EARLY else late}

    assert planted(after).loc[("S1", "-"), ["verdict", "seeds"]].tolist() == [verdict, 3]


def test_s2_is_judged_by_every_layer_and_image_in_each_reading(planted):
    def harder(seed, *where):
        return {"score": 6.0 + 0.01 * seed} if where == (LATE, "conv2", "through", "static") else {}

    table = planted(harder).loc["S2"]
    assert table.loc["through layer 1", ["verdict", "holds", "fails"]].tolist() == ["fails", 3, 1]
    assert table.loc["on the image", ["verdict", "holds"]].tolist() == ["holds", 4]


def soft_images(late, early):
    """Of the long sessions' layer 1 so many soft images of the bird; of all else any number."""
    last = dict(zip([seed for seed, length in enumerate(LENGTHS) if length >= LATE], late, strict=True))

    def after(seed, iteration, layer, way, image):
        if (layer, image) != ("conv1", "bird") or seed not in last:
            return {"soft": 1000 * seed}
        return {"soft": last[seed] if iteration == LATE else early}

    return after


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


def test_without_any_gain_s3_is_unclear(planted):
    assert planted(soft_images((10, 20, 30), 20)).loc[("S3", "-"), "verdict"] == "unclear"


@pytest.mark.parametrize(
    ("r2", "verdict"),
    [
        ({"power": 0.9, "exponential": 0.5}, "holds"),
        ({"power": 0.84, "exponential": 0.5}, "fails"),
        ({"power": 0.9, "exponential": 0.95}, "fails"),
        ({"power": 0.9, "linear": 0.95}, "fails"),
    ],
)
def test_s4_needs_a_power_law_of_high_r2_ahead_of_the_two_others(planted, r2, verdict):
    table = planted(r2=lambda layer, model, image: r2.get(model, 0.2) if layer == "conv2" else 0.2, others=scatter)
    assert table.loc["S4", "verdict"].tolist() == [verdict] * 2


def test_r2_is_judged_over_the_pictures_with_students_t(planted):
    """The replicates are 17 birds and 12 noises; S5 fails if one fit but the power law in layer 2 has 0.8 or more."""
    fit = ("conv1", "exponential", "static")
    rows = planted(r2=lambda *key: 0.85 if key == fit else 0.2, others=lambda picture: 0.01 * picture).loc["S5"]
    r2 = 0.85 + 0.01 * np.arange(12)
    assert rows["verdict"].tolist() == ["fails"] * 2
    for row in rows.itertuples():
        assert (row.closest, row.seeds, row.fails) == ("R2, conv1 exponential static", 12, 1)
        half = stats.t.ppf(0.975, 11) * r2.std(ddof=1) / np.sqrt(12)
        assert (row.effect, row.low, row.high) == pytest.approx((r2.mean(), r2.mean() - half, r2.mean() + half))
    wide = planted(r2=lambda *key: 0.7 if key == fit else 0.2, others=lambda picture: 0.02 * picture).loc["S5"]
    assert wide["verdict"].tolist() == ["unclear"] * 2


def test_s6_is_about_the_printed_pictures_alone_exactly(planted):
    table = planted(others=lambda picture: 0.5).loc["S6"]
    assert table["verdict"].tolist() == ["holds"] * 2
    assert table["holds"].tolist() == [12 + 6] * 2
    assert set(table["spread"]) == {"exact"}
    for fit in (("conv2", "linear", "bird"), ("conv2", "power", "static"), ("conv1", "linear", "static")):
        other = planted(p=lambda *key, fit=fit: 0.051 - papers_p(*key) / 10 if key == fit else papers_p(*key)).loc["S6"]
        assert other[["verdict", "fails"]].to_numpy().tolist() == [["fails", 1]] * 2, fit
    low = planted(r2=lambda *key: 0.31 if key == ("conv1", "power", "bird") else papers_r2(*key)).loc["S6"]
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


def test_a_short_session_of_two_profiles_counts_once_in_each():
    """The sessions of one iteration of `quick` and `reduced` are the same runs."""
    everything = study.STUDY.tables(RESULTS)
    assert everything.runs["hash"].duplicated().any()
    largest = figures.at_largest_profile(everything)
    assert largest.runs["profile"].tolist() == ["reduced"] * 11
    assert figures.fits(figures.scores(largest))["n"].unique().tolist() == [11]
    assert len(figures.select_profile(everything, "quick").runs) == 15


def test_one_session_to_a_length_is_not_judged():
    assert figures.judgeable(simulated(smoothed, list(study.DESIGN))) == []
    assert figures.judgeable(simulated(smoothed)) == ["reduced"]


def test_sessions_on_other_images_are_not_judged_as_cifar_10s():
    tables = simulated(smoothed)
    tables.runs["dataset"] = "fashion_mnist_sample"
    assert set(study.STUDY.verdicts(tables)["verdict"]) == {"not run"}
    assert len(figures.at_largest_profile(tables).runs) == 11


def test_a_config_of_another_study_is_not_touched_by_iterations():
    assert "iterations" not in RunConfig(model="lenet5", dataset="mnist").canonical_json()


def test_r_squared_is_drawn_as_bars_of_the_printed_picture_and_a_dot_for_every_one(archived):
    rng, rows = np.random.default_rng(0), []
    for panel, model, image in itertools.product(("conv1", "conv2, image"), softness.LAWS, IMAGES):
        r2 = rng.uniform(size=5)
        r2[PRINTED[image]] = 0.99 if panel == "conv1" else 0.0
        rows += [(panel, model, image, k, k == PRINTED[image], value) for k, value in enumerate(r2)]
    table = pd.DataFrame(rows, columns=["panel", "model", "image", "picture", "printed", "r2"])
    table = table.sample(frac=1, random_state=0).sort_values("panel")
    figure = plotting_runs.fit_bars(table, title="t", caption="c", published={"conv1 power bird": 0.5})
    left, right = figure.axes
    assert {bar.get_height() for bar in left.patches} == {0.99}
    second = table[table["panel"] != "conv1"].sort_values("picture").groupby(["model", "image"])["r2"]
    assert {tuple(line.get_ydata()) for line in right.lines} == set(second.agg(tuple))
    assert [line.get_ydata()[0] for line in left.lines if line.get_marker() == "D"] == [0.5]
    text = figures.r_squared_caption(archived, table)
    assert "place of this bird among the 5 by R² of the power model: conv1: 1; conv2, image: 5" in text

"""Study 4: its sessions, its tables against the archived runs, and its claims on planted scores."""

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage, stats

from rwclib import RunConfig, archive, data, models, plotting_filters, softness
from rwclib.config import PROFILES
from rwclib.errors import ConfigError
from rwclib.recording import GRID, LEVELS
from rwclib.studies import softness as study
from rwclib.studies import softness_claims

from .conftest import ROOT

RESULTS = ROOT / "data" / "results"
LENGTHS = [length for length, count in study.DESIGN.items() for _ in range(count)]


@pytest.fixture(scope="module")
def found():
    return study.tables(RESULTS, "reduced")


def simulated(make, lengths=LENGTHS):
    """Tables of sessions whose filters at each iteration are `make(iteration, rng)`: {layer: (filters, channels, 5, 5)}."""
    rows, arrays = [], {}
    for seed, length in enumerate(lengths):
        name = f"session{seed}"
        at = [iteration for iteration in GRID if iteration < length] + [length]
        kept = [make(iteration, np.random.default_rng(seed)) for iteration in at]
        arrays[name, "filters_iterations"] = np.array(at)
        arrays |= {(name, f"filters_{layer}"): np.array([of[layer] for of in kept]) for layer in study.LAYERS}
        rows.append({"hash": name, "profile": "reduced", "iterations": length, "seed": seed, "model": "softness_cnn",
                     "dataset": "cifar10", "data_note": "simulated"})  # fmt: skip
    keys = ["hash", "profile", "model", "dataset", "seed"]
    epochs = pd.DataFrame(rows)[keys].assign(epoch=1, train_top1=50.0)
    return archive.Tables(pd.DataFrame(rows), pd.DataFrame(), epochs, {}, arrays)


def smoothed(iteration, rng):
    """Random filters, the smoother the later."""
    width = 0.3 + 0.15 * np.log10(iteration)
    shapes = {"conv1": (16, 3, 5, 5), "conv2": (36, 16, 5, 5)}
    return {
        layer: ndimage.gaussian_filter(rng.normal(size=shape), (0, 0, width, width)) for layer, shape in shapes.items()
    }


def noise(iteration, rng):
    return {"conv1": rng.normal(size=(16, 3, 5, 5)), "conv2": rng.normal(size=(36, 16, 5, 5))}


@pytest.fixture
def planted(monkeypatch):
    """The claims on sessions whose scores are `score(iterations, rng)`, in layer 2 and, unless given, in layer 1."""

    def judge(score, first=None, lengths=LENGTHS):
        rng, rows = np.random.default_rng(1), []
        for seed, length in enumerate(lengths):
            for layer in study.LAYERS:
                of = first if first and layer == "conv1" else score
                rows += [
                    {"profile": "reduced", "seed": seed, "iterations": length, "iteration": length, "layer": layer,
                     "way": way, "image": image, "score": of(length, rng)}
                    for way in study.WAYS[layer] for image in study.IMAGES
                ]  # fmt: skip
        monkeypatch.setattr(study, "scores", lambda found, all_iterations=False: pd.DataFrame(rows))
        tables = simulated(noise, lengths)
        return softness_claims.details(tables), softness_claims.verdicts(tables).set_index(["claim", "definition"])

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
    quick = study.tables(RESULTS, "quick")
    assert set(quick.runs["hash"]) == {run.hash for run in study.runs("quick")}
    counts = study.counts(found)
    assert counts["sessions"].tolist() == counts["in the paper"].tolist() == list(study.DESIGN.values())


def test_the_archived_filters_are_those_after_each_iteration_of_the_grid(found):
    for run, iterations, filters in study.sessions(found):
        assert iterations.tolist() == [i for i in GRID if i <= run.iterations]
        assert filters["conv1"].shape == (len(iterations), 16, 3, 5, 5)
        assert filters["conv2"].shape == (len(iterations), 36, 16, 5, 5)
        start = models.build("softness_cnn", num_classes=10, seed=run.seed)
        moved = abs(filters["conv1"][0] - start.conv1.weight.detach().numpy())
        assert moved.max() < 1.01e-4  # one step of Adam


def test_accuracies_are_of_every_tenth_iteration_of_the_longest_session(found):
    table = study.accuracy(found)
    assert table["iteration"].tolist() == list(range(10, 50_001, 10))
    assert table["test_top1"].iloc[-500:].mean() > 60
    assert table["test_top1"].iloc[0] < 30


def test_the_birds_are_those_of_the_rule():
    if not data.path("cifar10").exists():
        pytest.skip("needs CIFAR-10")
    chosen = study.choose_birds(data.load("cifar10"))
    np.testing.assert_allclose(study.birds(), chosen.transpose(0, 3, 1, 2) / 255, atol=1e-6)


def test_the_pictures_have_the_networks_shape():
    for name in study.IMAGES:
        image = study.picture(name)
        assert (image.shape, image.dtype) == ((3, 32, 32), np.float32)
        assert 0 <= image.min() < image.max() <= 1
    static = study.picture("static")
    assert set(np.unique(static)) == {0, 1}
    assert 0.45 < static.mean() < 0.55
    np.testing.assert_array_equal(static[0], static[2])
    assert (np.diff(softness.softness_scores(study.birds().mean(1))) > 0).all()


def test_layer_2_is_applied_in_both_readings_as_they_say(found):
    _, _, filters = next(study.sessions(found))
    last, image = {layer: of[-1] for layer, of in filters.items()}, study.picture("bird")
    model = models.build("softness_cnn", num_classes=10)
    import torch

    with torch.no_grad():
        for layer, of in last.items():
            model.get_submodule(layer).weight.copy_(torch.from_numpy(of))
            model.get_submodule(layer).bias.zero_()
        through = model.conv2(model.pool1(model.relu1(model.conv1(torch.from_numpy(image)[None]))))[0].numpy()
    np.testing.assert_allclose(study.filtered(last, "conv2", "through", image), through, atol=1e-4)
    grey = ndimage.correlate(image.mean(0), last["conv2"][7].mean(0), mode="constant")
    np.testing.assert_allclose(study.filtered(last, "conv2", "image", image)[7], grey, atol=1e-5)
    assert study.filtered(last, "conv1", "image", image).shape == (16, 32, 32)


def test_scores_are_sums_over_the_filters_last_recorded(found):
    table = study.scores(found)
    assert len(table) == 11 * 3 * 2
    run, _, filters = list(study.sessions(found))[-1]
    last = {layer: of[-1] for layer, of in filters.items()}
    expected = sum(
        softness.softness_score(of) for of in study.filtered(last, "conv2", "through", study.picture("static"))
    )
    row = table[table["seed"] == run.seed].query("layer == 'conv2' and way == 'through' and image == 'static'")
    assert row["score"].item() == pytest.approx(expected)
    assert row["filters"].item() == 36
    whole = study.scores(found, all_iterations=True)
    ends = whole[whole["iteration"] == whole["iterations"]].drop(columns="iteration").reset_index(drop=True)
    pd.testing.assert_frame_equal(ends, table.drop(columns="iteration"))


def test_the_fits_are_scipys_on_the_archived_scores(found):
    table = study.scores(found)
    of = table.query("layer == 'conv2' and way == 'image' and image == 'bird'")
    line = stats.linregress(np.log(of["iterations"]), np.log(of["score"]))
    row = softness_claims.r_squared(found).query("panel == 'conv2, image' and model == 'power' and image == 'bird'")
    assert row["r2"].item() == pytest.approx(line.rvalue**2)
    assert row["p"].item() == pytest.approx(line.pvalue)
    assert row["n"].item() == 11
    assert (softness_claims.r_squared(found).eval("0 <= low < high <= 1")).all()


def test_smoother_filters_cluster_more_and_give_softer_images():
    table = softness_claims.verdicts(simulated(smoothed)).set_index("claim")
    assert table.loc["S1", "verdict"] == "holds"
    assert table.loc["S2", "verdict"].tolist() == ["holds", "holds"]
    backwards = softness_claims.verdicts(simulated(lambda i, rng: smoothed(50_001 - i, rng))).set_index("claim")
    assert backwards.loc["S1", "verdict"] == "fails"
    assert backwards.loc["S2", "verdict"].tolist() == ["fails", "fails"]


def test_the_papers_world_makes_s4_to_s6_hold(planted):
    """Layer 2 is a steep power law, its two other fits poor but that of the exponential on static; layer 1 falls with scatter."""
    many = [length for length in study.DESIGN for _ in range(40)]
    parts, table = planted(
        lambda n, rng: 4 * n**-0.3 * np.exp(0.05 * rng.normal()),
        first=lambda n, rng: 4 * np.exp(-1e-5 * n) * np.exp(0.2 * rng.normal()),
        lengths=many,
    )
    assert table.loc["S4", "verdict"].tolist() == ["holds", "holds"]
    assert table.loc["S5", "verdict"].tolist() == ["holds", "holds"]
    assert (table.loc[["S4", "S5", "S6"], "seeds"] == len(many)).all()
    significant = parts[(parts["claim"] == "S6") & ~parts["comparison"].isin(
        ["p, conv2 linear bird", "p, conv2 linear static", "p, conv2 exponential bird"]
    )]  # fmt: skip
    assert set(significant["verdict"]) == {"holds"}


def test_slopes_that_are_not_there_are_found_not_significant(planted):
    parts, table = planted(lambda n, rng: 5 + 0.5 * rng.normal())
    of = parts[parts["claim"] == "S6"]
    claimed = of["comparison"].isin(["p, conv2 linear bird", "p, conv2 linear static", "p, conv2 exponential bird"])
    assert (of.loc[claimed, "verdict"] == "holds").mean() > 0.5
    assert set(of.loc[~claimed, "verdict"]) <= {"fails", "unclear"}
    assert table.loc["S6", "verdict"].tolist() == ["fails", "fails"]
    assert set(table.loc["S6", "resampled"]) == {"80% of sessions"}


def test_a_straight_line_in_layer_2_makes_s4_and_s5_fail(planted):
    _, table = planted(lambda n, rng: 9 - 1e-4 * n + 0.02 * rng.normal())
    assert table.loc["S4", "verdict"].tolist() == ["fails", "fails"]
    assert table.loc["S5", "verdict"].tolist() == ["fails", "fails"]


def test_scores_that_depend_on_the_length_alone_make_s3_fail_and_pure_scatter_makes_it_hold(planted):
    _, alike = planted(lambda n, rng: 5 - 0.3 * np.log(n) + 0.01 * rng.normal())
    assert alike.loc["S3", "verdict"].tolist() == ["fails", "fails"]
    _, apart = planted(lambda n, rng: 5 + rng.normal(), lengths=LENGTHS * 4)
    assert apart.loc["S3", "verdict"].tolist() == ["holds", "holds"]


def test_intervals_cover_the_truth_about_as_often_as_they_say(planted):
    """R^2 of a thousand fresh designs lies inside the interval of one about as often as its 95% say, give or take."""
    inside = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        draws = [4 * np.array(LENGTHS, float) ** -0.1 * np.exp(0.2 * rng.normal(size=11)) for _ in range(200)]
        truth = np.median(softness.r_squared(LENGTHS, np.array(draws), "power"))
        table = pd.DataFrame({"iterations": LENGTHS, "seed": range(11), "score": draws[0]})
        table = pd.concat([table.assign(layer=layer, way=way, image=image) for layer in study.LAYERS
                           for way in study.WAYS[layer] for image in study.IMAGES])  # fmt: skip
        _, low, high = softness_claims._interval(softness_claims._draws(table, "image")["R2, conv2 power bird"])
        inside.append(low <= truth <= high)
    assert np.mean(inside) > 0.75


def test_without_long_sessions_nothing_is_judged_and_the_reason_is_said():
    table = softness_claims.verdicts(simulated(noise, [1, 1, 100, 100, 2000, 2000]))
    assert set(table["verdict"]) == {"not run"}
    assert set(table["reason"]) == {"needs CIFAR-10 sessions of 30,000 iterations"}
    empty = softness_claims.scorecard(ROOT / "tests" / "nothing")
    assert set(empty["verdict"]) == {"not run"}
    assert empty["claim"].nunique() == 6


def test_a_short_session_of_two_profiles_counts_once_in_each(found):
    """The sessions of one iteration of `quick` and `reduced` are the same runs."""
    everything = study.tables(RESULTS)
    assert everything.runs["hash"].duplicated().any()
    best = study.best(everything)
    assert best.runs["profile"].unique().tolist() == ["reduced"]
    assert len(best.runs) == 11
    assert study.fits(study.scores(best))["n"].unique().tolist() == [11]
    assert len(study.only(everything, "quick").runs) == 15


def test_one_session_to_a_length_has_no_intervals_and_is_not_judged():
    tables = simulated(noise, list(study.DESIGN))
    assert softness_claims.r_squared(tables)[["low", "high"]].isna().all(axis=None)
    assert study.judged(tables) is None


def test_sessions_on_other_images_are_not_judged_as_cifar_10s():
    tables = simulated(smoothed)
    tables.runs["dataset"] = "fashion_mnist_sample"
    assert set(softness_claims.verdicts(tables)["verdict"]) == {"not run"}
    assert len(study.best(tables).runs) == 11


def test_a_config_of_another_study_is_not_touched_by_iterations():
    assert "iterations" not in RunConfig(model="lenet5", dataset="mnist").canonical_json()


def test_r_squared_is_drawn_as_bars_of_the_printed_picture_and_a_dot_for_every_one(found):
    rng, rows = np.random.default_rng(0), []
    for panel in ("conv1", "conv2, image"):
        for model in softness.MODELS:
            for image, printed in study.PRINTED.items():
                r2 = rng.uniform(size=5)
                r2[printed] = 0.99 if panel == "conv1" else 0.0
                rows += [(panel, model, image, k, k == printed, value) for k, value in enumerate(r2)]
    table = pd.DataFrame(rows, columns=["panel", "model", "image", "picture", "printed", "r2"]).sample(
        frac=1, random_state=0
    )
    figure = plotting_filters.fit_bars(
        table.sort_values("panel"), title="t", caption="c", published={"conv1 power bird": 0.5}
    )
    left, right = figure.axes
    assert {bar.get_height() for bar in left.patches} == {0.99}
    dots = {tuple(line.get_ydata()) for line in right.lines}
    assert dots == {
        tuple(of.sort_values("picture")["r2"]) for _, of in table[table["panel"] != "conv1"].groupby(["model", "image"])
    }
    assert [line.get_ydata()[0] for line in left.lines if line.get_marker() == "D"] == [0.5]
    text = study.r_squared_caption(found, table.sort_values("panel"))
    assert "place of this bird among the 5 by R² of the power model: conv1: 1; conv2, image: 5" in text

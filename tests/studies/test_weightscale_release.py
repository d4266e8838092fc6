"""The released arrays: read safely, re-clustered, explained. What needs them is skipped where they cannot be had."""

import hashlib
import io
import os
import pickle
import urllib.error
import urllib.request

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rwclib import clustering, data
from rwclib.errors import ConfigError, DataError
from rwclib.studies import weightscale
from rwclib.studies.layerwise import two_definitions
from rwclib.studies.weightscale import audit, release

HERE = (data.folder() / "published_rwc" / "rwc_resnet_cifar10.csv").exists()
needs_arrays = pytest.mark.skipif(not HERE, reason="the released arrays are not in $RWC_DATA_DIR/published_rwc")
CHANGES = {"conv1.weight": np.array([0.5, np.inf], dtype=np.float32), "fc.weight": [np.float32(1.0), np.float64(2.0)]}


@pytest.fixture(scope="module")
def arrays():
    return release.available(["cifar10", "cifar100"])[0]


def saved(value):
    """The bytes that `numpy.save` writes for a pickled object, as the release's files are."""
    buffer = io.BytesIO()
    np.save(buffer, np.array(value, dtype=object), allow_pickle=True)
    return buffer.getvalue()


def read(content):
    return release.read_pickled(content, hashlib.sha256(content).hexdigest(), "the file")


def test_a_pickled_dictionary_of_arrays_is_read_whichever_numpy_wrote_it():
    start = saved(CHANGES)[: saved(CHANGES).index(b"\x80")]
    numpy_1 = start + pickle.dumps(np.array(CHANGES, dtype=object), protocol=3).replace(b"numpy._core", b"numpy.core")
    for content in (saved(CHANGES), numpy_1):
        assert read(content).to_dict("index") == {"conv1.weight": {1: 0.5, 2: np.inf}, "fc.weight": {1: 1.0, 2: 2.0}}


class Malicious:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def test_a_pickle_that_asks_for_anything_but_arrays_is_refused_and_runs_nothing(tmp_path):
    with pytest.raises(DataError, match="it asks for posix.mkdir"):
        read(saved({"conv1.weight": Malicious(tmp_path / "written")}))
    assert not (tmp_path / "written").exists()


def test_a_download_is_checked_and_kept(tmp_path, monkeypatch):
    content, asked = saved(CHANGES), []

    def answer(url, timeout):
        asked.append(url)
        return io.BytesIO(content)

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    with pytest.raises(DataError, match="is not the released file: its SHA-256 is"):
        release.published_rwc("resnet34", "svhn", tmp_path)
    assert not list(tmp_path.rglob("*.csv"))
    name, _ = release.FILES["resnet34", "svhn"]
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(release.FILES, ("resnet34", "svhn"), (name, digest))
    first = release.published_rwc("resnet50", "svhn", tmp_path)  # the release's name for it
    again = release.published_rwc("resnet34", "svhn", tmp_path)
    pd.testing.assert_frame_equal(first, again, check_names=False, check_column_type=False)
    assert len(asked) == 2
    assert asked[0].endswith(name)


def test_an_array_that_cannot_be_had_gives_one_sentence(tmp_path, monkeypatch):
    def fail(url, timeout):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", fail)
    with pytest.raises(DataError, match=r"expected .*rwc_resnet_svhn\.csv, and https.*\(no network\)") as error:
        release.published_rwc("resnet34", "svhn", tmp_path)
    assert "\n" not in str(error.value)
    table, missing = release.available(data_dir=tmp_path)
    assert table.empty
    assert len(missing) == 6
    with pytest.raises(ConfigError, match="no released array of resnet18 on cifar10"):
        release.published_rwc("resnet18", "cifar10")


@needs_arrays
def test_every_cluster_size_and_printed_centroid_of_the_resnets_is_reproduced(arrays):
    table = audit.centroids(arrays)
    assert table.groupby("dataset").size().to_dict() == {"cifar10": 4, "cifar100": 4}
    assert table["layers"].tolist() == table["published layers"].tolist()
    for epoch in (1, 2):
        assert table[f"epoch {epoch}"].to_numpy() == pytest.approx(table[f"epoch {epoch}, published"], abs=1e-4)


@needs_arrays
def test_every_published_partition_is_a_fixed_point_of_the_published_inertia(arrays):
    panels = list(audit.panels(arrays))
    assert len(panels) == 2 + 2 * 4
    for panel, ours in panels:
        curves = ours.curves.to_numpy()
        assert curves.shape == (len(panel["labels"]), 25)
        assert (panel["k"], sorted(panel["sizes"])) == (ours.published, sorted(np.bincount(panel["labels"])))
        assert clustering.is_fixed_point(curves, panel["labels"]), panel
        if "inertia" in panel:
            assert clustering.partition(curves, panel["labels"]).inertia == pytest.approx(panel["inertia"], abs=1e-6)


@needs_arrays
def test_scree_values_agree_with_an_independent_computation(arrays):
    """That is the best of 50 starts of k-means, to four decimals: never less than the search finds, up to a tenth more."""
    for panel, ours in audit.panels(arrays):
        table = weightscale.figures.scree(ours.curves.to_numpy()).set_index("space")["inertia"]
        for space, known in (("epochs", np.array(panel["scree"])), ("2-D", np.array(panel["scree_2d"]))):
            inertia = table[space].to_numpy()
            assert (inertia <= known * (1 + 1e-3) + 1e-4).all()
            assert (inertia >= known * 0.9 - 1e-4).all()
            assert inertia[:2] == pytest.approx(known[:2], rel=1e-4, abs=1e-4)


@needs_arrays
def test_the_released_resnet_is_a_resnet34_whose_infinity_is_an_initial_zero(arrays):
    table = audit.identity(arrays).set_index("network")
    assert table["released names"].to_dict() == {"released": True, "ResNet-50": False, "ResNet-34": True}
    infinite = audit.infinities(arrays)
    assert infinite[["layer", "epoch"]].values.tolist() == [["layer4.2.conv2.weight", 1]] * 2
    zeros = two_definitions.exact_zeros(networks=["resnet34"]).set_index("seed")["layers"]
    assert zeros[0] == zeros[42] == "layer4.2.conv2.weight"


@needs_arrays
def test_published_partitions_are_found_again_but_not_by_every_seed(arrays):
    table = audit.recluster(arrays, repeats=20)
    assert len(table) == 10
    assert table["fixed point"].all()
    assert (table["best"] <= table["inertia"] + 1e-9).all()
    searched = [529.0968, 818.4594, 0.8707, 60.2890, 16.2792, 54.6104, 54.6686, 767.7215, 245.1596, 822.3715]
    assert table["best"].tolist() == pytest.approx(searched, abs=1e-4)  # 6,000 starts of another program, in C
    resnets = table[table["model"] == "resnet34"]
    assert resnets["largest"].to_numpy() == pytest.approx(1.0)  # label by label
    assert resnets["published sizes"].tolist() == resnets["best sizes"].tolist() == [[1, 2, 14, 18], [1, 4, 14, 16]]
    assert (table["ARI least"] < 0.5).any()


@needs_arrays
def test_depthwise_changes_are_flat_once_divided_by_the_share_with_a_gradient(arrays):
    stages = audit.depthwise(arrays, "cifar10").groupby("stage")[["median", "median / fraction"]].median()
    spread = stages.max() / stages.min()
    assert spread["median"] > 20
    assert spread["median / fraction"] < 4


@needs_arrays
def test_the_claims_are_judged_on_the_released_arrays_themselves_without_an_interval(arrays):
    table = audit.released(arrays)
    assert set(table["claim"]) == {"W1", "W2", "W4", "W5", "W7"}  # no SVHN here, and no accuracies
    change = arrays[(arrays["model"] == "resnet34") & (arrays["dataset"] == "cifar10") & (arrays["epoch"] > 1)]
    medians = change.groupby("depth")["rwc_elementwise"].median()
    rank = stats.spearmanr(medians.index, medians).statistic
    (effect,) = table.loc[table["comparison"] == "resnet34 cifar10: Spearman of depth and change", "effect"].unique()
    assert effect == pytest.approx(rank)
    assert rank > 0.5
    assert table.groupby("claim")["verdict"].agg(list).to_dict() == {
        "W1": ["fails"], "W2": ["fails", "holds"], "W4": ["holds"] * 2, "W5": ["holds"], "W7": ["holds"] * 2,
    }  # fmt: skip


def test_kernel_taps_that_only_see_padding_get_no_gradient():
    small, large = (audit.gradient_fractions(size, width=8).set_index("layer") for size in (32, 64))
    stage, small, large = small["stage"], small["fraction"], large["fraction"]
    assert (small[stage < 4] == 1).all()
    assert small[stage == 4].to_numpy() == pytest.approx(9 / 25)  # 5x5 kernels on 2x2 maps
    assert small[stage == 5].to_numpy()[1:] == pytest.approx(1 / 25)  # on 1x1 maps
    assert small[stage == 6].to_numpy() == pytest.approx(1 / 9)
    assert (large[stage < 5] == 1).all()


def test_spikes_are_made_by_single_weights_near_zero():
    table = audit.trace()
    top = table.loc[(table["rwc_elementwise"] / table.groupby("layer")["rwc_elementwise"].transform("median")).idxmax()]
    assert top["largest share"] > 0.3
    assert top["weight"] < 1e-3
    assert np.isfinite(table["rwc"]).all()

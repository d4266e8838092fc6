"""The language model and the freezing runs: small trainings, and claims judged on planted tables."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from rwclib.analysis import claims
from rwclib.runs.config import PROFILES
from rwclib.studies.extensions import experiments, freezing, language


def table_of(profile, decay, seed, block_growth=1.2, noise=0.01):
    """Planted: block b changes by `block_growth` to the power b, half of that without decay; norms stay."""
    rng = np.random.default_rng(seed)
    steps, window = language.SIZES[profile]
    rows = []
    names = [
        f"blocks.layers.{b}.{prefix}{end}"
        for b in range(4)
        for end in language.KINDS
        for prefix in ["self_attn." * ("proj" in end)]
    ]
    for step, span, name in itertools.product(range(window, steps + 1, window), ("window", "step"), names):
        change = 0.05 * block_growth ** int(name.split(".")[2]) * (1 if decay else 0.5) * np.exp(noise * rng.normal())
        if span == "step":
            change = experiments.WALK.step * np.exp(noise * rng.normal())
        rows.append((step, span, name, 1, 100, change, 8 * change, change, 3.0, 1.0))
    return pd.DataFrame(rows, columns=["step", "span", "layer", "depth", "size", "rwc", "rwc_elementwise", "l2_ratio", "l2_norm", "loss"])  # fmt: skip


def judged(monkeypatch, tables, letter):
    for module, name in ((language.language, "language"), (freezing.freezing, "freezing")):
        monkeypatch.setattr(module, "known", lambda *inputs, name=name: tables.get((name, *inputs)))
    chosen = [claim for claim in experiments.CLAIMS if claim.id[0] == letter]
    return claims.verdicts(claims.details(experiments.values(), chosen, list(PROFILES))).set_index("claim")["verdict"]


@pytest.mark.parametrize(("growth", "verdict"), [(1.2, "holds"), (0.8, "fails"), (1.0, "fails")])
def test_the_claims_about_language_follow_planted_tables(monkeypatch, growth, verdict):
    keys = itertools.product(["quick"], language.DECAYS, language.SEEDS)
    tables = {("language", *key): table_of(*key, block_growth=growth) for key in keys}
    found = judged(monkeypatch, tables, "N")
    assert set(found["N1"]) == {verdict}
    assert found["N2"] == "holds"
    assert set(found["N3"]) == {"holds"}
    assert found["N4"] == "holds"


@pytest.mark.parametrize(("gain", "verdicts"), [(0.0, ["holds", "fails", "fails"]), (3.0, ["fails", "holds", "fails"])])
def test_the_claims_about_freezing_follow_planted_tables(monkeypatch, gain, verdicts):
    tables = {}
    for schedule, share, seed in itertools.product(freezing.SCHEDULES, freezing.SHARES, freezing.SEEDS):
        for number, arm in enumerate([freezing.ALL, *freezing.ARMS]):
            spared = 0.0 if arm == freezing.ALL else share
            top1 = 60 + np.arange(8) + 0.05 * np.sin(seed + number) + (gain if arm == "lowest RWC" else 0)
            seconds = (1 + seed) * np.concatenate([[1], 1 + np.arange(1, 8) * (1 - spared / 2)])
            tables["freezing", "quick", "cifar10", schedule, arm, spared, seed] = pd.DataFrame(
                {"top1": top1, "seconds": seconds}
            )
    assert judged(monkeypatch, tables, "F").tolist() == verdicts
    of = experiments.runs_of_freezing("quick", "cifar10", "constant", 0.4, 0)
    top1 = experiments.accuracies(of)
    assert top1["bottom up"] == pytest.approx(66, abs=0.1)  # the mean of 65, 66 and 67
    assert top1["all train, same time"] == pytest.approx(64.8, abs=0.1)  # its last epochs end at 5, 5.8 and 6.6


def test_frozen_backward_work_is_that_of_a_count_by_hand():
    """ResNet-18's stem and the convolution behind it: gradients of weights and of inputs cost what the forward pass does."""
    config = freezing.run_config("smoke", "cifar10", 0)
    whole = freezing.backward_flops(config, frozenset())
    stem = 2 * 2 * 32 * 32 * 3 * 9 * 8  # two images, multiply and add, 3x3 filters from 3 to width 8
    assert whole - freezing.backward_flops(config, frozenset(["conv1.weight"])) == stem + 2 * (2 * 32 * 32 * 8 * 9 * 8)


def test_the_arms_spare_what_they_should():
    table = freezing.freezing.__wrapped__("smoke", "cifar10", "cosine", "bottom up", 0.2, 0)
    assert table["frozen"].tolist()[0] == 0 < table["frozen"].iloc[-1]
    assert table["spared"].mean() == pytest.approx(0.2, abs=0.05)
    assert table["seconds"].is_monotonic_increasing


def test_the_transformer_sees_no_future_and_reads_the_help_pages():
    torch.manual_seed(0)
    network, (train, test) = language.Transformer().eval(), language.text()
    assert 300_000 < len(train) < 10 * len(test)
    ids = train[:64][None]
    changed = ids.clone()
    changed[0, 40:] = 0
    with torch.no_grad():
        first, second = network(ids), network(changed)
    assert torch.allclose(first[:, :40], second[:, :40], atol=1e-5)
    assert not torch.allclose(first[:, 40:], second[:, 40:], atol=1e-3)
    assert first.shape == (1, 64, len(language.ALPHABET))


def test_a_small_training_measures_steps_and_windows():
    table = language.language.__wrapped__("smoke", 0.1, 0)
    steps, window = language.SIZES["smoke"]
    for _, rows in table.groupby("span"):
        assert rows["step"].unique().tolist() == list(range(window, steps + 1, window))
    assert table["loss"].iloc[-1] < 0.8 * table["loss"].iloc[0]
    rows = experiments.layers(table, "smoke")
    assert sorted(rows["kind"].unique()) == sorted(language.KINDS.values())
    medians = rows.groupby("span")["l2_ratio"].median()
    assert medians["step"] < medians["window"] < window * medians["step"]

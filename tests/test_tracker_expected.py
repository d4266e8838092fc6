"""tracker.expected against networks in training, and every reason for having no number."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from rwclib import RWCTracker, theory
from rwclib.errors import ConfigError

X = torch.randn(512, 20, generator=torch.Generator().manual_seed(3))
REASONS = ["layer", "rwc", "l2_ratio", "reason"]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(20, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(),
        nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def sgd(model: nn.Module, **more: object) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-3, **more})


OPTIMIZERS = {
    "SGD with momentum": sgd,
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_batch_norm_net_moves_as_expected_step_by_step(name):
    model = network()
    optimizer, tracker = OPTIMIZERS[name](model), RWCTracker(model)
    y = torch.randint(0, 10, (512,))
    for step in range(2500):
        chosen = torch.randint(0, 512, (32,))
        optimizer.zero_grad()
        functional.cross_entropy(model(X[chosen]), y[chosen]).backward()
        optimizer.step()
        if step == 1999:
            tracker.rebase()
        elif step >= 2000:
            tracker.step()
    expected = tracker.expected(optimizer, 1, X[:64]).set_index("layer")
    assert list(expected["reason"] == "") == [True, True, False]
    measured = tracker.table().groupby("layer", sort=False)[["rwc", "l2_ratio"]].agg(lambda v: np.sqrt((v**2).mean()))
    covered = expected.index[:2]
    ratio = measured.loc[covered] / expected.loc[covered, ["rwc", "l2_ratio"]]
    assert ratio.to_numpy().min() > 0.85, ratio
    assert ratio.to_numpy().max() < 1.15, ratio


def test_each_layer_has_its_own_group_or_a_reason():
    model = nn.Sequential(
        *network(), nn.LayerNorm(10), nn.Linear(10, 10, bias=False), nn.LayerNorm(10), nn.Linear(10, 3)
    )
    model[3].requires_grad_(False)
    model.append(nn.BatchNorm1d(3))
    groups = [
        {"params": [model[0].weight, model[3].weight]},
        {"params": [model[8].weight], "lr": 0.4},
        {"params": [model[10].weight], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1, weight_decay=1e-3)
    tracker = RWCTracker(model)
    table = tracker.expected(optimizer, 5, X)
    assert list(table.columns) == REASONS
    reasons = ["", "frozen", "not scale-invariant", "", "no equilibrium without weight decay"]
    for reason, known in zip(table["reason"], reasons, strict=True):
        assert reason.startswith(known), reason
        assert bool(reason) == bool(known), reason
    assert table["rwc"].isna().tolist() == [bool(reason) for reason in reasons]
    assert table["l2_ratio"].dropna().tolist() == [theory.sgd(lr, 1e-3).change(5) for lr in (0.1, 0.4)]

    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    optimizer.step()
    schedule.step()  # the present learning rate counts
    invariant = theory.scale_invariant(model, X)
    later = tracker.expected(optimizer, 5, invariant=invariant)
    assert later["rwc"].dropna().tolist() == [theory.sgd(lr, 1e-3).change(5) for lr in (0.05, 0.2)]
    assert tracker.expected(optimizer, 5, invariant={})["reason"].eq("not known whether it is scale-invariant").all()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda model: sgd(model, weight_decay=0), "no equilibrium without weight decay"),
        (lambda model: sgd(model[:1]), "not among the optimizer's parameters"),
        (lambda model: torch.optim.Adam(model.parameters(), weight_decay=0.1), "Adam with an L2 penalty"),
        (lambda model: torch.optim.RMSprop(model.parameters(), weight_decay=0.1), "no equilibrium is known for optimizer RMSprop"),
    ],
)  # fmt: skip
def test_optimizers_that_the_theory_does_not_cover(make, reason):
    model = network()
    table = RWCTracker(model, "3.*").expected(make(model), 1, X)
    assert table["rwc"].isna().all()
    assert table["reason"].str.startswith(reason).all()


def test_parametrised_layers_have_no_parameter_of_their_own():
    model = network()
    weight_norm(model[3])
    table = RWCTracker(model, effective=True).expected(sgd(model), 1, X)
    assert table["reason"].str[:8].tolist() == ["", "computed", "not scal"]


def test_bad_requests():
    model = network()
    tracker, optimizer = RWCTracker(model), sgd(model)
    with pytest.raises(ConfigError, match="needs a batch of the model's inputs"):
        tracker.expected(optimizer, 1)
    with pytest.raises(ConfigError, match="needs the optimizer"):
        tracker.expected(model, 1, X)
    for steps in (0, 1.5, None):
        with pytest.raises(ConfigError, match="steps must be a whole number"):
            tracker.expected(optimizer, steps, X)
    with pytest.raises(ConfigError, match="does not run on these inputs"):
        tracker.expected(optimizer, 1, [X, X])
    with pytest.raises(ConfigError, match="call that first"):
        tracker.plot(expected=True)


def test_the_plot_draws_it_dashed():
    model = network()
    tracker = RWCTracker(model)
    for step in range(3):
        model[0].weight.data *= 1.01 + step
        tracker.step()
    table = tracker.expected(sgd(model), 1, X)
    assert isinstance(table, pd.DataFrame)
    for expected in (True, table):
        axes = tracker.plot("l2_ratio", expected).axes[0]
        dashed = [line for line in axes.lines if line.get_linestyle() == "--" and np.isfinite(line.get_ydata()).all()]
        assert [line.get_ydata()[0] for line in dashed] == table["l2_ratio"].dropna().tolist()
        assert [text.get_text() for text in axes.get_legend().texts] == tracker.layers
        assert tracker.plot(expected=expected)._repr_png_()
    assert not any(line.get_linestyle() == "--" for line in tracker.plot().axes[0].lines)
    with pytest.raises(ConfigError, match="not cosine"):
        tracker.plot("cosine", expected=True)

"""Freezer and reset_layers: what is frozen stays bit for bit, what is reset comes back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import rwclib
from rwclib import RWCTracker, freezing
from rwclib.errors import ConfigError

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "sgd, not foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, foreach=False),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}
X, Y = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 5


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Flatten(), nn.Linear(128, 5),
    )  # fmt: skip


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=False)
        functional.cross_entropy(model(X), Y).backward()
        optimizer.step()


def parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_what_is_frozen_stays_bit_for_bit_and_the_rest_trains(model, make):
    """With momentum and second moments in the optimizer's state by then, and weight decay."""
    tracker, optimizer = RWCTracker(model), make(model.parameters())
    freezer = rwclib.Freezer(tracker, lambda table: ["3.weight"] if table["step"].max() == 2 else [])
    for new in ([], ["3.weight"]):
        train(model, optimizer)
        tracker.step()
        assert freezer.step() == new
    before = parameters(model)
    train(model, optimizer)
    same = {name for name, parameter in parameters(model).items() if torch.equal(parameter, before[name])}
    assert same == {"3.weight", "3.bias", "4.weight", "4.bias"}
    assert tracker.step()["3.weight"] == 0
    assert freezer.step() == []
    assert freezer.table()["frozen"].fillna(0).tolist() == [0, 2, 0]
    assert freezer.table()["saved"].tolist() == pytest.approx([0, 1 / 3, 0])


def test_the_backward_pass_ends_where_all_before_is_frozen(model):
    tracker = RWCTracker(model)
    tracker.step()
    rwclib.Freezer(tracker, lambda table: ["0.weight", "3.weight"]).step()
    assert not model[:6](X).requires_grad
    assert model(X).requires_grad


def test_the_rule_sees_the_layers_that_train_and_names_those_below_a_threshold(model):
    tracker, seen = RWCTracker(model), []
    below = freezing.below(0.5, "l2_ratio")

    def rule(table):
        seen.append(table["layer"].unique().tolist())
        return below(table)

    freezer = rwclib.Freezer(tracker, rule)
    with torch.no_grad():
        for layer, factor in ((0, 1.1), (3, 2.0), (7, 1.0)):
            model[layer].weight.mul_(factor)
    tracker.step()
    assert freezer.step() == ["0.weight", "7.weight"]
    with pytest.raises(ConfigError, match="with every layer frozen nothing is left to train"):
        rwclib.Freezer(tracker, lambda table: table["layer"]).step()
    freezer.step()
    assert seen == [["0.weight", "3.weight", "7.weight"], ["3.weight"]]
    with pytest.raises(ConfigError, match=r"no column 'l2_start'; known: rwc, "):
        rwclib.Freezer(tracker, freezing.below(0.1, "l2_start")).step()


def test_what_cannot_be_frozen_is_refused(model):
    with pytest.raises(ConfigError, match="use a tracker without it"):
        rwclib.Freezer(RWCTracker(model, effective=True), list)
    with pytest.raises(ConfigError, match="measured nothing yet"):
        rwclib.Freezer(RWCTracker(model), list).step()
    with pytest.raises(ConfigError, match="not Sequential and function"):
        rwclib.Freezer(model, lambda table: None)


def frozen_by(model, *names):
    freezing.freeze(model, names)
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def test_a_bias_goes_with_its_own_module_and_a_norm_with_the_layer_before():
    block = nn.TransformerEncoderLayer(8, 2, 16)
    assert frozen_by(block, "self_attn.out_proj.weight") == {"self_attn.out_proj.weight", "self_attn.out_proj.bias"}
    scaled = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4))
    assert frozen_by(scaled, "0.weight") == {"0.weight", "0.bias", "1.weight", "1.bias"}
    lstm = nn.Sequential(nn.LSTM(4, 4, num_layers=2), nn.Linear(4, 4))
    assert frozen_by(lstm, "0.weight_ih_l0", "0.weight_hh_l1") == {
        "0.weight_ih_l0", "0.bias_ih_l0", "0.weight_hh_l1", "0.bias_hh_l1"
    }  # fmt: skip


def test_freeze_takes_what_the_tracker_takes_and_says_what_it_froze(model):
    assert freezing.freeze(model, "[03].*") == [
        "0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias", "4.weight", "4.bias"
    ]  # fmt: skip
    assert freezing.freeze(model, ["0.weight"]) == []
    with pytest.raises(ConfigError, match="no weight tensor to freeze: body; known: 0.weight"):
        freezing.freeze(model, "body")


def test_a_name_that_is_no_layer_is_refused_and_nothing_frozen(model):
    tracker = RWCTracker(model)
    tracker.step()
    for named, said in (
        (["3.weight", "body"], "body"),
        ([True, 2], "True, 2"),
        (5, "5"),
        (tracker.table(), "step, layer, depth"),
    ):
        with pytest.raises(ConfigError, match=f"names of layers, not .*{said}.*; known: 0.weight, 3.weight, 7.weight"):
            rwclib.Freezer(tracker, lambda table, named=named: named).step()
        assert model[3].weight.requires_grad


def test_what_is_not_trained_by_others_is_no_business_of_the_rule(model):
    model[0].requires_grad_(False)
    tracker, seen = RWCTracker(model, layers=["0.weight", "3.weight"]), []
    freezer = rwclib.Freezer(tracker, lambda table: seen.append(table["layer"].tolist()) or table["layer"].to_numpy())
    for new in (["3.weight"], [], []):  # then no tracked layer trains any more, and that none moves is no surprise
        tracker.step()
        assert freezer.step() == new
    assert seen == [["3.weight"]]


def test_below_waits_and_never_stops_the_last_layer_that_trains(model):
    tracker = RWCTracker(model)
    freezer = rwclib.Freezer(tracker, freezing.below(1.0, after=200))
    for new in ([], ["3.weight", "7.weight"], []):
        with torch.no_grad():
            model[0].weight.mul_(1.1)
        tracker.step(at=(tracker.steps + 2) * 100)
        assert freezer.step() == new
    assert freezer.table()["frozen"].fillna(0).tolist() == [0, 2, 2]
    assert freezer.table()["saved"].tolist() == pytest.approx([0, 1 / 3, 1 / 3])


def test_an_earlier_state_trains_later_layers_again(model):
    model[1].bias.requires_grad_(False)  # by the user, who keeps it so
    tracker, optimizer = RWCTracker(model), OPTIMIZERS["sgd"](model.parameters())
    freezer = rwclib.Freezer(tracker, lambda table: [table["layer"].iloc[0]])
    train(model, optimizer)
    tracker.step()
    freezer.step()
    early = freezer.state_dict()
    train(model, optimizer)
    tracker.step()
    assert freezer.step() == ["3.weight"]
    freezer.load_state_dict(early)
    still = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert still == {"0.weight", "0.bias", "1.weight", "1.bias"}
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)  # other parameters, of the same names
    freezer.load_state_dict({"steps": 0, "frozen": {}})
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == ["1.bias"]


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_restart_goes_on_as_the_uninterrupted_training(model, make, tmp_path):
    def rule(table):
        return [f"{(0, 3)[len(seen) - 1]}.weight"] if len(seen) < 3 else []

    seen = []

    def epochs(model, tracker, freezer, optimizer, count):
        for _ in range(count):
            train(model, optimizer)
            tracker.step()
            seen.append(None)
            freezer.step()

    tracker, optimizer = RWCTracker(model), make(model.parameters())
    freezer = rwclib.Freezer(tracker, rule)
    epochs(model, tracker, freezer, optimizer, 1)
    saved = {"model": model, "optimizer": optimizer, "tracker": tracker, "freezer": freezer}
    torch.save({name: part.state_dict() for name, part in saved.items()}, tmp_path / "checkpoint.pt")
    epochs(model, tracker, freezer, optimizer, 3)

    other = copy.deepcopy(model).requires_grad_(True)
    again = RWCTracker(other)
    parts = {
        "model": other,
        "optimizer": make(other.parameters()),
        "tracker": again,
        "freezer": rwclib.Freezer(again, rule),
    }
    for name, state in torch.load(tmp_path / "checkpoint.pt").items():
        parts[name].load_state_dict(state)
    del seen[1:]
    epochs(other, again, parts["freezer"], parts["optimizer"], 3)
    for name, parameter in parameters(model).items():
        assert torch.equal(parameter, other.get_parameter(name)), name
    assert (
        parts["freezer"].state_dict() == freezer.state_dict() == {"steps": 4, "frozen": {"0.weight": 1, "3.weight": 2}}
    )
    assert again.table().equals(tracker.table())


def test_resetting_a_layer_shows_what_it_had_learned_and_leaves_the_model_as_it_was(model):
    start = copy.deepcopy(model.state_dict())
    train(model, OPTIMIZERS["sgd"](model[7:].parameters()), 30)
    trained = copy.deepcopy(model.state_dict())

    def accuracy(model):
        with torch.no_grad():
            return (model.eval()(X).argmax(1) == Y).float().mean().item()

    model.train()
    table = rwclib.reset_layers(model, start, accuracy).set_index("layer")
    assert all(module.training for module in model.modules())
    whole = accuracy(model)
    assert table["depth"].tolist() == [1, 2, 3]
    assert table.loc[["0.weight", "3.weight"], ["change", "l2_start"]].eq(0).all(axis=None)  # these did not train
    with torch.no_grad():
        model[7].weight.copy_(start["7.weight"])
    assert table.loc["7.weight", "value"] == accuracy(model) < whole
    assert table.loc["7.weight", "change"] == accuracy(model) - whole
    distance = (trained["7.weight"] - start["7.weight"]).norm() / start["7.weight"].norm()
    assert table.loc["7.weight", "l2_start"] == pytest.approx(distance.item())
    with torch.no_grad():
        model[7].weight.copy_(trained["7.weight"])
    assert all(torch.equal(value, trained[name]) for name, value in model.state_dict().items())


def test_a_failing_evaluation_leaves_the_model_as_it_was(model):
    start, calls = copy.deepcopy(model.state_dict()), []
    train(model, OPTIMIZERS["sgd"](model.parameters()))
    trained = parameters(model)

    def evaluate(model):
        calls.append(None)
        return 1 / (2 - len(calls))

    with pytest.raises(ZeroDivisionError):
        rwclib.reset_layers(model, start, evaluate)
    assert all(torch.equal(value, trained[name]) for name, value in parameters(model).items())


def test_a_start_that_is_the_model_or_lacks_a_layer_is_refused(model):
    with pytest.raises(ConfigError, match="start is what the model is now"):
        rwclib.reset_layers(model, model.state_dict(), lambda model: 0.0)
    start = {name: value for name, value in model.state_dict().items() if name != "3.weight"}
    with pytest.raises(ConfigError, match=r"3\.weight"):
        rwclib.reset_layers(model, start, lambda model: 0.0)

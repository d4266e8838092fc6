"""RWCTracker: right numbers through any training loop, wrapper, device placement and restart."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional

from rwclib import RWCTracker, metrics
from rwclib.errors import ConfigError
from rwclib.metrics import METRICS, Metric

LAYERS = ["stem.weight", "body.0.weight", "body.2.weight", "head.weight"]


class Net(nn.Module):
    """Three convolutions, a batch norm and a linear layer."""

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Sequential(nn.Conv2d(8, 16, 3, bias=False), nn.ReLU(), nn.Conv2d(16, 8, 1))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.norm(self.stem(x))).mean((2, 3)))


@pytest.fixture
def model() -> Net:
    torch.manual_seed(0)
    return Net()


def train(model: nn.Module) -> None:
    """One step of SGD with a batch of noise."""
    x = torch.randn(8, 3, 8, 8).to(next(model.parameters()).dtype)
    loss = functional.cross_entropy(model(x), torch.randint(0, 5, (8,)))
    model.zero_grad()
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.5).step()


def move(model: nn.Module) -> None:
    """Another way to change the weights: every one by a little."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.dim() > 1}


def expected(current: dict[str, Tensor], previous: dict[str, Tensor]) -> pd.DataFrame:
    """What the table must say for one step, from the metrics' own functions."""
    rows = []
    for name, w in current.items():
        p = previous[name]
        between = {key: getattr(metrics, key)(w, p) for key in METRICS if "norm" not in key}
        rows.append({**between, "l1_norm": metrics.l1_norm(w), "l2_norm": metrics.l2_norm(w)})
    return pd.DataFrame(rows, columns=list(METRICS))


def assert_last_step_is(tracker: RWCTracker, current: dict[str, Tensor], previous: dict[str, Tensor]) -> None:
    table = tracker.table()
    last = table.loc[table["step"] == table["step"].max(), list(METRICS)].reset_index(drop=True)
    pd.testing.assert_frame_equal(last, expected(current, previous), rtol=1e-6)


def test_table_equals_the_metrics_of_saved_snapshots(model):
    tracker = RWCTracker(model)
    saved = [snapshot(model)]
    for _ in range(3):
        train(model)
        tracker.step()
        saved.append(snapshot(model))
    parts = [expected(saved[i + 1], saved[i]) for i in range(3)]
    table = tracker.table()[list(METRICS)]
    pd.testing.assert_frame_equal(table, pd.concat(parts, ignore_index=True), rtol=1e-6)
    assert (table["rwc"] > 0).all()


def test_table_has_one_row_per_step_and_layer_with_step_depth_and_size(model):
    tracker = RWCTracker(model)
    assert len(tracker.table()) == 0
    assert not tracker.plot().axes[0].lines
    for _ in range(2):
        columns = list(tracker.table().columns)
        assert columns == ["step", "layer", "depth", "size", *METRICS]
        move(model)
        tracker.step()
    table = tracker.table()
    assert list(table["step"]) == [1] * 4 + [2] * 4
    assert list(table["layer"]) == LAYERS * 2
    assert list(table["depth"]) == [1, 2, 3, 4] * 2
    assert list(table["size"]) == [8 * 3 * 9, 16 * 8 * 9, 8 * 16, 5 * 8] * 2


def test_a_step_without_training_is_no_change(model):
    assert RWCTracker(model).step() == dict.fromkeys(LAYERS, 0.0)


def test_step_returns_rwc_by_layer(model):
    before, tracker = snapshot(model), RWCTracker(model)
    train(model)
    changes = tracker.step()
    assert list(changes) == tracker.layers == LAYERS
    now = snapshot(model)
    assert changes == {name: pytest.approx(metrics.rwc(now[name], before[name]), rel=1e-6) for name in LAYERS}


def test_history_has_steps_and_layers_of_every_metric_and_is_a_copy(model):
    tracker = RWCTracker(model)
    for steps in (0, 1):
        history = tracker.history()
        assert tracker.steps == steps
        assert {name: values.shape for name, values in history.items()} == dict.fromkeys(METRICS, (steps, 4))
        train(model)
        tracker.step()
    history["rwc"].zero_()
    assert tracker.history()["rwc"].min() > 0


def test_a_metric_is_one_entry_and_older_states_have_it_missing(model, monkeypatch):
    tracker = RWCTracker(model)
    tracker.step()
    older = copied(tracker.state_dict())
    mean = Metric("l1_mean", "mean absolute weight", "", lambda sums: sums.l1 / sums.size)
    monkeypatch.setitem(METRICS, "l1_mean", mean)
    tracker = RWCTracker(model)
    tracker.load_state_dict(older)
    move(model)
    rwc = tracker.step()
    table = tracker.table()
    assert table["l1_mean"].isna().tolist() == [True] * 4 + [False] * 4
    assert table["l1_mean"].tolist()[4:] == (table["l1_norm"] / table["size"]).tolist()[4:]
    assert table["rwc"].tolist() == [0] * 4 + list(rwc.values())
    assert tracker.plot("l1_mean").axes[0].get_ylabel() == "mean absolute weight"


def test_tracking_changes_neither_weights_nor_gradients_nor_the_global_generator(model):
    train(model)
    weights, gradients = snapshot(model), {n: p.grad.clone() for n, p in model.named_parameters()}
    state = torch.get_rng_state()
    tracker = RWCTracker(model)
    with pytest.warns(RuntimeWarning, match="no tracked weight has moved"):
        tracker.step()
    assert all(torch.equal(weights[name], w) for name, w in snapshot(model).items())
    assert all(torch.equal(gradients[name], p.grad) for name, p in model.named_parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_no_hooks_are_registered_on_the_model(model):
    tracker = RWCTracker(model)
    train(model)
    tracker.step()
    for module in model.modules():
        hooks = [value for name, value in vars(module).items() if "hooks" in name and "with_kwargs" not in name]
        assert len(hooks) >= 4
        assert not any(hooks)
    for parameter in model.parameters():
        assert not parameter._backward_hooks
        assert not parameter._post_accumulate_grad_hooks


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "torch.compile": torch.compile,
    "compiled DataParallel": lambda model: torch.compile(nn.DataParallel(model)),
    "DataParallel of compiled": lambda model: nn.DataParallel(torch.compile(model)),
    "averaged": torch.optim.swa_utils.AveragedModel,
}


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_names_of_wrapped_models_are_those_of_the_model(model, wrap):
    wrapped = WRAPPERS[wrap](model)
    assert wrapped is not model
    assert all(name not in LAYERS for name, _ in wrapped.named_parameters())
    assert RWCTracker(wrapped).layers == LAYERS


def test_wrappers_deep_inside_a_model_leave_no_trace_in_the_names(model):
    outer = nn.ModuleDict({"encoder": nn.DataParallel(model.body), "head": nn.DataParallel(model.head)})
    assert RWCTracker(outer).layers == ["encoder.0.weight", "encoder.2.weight", "head.weight"]


def test_a_layer_whose_own_name_looks_like_a_wrapper_is_not_lost():
    model = nn.ModuleDict({"module": nn.Linear(2, 3), "head": nn.Linear(3, 2)})
    model.register_parameter("weight", nn.Parameter(torch.ones(4, 4)))  # beside module.weight
    assert len(RWCTracker(model).layers) == 3


@pytest.mark.parametrize("tracked", ["wrapper", "model"])
@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_training_through_a_wrapper_is_tracked(model, wrap, tracked):
    wrapped = wrap(model)
    tracker, before = RWCTracker(wrapped if tracked == "wrapper" else model), snapshot(model)
    train(wrapped)
    assert min(tracker.step().values()) > 0
    assert_last_step_is(tracker, snapshot(model), before)


@pytest.mark.parametrize(
    ("glob", "layers"),
    [
        ("*", LAYERS),
        ("body.*", LAYERS[1:3]),
        ("head.weight", LAYERS[3:]),
        ("body.[!0].*", LAYERS[2:3]),
        ("*.2.*", LAYERS[2:3]),
    ],
)
def test_a_glob_chooses_layers_by_name(model, glob, layers):
    assert RWCTracker(model, layers=glob).layers == layers
    assert RWCTracker(nn.DataParallel(model), layers=glob).layers == layers


@pytest.mark.parametrize("glob", ["layer9.*", "BODY.*", "stem.bias", "body"])
def test_a_glob_without_a_match_is_an_error_that_names_it(model, glob):
    with pytest.raises(ConfigError) as error:
        RWCTracker(model, layers=glob)
    assert repr(glob) in str(error.value)


def test_a_predicate_chooses_by_name_and_parameter(model):
    assert RWCTracker(model, lambda name, p: p.dim() == 4 and name != "stem.weight").layers == LAYERS[1:3]


def test_a_predicate_may_admit_vectors(model):
    tracker, before = RWCTracker(model, lambda name, p: name.startswith("head")), model.head.bias.detach().clone()
    assert tracker.layers == ["head.weight", "head.bias"]
    train(model)
    assert tracker.step()["head.bias"] == pytest.approx(metrics.rwc(model.head.bias, before), rel=1e-6)


@pytest.mark.parametrize("model", [nn.Sequential(), nn.ReLU(), nn.BatchNorm1d(4)], ids=["empty", "relu", "norm"])
@pytest.mark.parametrize("layers", [None, lambda name, parameter: False], ids=["all", "none"])
def test_a_model_without_weight_tensors_is_an_error(model, layers):
    with pytest.raises(ConfigError, match="no weight tensors"):
        RWCTracker(model, layers)


def test_tied_weights_are_counted_once():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(11, 6)
            self.output = nn.Linear(6, 11)
            self.output.weight = self.embedding.weight

    assert RWCTracker(Tied()).layers == ["embedding.weight"]


def test_reference_weights_on_the_cpu_give_the_same_table(model):
    beside, offloaded = RWCTracker(model), RWCTracker(model, offload="cpu")
    for _ in range(3):
        train(model)
        assert beside.step() == pytest.approx(offloaded.step(), rel=1e-6)
    pd.testing.assert_frame_equal(beside.table(), offloaded.table(), rtol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("offload", "device"), [(None, "cuda"), ("cpu", "cpu")])
def test_reference_weights_stay_beside_the_weights_or_on_the_cpu(model, offload, device):
    on_cpu = RWCTracker(copy.deepcopy(model))
    tracker = RWCTracker(model.cuda(), offload=offload)
    move(model)
    on_cpu._model.load_state_dict(model.state_dict())
    assert tracker.step() == pytest.approx(on_cpu.step(), rel=1e-5)
    assert {w.device.type for name, w in tracker.state_dict().items() if name.startswith("reference.")} == {device}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_on_several_devices_is_tracked(model):
    model.head.cuda()
    tracker, before = RWCTracker(model), snapshot(model)
    move(model)
    tracker.step()
    assert_last_step_is(tracker, snapshot(model), before)


@pytest.mark.parametrize("offload", ["gpu", "CPU", "", True])
def test_an_unknown_offload_is_an_error_that_names_it(model, offload):
    with pytest.raises(ConfigError, match="offload") as error:
        RWCTracker(model, offload=offload)
    assert repr(offload) in str(error.value)


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


@pytest.mark.parametrize("store", [copied, lambda state: load(save(state))], ids=["memory", "safetensors"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_restored_tracker_continues_as_the_uninterrupted_one(model, store, memory_format, steps):
    whole = RWCTracker(model.to(memory_format=memory_format))
    history = {f"history.{name}" for name in (*METRICS, "step", "depth", "size")}
    names = {"layers", "calls", *history, *(f"reference.{name}" for name in LAYERS)}
    assert set(whole.state_dict()) == names
    for _ in range(steps):
        train(model)
        whole.step()
    state = store(whole.state_dict())
    train(model)
    restored = RWCTracker(model)  # begins at other weights than those of the state
    restored.load_state_dict(state)
    pd.testing.assert_frame_equal(restored.table(), whole.table(), check_exact=True)
    for _ in range(2):
        assert restored.step() == whole.step()
        train(model)
    pd.testing.assert_frame_equal(restored.table(), whole.table(), check_exact=True)


def test_a_tracker_that_has_stepped_can_be_set_back(model):
    tracker = RWCTracker(model)
    start, weights = copied(tracker.state_dict()), copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model.head.weight.mul_(100)
    tracker.step()
    model.load_state_dict(weights)
    tracker.load_state_dict(start)
    assert tracker.step() == dict.fromkeys(LAYERS, 0)
    with torch.no_grad():
        model.head.weight.mul_(2)
    assert tracker.step()["head.weight"] == pytest.approx(1)
    assert list(tracker.table()["step"].unique()) == [1, 2]


@pytest.mark.parametrize("known", [False, True])
def test_norms_of_the_weights_before_are_those_of_the_state_that_was_loaded(model, known):
    tracker, other = RWCTracker(model), RWCTracker(model)
    if known:
        other.step()
    state = copied(other.state_dict())
    with torch.no_grad():
        model.head.weight.mul_(100)
    tracker.step()
    tracker.load_state_dict(state)
    assert tracker.step()["head.weight"] == pytest.approx(99)


def test_state_of_other_layers_is_an_error_that_names_the_differing_ones(model):
    state = RWCTracker(model, "body.*").state_dict()
    with pytest.raises(ConfigError, match=r"head\.weight, stem\.weight"):
        RWCTracker(model).load_state_dict(state)


@pytest.mark.parametrize("in_channels", [1, 2])
def test_state_of_layers_of_other_shape_is_an_error_and_changes_nothing(model, in_channels):
    tracker = RWCTracker(model)
    before = copied(tracker.state_dict())
    with pytest.raises(ConfigError, match=r"stem\.weight"):
        tracker.load_state_dict(RWCTracker(Net(in_channels)).state_dict())
    assert all(torch.equal(tracker.state_dict()[name], tensor) for name, tensor in before.items())


def test_a_layer_that_was_all_zero_gives_nan_with_one_warning_over_all_steps(model):
    nn.init.zeros_(model.head.weight)
    tracker = RWCTracker(model)
    with pytest.warns(RuntimeWarning, match=r"NaN for head\.weight") as caught:
        steps = [tracker.step() for _ in range(3)]
    assert len(caught) == 1
    for step in steps:
        assert step["head.weight"] != step["head.weight"]
        assert [step[name] for name in LAYERS[:3]] == [0, 0, 0]
    assert tracker.table().groupby("layer")["rwc"].count()["head.weight"] == 0  # non-missing values


def test_a_layer_that_was_all_zero_recovers_once_it_has_moved(model):
    nn.init.zeros_(model.head.weight)
    tracker = RWCTracker(model)
    nn.init.ones_(model.head.weight)
    with pytest.warns(RuntimeWarning):
        tracker.step()
    nn.init.constant_(model.head.weight, 1.5)
    assert tracker.step()["head.weight"] == 0.5


def test_the_warning_points_at_the_line_that_called_step(model):
    nn.init.zeros_(model.head.weight)
    with pytest.warns(RuntimeWarning) as caught:
        RWCTracker(model).step()
    assert Path(caught[0].filename) == Path(__file__)


def test_weights_that_become_finite_again_are_not_called_zero(model):
    healthy, tracker = copy.deepcopy(model.state_dict()), RWCTracker(model)
    with torch.no_grad():
        model.head.weight[0, 0] = torch.nan
    broken = tracker.step()  # a warning would be an error here and below
    model.load_state_dict(healthy)
    for changes in (broken, tracker.step()):
        assert changes["head.weight"] != changes["head.weight"]
        assert [changes[name] for name in LAYERS[:3]] == [0, 0, 0]
    assert tracker.step()["head.weight"] == 0


CONVERSIONS = {
    "channels_last": {"memory_format": torch.channels_last},
    "bfloat16": {"dtype": torch.bfloat16},
    "float64": {"dtype": torch.float64},
}


@pytest.mark.parametrize("conversion", CONVERSIONS)
def test_converting_the_model_between_steps_is_survived(model, conversion):
    tracker, before = RWCTracker(model), snapshot(model)
    model.to(**CONVERSIONS[conversion])
    for _ in range(2):
        move(model)
        tracker.step()
        now = snapshot(model)
        assert_last_step_is(tracker, now, before)
        before = now
    train(model)
    assert min(tracker.step().values()) > 0


@pytest.mark.filterwarnings("ignore:no tracked weight has moved")
def test_back_and_forth_between_memory_formats_is_no_change(model):
    tracker = RWCTracker(model)
    for memory_format in (torch.channels_last, torch.contiguous_format):
        model.to(memory_format=memory_format)
        assert set(tracker.step().values()) == {0}


def test_reassigned_data_and_replaced_parameters_are_seen(model):
    tracker, before = RWCTracker(model), snapshot(model)
    model.head.weight.data = torch.randn(5, 8)
    model.stem.weight = nn.Parameter(torch.randn(8, 3, 3, 3))
    changes = tracker.step()
    assert_last_step_is(tracker, snapshot(model), before)
    assert changes["body.0.weight"] == 0
    assert changes["head.weight"] > 0


@pytest.mark.parametrize("metric", METRICS)
def test_plot_has_one_line_per_layer_and_labelled_axes(model, metric):
    from matplotlib.figure import Figure

    tracker = RWCTracker(model)
    for _ in range(2):
        train(model)
        tracker.step()
    figure = tracker.plot(metric)
    axes = figure.axes[0]
    assert isinstance(figure, Figure)
    assert len(axes.lines) == len(LAYERS)
    assert axes.get_xlabel() == "step"
    assert axes.get_ylabel()
    for line, layer in zip(axes.lines, LAYERS, strict=True):
        table = tracker.table()
        assert list(line.get_xdata()) == [1, 2]
        assert list(line.get_ydata()) == list(table.loc[table["layer"] == layer, metric])


def test_what_is_no_model_is_one_sentence():
    with pytest.raises(ConfigError, match=r"needs the model itself, a torch.nn.Module, not str"):
        RWCTracker("resnet18")


@pytest.mark.parametrize(("last", "scale"), [(0.5, "linear"), (50.0, "log")])
def test_plot_is_logarithmic_over_a_decade(last, scale):
    model = nn.Sequential(nn.Linear(4, 3))
    tracker = RWCTracker(model)
    for factor in (1.5, 1 + last):
        with torch.no_grad():
            model[0].weight *= factor
        tracker.step()
    assert tracker.plot().axes[0].get_yscale() == scale


def test_plot_of_an_unknown_metric_is_an_error_that_lists_the_known_ones(model):
    with pytest.raises(ValueError, match="'l3_norm'") as error:
        RWCTracker(model).plot("l3_norm")
    assert all(name in str(error.value) for name in METRICS)

"""RWCTracker in other people's loops: default types and devices, wrappers, changing models, and its options."""

from __future__ import annotations

import copy
import time
from contextlib import nullcontext

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load, save, save_file
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils._python_dispatch import TorchDispatchMode

from rwclib import RWCTracker, clustering, metrics
from rwclib.errors import ConfigError
from rwclib.metrics import METRICS
from rwclib.tracker import weight_tensors


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def grow(model: nn.Module, share: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + share)


@pytest.fixture
def default_dtype():
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_default_types_and_devices_change_no_number(dtype, default_dtype):
    w = 0.02 * torch.randn(400, 400, generator=torch.Generator().manual_seed(0))
    model, expected = net(), {name: getattr(metrics, name)(w * (1 + 1e-6), w) for name in ("rwc", "l2_ratio")}
    default_dtype(dtype)
    with torch.device("meta"):
        assert metrics.rwc(2 * w, w) == 1
        assert {name: getattr(metrics, name)(w * (1 + 1e-6), w) for name in expected} == expected
        tracker = RWCTracker(model, start=True, neurons=True)
        grow(model, 0.5)
        assert list(tracker.step().values()) == pytest.approx([0.5] * 3)
        assert tracker.table()["l2_start"].tolist() == pytest.approx([0.5] * 3)
        tracker.load_state_dict(tracker.state_dict())
    assert expected["rwc"] == pytest.approx(1e-6, rel=0.2)


def test_complex_weights_are_measured_by_their_moduli():
    now, before = torch.tensor([[3 + 4j]]), torch.tensor([[3 + 0j]])
    assert metrics.rwc(now, before) == pytest.approx(4 / 3)
    assert metrics.rwc_elementwise(now, before) == pytest.approx(4 / 3)
    assert metrics.l2_norm(now) == metrics.l1_norm(now) == pytest.approx(5)
    assert metrics.cosine(now, before) == pytest.approx(3 / 5)


def test_float64_weights_are_measured_in_float64():
    model = net().double()
    tracker = RWCTracker(model)
    grow(model, 1e-9)
    assert list(tracker.step().values()) == pytest.approx([1e-9] * 3, rel=1e-5)
    huge = torch.full((3, 3), 1e200, dtype=torch.float64)
    assert metrics.rwc(1.5 * huge, huge) == pytest.approx(0.5)
    assert metrics.l1_norm(huge) == pytest.approx(9e200)


def test_arrays_are_measured_like_tensors():
    assert metrics.rwc(np.array([2.0, 4.0]), np.array([1.0, 2.0])) == 1


class NoFloat64(TorchDispatchMode):
    """Fails where an operation away from the CPU gives float64; for want of another device, where any does."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        assert not (isinstance(result, torch.Tensor) and result.dtype == torch.float64), func
        return result


def test_no_operation_on_a_device_is_in_float64():
    from rwclib._extras import _on_device

    w, p = torch.randn(2, 50)
    with NoFloat64():
        metrics._sums_on_device(w, p)
        _on_device(w, p)


class Pair(nn.Module):
    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            self.add_module(name, nn.Linear(4, 4))


def test_a_history_goes_to_its_layers_by_name():
    model = Pair("body", "head")
    tracker = RWCTracker(model)
    with torch.no_grad():
        model.body.weight.mul_(1.5)
    tracker.step()
    restored = RWCTracker(Pair("head", "body"))
    restored.load_state_dict(load(save(tracker.state_dict())))
    assert restored.table().set_index("layer")["rwc"].to_dict() == pytest.approx({"body.weight": 0.5, "head.weight": 0})


@pytest.mark.parametrize("broken", ["history.rwc", "layers", "history.step"])
def test_a_state_without_a_whole_history_is_refused_and_changes_nothing(broken):
    model = net()
    tracker = RWCTracker(model)
    grow(model, 0.1)
    tracker.step()
    state, table = tracker.state_dict(), tracker.table()
    for change in (lambda: state.pop(broken), lambda: state.update({broken: torch.zeros(7, 5, dtype=torch.uint8)})):
        change()
        with pytest.raises(ConfigError, match="saved"):
            tracker.load_state_dict(state)
    pd.testing.assert_frame_equal(tracker.table(), table)


@pytest.mark.filterwarnings("ignore:no tracked weight has moved")
def test_weights_are_found_by_name_in_whatever_order():
    model = nn.LSTM(3, 4)
    prune.l1_unstructured(model, "weight_ih_l0", 0.3)
    tracker = RWCTracker(model, layers=lambda name, p: p.dim() > 1)
    prune.remove(model, "weight_ih_l0")
    with pytest.warns(RuntimeWarning, match=r"gone: weight_ih_l0_orig; new .*: weight_ih_l0"):
        tracker.step()
    prune.identity(model, "weight_hh_l0")
    model = nn.LSTM(3, 4)
    tracker = RWCTracker(model)
    model.weight_ih_l0 = nn.Parameter(model._parameters.pop("weight_ih_l0") * 1.5)  # last in order now
    assert tracker.step() == pytest.approx({"weight_ih_l0": 0.5, "weight_hh_l0": 0})


class Own(nn.Module):
    """A user's model with submodules named as wrappers name theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(2, 2)
        self._forward_module = nn.Linear(2, 2)


def test_wrappers_are_known_by_their_class():
    pytest.importorskip("lightning")
    from lightning.fabric.wrappers import _FabricModule
    from lightning.pytorch.strategies import SingleDeviceStrategy

    own = Own()
    names = ["module.weight", "_forward_module.weight"]
    assert RWCTracker(own).layers == names
    for wrapped in (
        nn.DataParallel(own), torch.compile(own), checkpoint_wrapper(own), torch.optim.swa_utils.AveragedModel(own),
        _FabricModule(own, SingleDeviceStrategy("cpu")), nn.DataParallel(checkpoint_wrapper(own)),
    ):  # fmt: skip
        assert RWCTracker(wrapped).layers == names
    model = net()
    tracker = RWCTracker(model)
    model[2] = checkpoint_wrapper(model[2])  # in the middle of a training
    grow(model, 0.25)
    assert list(tracker.step().values()) == pytest.approx([0.25] * 3)


def test_layers_are_chosen_once():
    model = net()
    model[2].requires_grad_(False)
    tracker = RWCTracker(model, lambda name, p: p.requires_grad and p.dim() > 1)
    model[2].requires_grad_(True)
    grow(model, 0.1)
    assert list(tracker.step()) == ["0.weight", "4.weight"]


def test_rows_of_gone_layers_end_and_those_of_new_ones_begin():
    model = net()
    tracker = RWCTracker(model, start=True)
    grow(model, 0.1)
    tracker.step()
    model[4], model[2] = nn.Linear(8, 5), nn.Identity()
    model.append(nn.Linear(5, 2))
    grow(model, 0.1)
    with pytest.warns(RuntimeWarning, match=r"gone: 2\.weight; new or of another shape: 4\.weight, 5\.weight"):
        assert list(tracker.step()) == ["0.weight"]
    grow(model, 0.1)
    assert tracker.step() == pytest.approx({"0.weight": 0.1, "4.weight": 0.1, "5.weight": 0.1})
    table = tracker.table()
    assert table["layer"].tolist() == [
        "0.weight",
        "2.weight",
        "4.weight",
        "0.weight",
        "0.weight",
        "4.weight",
        "5.weight",
    ]
    assert table["step"].tolist() == [1, 1, 1, 2, 3, 3, 3]
    restored = RWCTracker(model, start=True)
    restored.load_state_dict(load(save(tracker.state_dict())))
    pd.testing.assert_frame_equal(restored.table(), table, check_exact=True)


class Fake(nn.Module):
    """A model with one parameter of an odd kind, named `odd`."""

    def __init__(self, odd: nn.Parameter) -> None:
        super().__init__()
        self.odd, self.head = odd, nn.Linear(3, 2)


def partitioned() -> nn.Parameter:
    parameter = nn.Parameter(torch.empty(0))
    parameter.ds_id = 0
    return parameter


ODD = {
    "first forward": lambda: nn.UninitializedParameter(),
    "no data": lambda: nn.Parameter(torch.empty(3, 3, device="meta")),
    "sparse": lambda: nn.Parameter(torch.eye(3).to_sparse()),
    "quantised": lambda: nn.Parameter(torch.ones(3, 3, dtype=torch.int8), requires_grad=False),
    "ZeRO-3": partitioned,
}


@pytest.mark.parametrize("what", ODD)
def test_what_cannot_be_read_is_named_with_the_remedy(what):
    model = Fake(ODD[what]())
    with pytest.raises(ConfigError, match=f"layer odd .*{what}.*leave it out by layers="):
        RWCTracker(model)
    assert RWCTracker(model, layers=["head.*"]).layers == ["head.weight"]


def test_a_tracker_made_in_inference_mode_works_later():
    model = net()
    with torch.inference_mode():
        tracker = RWCTracker(model, start=True)
    grow(model, 0.1)
    assert list(tracker.step().values()) == pytest.approx([0.1] * 3)
    with torch.inference_mode():
        tracker.step()
    grow(model, 0.1)
    assert list(tracker.step().values()) == pytest.approx([0.1] * 3)


def test_clustering_names_the_layer_that_was_all_zero():
    model = net()
    nn.init.zeros_(model[4].weight)
    tracker = RWCTracker(model)
    grow(model, 0.1)
    with pytest.warns(RuntimeWarning, match=r"4\.weight"):
        tracker.step()
    history = tracker.table().pivot(index="layer", columns="step", values="rwc")
    with pytest.raises(ConfigError, match=r"layer 4\.weight .*dropna"):
        clustering.clean(history)
    assert clustering.clean(history.dropna()).shape == (2, 1)


def test_ten_times_the_layers_take_little_over_ten_times_as_long_to_plot():
    from rwclib.analysis.plotting import layer_lines

    def seconds(layers: int) -> float:
        table = pd.DataFrame({"layer": [f"layer{i}" for i in range(layers)] * 20, "depth": 1})
        table = table.assign(step=np.repeat(np.arange(20), layers), rwc=np.random.default_rng(0).random(len(table)))
        layer_lines(table)  # once to warm up
        times = []
        for _ in range(3):
            start = time.process_time()
            layer_lines(table)
            times.append(time.process_time() - start)
        return min(times)

    assert seconds(1000) < 25 * seconds(100)  # a scan of the table per layer takes 60 times as long and more


def test_a_figure_shows_itself_in_a_script():
    model = net()
    tracker = RWCTracker(model)
    grow(model, 0.1)
    tracker.step()
    figure = tracker.plot()
    figure.show()
    manager = plt.get_current_fig_manager()  # pyplot's window, had it a screen
    assert manager.canvas.figure is figure
    plt.close("all")


@pytest.mark.parametrize("effective", [False, True])
def test_a_model_that_never_moves_is_said_once(effective):
    model = net()
    if effective:
        model = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3)))
    tracker = RWCTracker(model, effective=effective)
    model = copy.deepcopy(model)
    with pytest.warns(RuntimeWarning, match="no tracked weight has moved") as caught:
        results = [tracker.step() for _ in range(4)]
    assert len(caught) == 1
    assert [set(result.values()) for result in results] == [{0}] * 4


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        (["0.*", "4.weight"], ["0.weight", "4.weight"]),
        (["0.bias"], ["0.bias"]),
        ("trainable", ["0.weight", "4.weight"]),
    ],
)
def test_layers_by_list_and_by_what_is_trained(layers, names):
    model = net()
    model[2].requires_grad_(False)
    assert list(weight_tensors(model, layers)) == names


def test_a_pattern_without_a_match_is_named():
    with pytest.raises(ConfigError, match=r"'9\.\*'"):
        RWCTracker(net(), ["0.*", "9.*"])


def test_a_reference_may_be_the_start_or_a_checkpoint(tmp_path):
    model = net()
    before = copy.deepcopy(model.state_dict())
    save_file(before, tmp_path / "before.safetensors")
    trackers = [RWCTracker(model, reference="start")]
    grow(model, 1)
    trackers += [RWCTracker(model, reference=source) for source in (before, tmp_path / "before.safetensors")]
    for _ in range(2):
        for tracker in trackers:
            assert list(tracker.step().values()) == pytest.approx([1] * 3)
    for bad in ({"0.weight": torch.ones(1, 1)}, {"0.weight": before["0.weight"]}):
        with pytest.raises(ConfigError, match="the reference has"):
            RWCTracker(model, reference=bad)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_distance_from_the_start_equals_its_definition(memory_format):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 40, 3), nn.Linear(300, 300)).to(memory_format=memory_format)
    start = {name: w.detach().double().clone() for name, w in model.named_parameters()}
    tracker = RWCTracker(model, start=True)
    for _ in range(2):
        with torch.no_grad():
            for p in model.parameters():
                p += 0.005 * torch.randn_like(p) * p * (torch.rand_like(p) > 0.5)
        tracker.step()
    for row in tracker.last().itertuples():
        now, first = dict(model.named_parameters())[row.layer].detach().double(), start[row.layer]
        moved = (now - first).abs() / first.abs()
        assert row.l2_start == pytest.approx(((now - first).norm() / first.norm()).item(), rel=1e-5)
        assert row.cosine_start == pytest.approx((now.flatten() @ first.flatten() / now.norm() / first.norm()).item())
        shares = [(moved > t).double().mean().item() for t in (0, 0.001, 0.01)]
        assert [row.changed, *row[-2:]] == pytest.approx(shares, abs=1e-4)


def test_the_callers_own_numbers_and_a_bounded_history():
    model = net()
    tracker = RWCTracker(model, keep=2)
    for at in (10, 20, 30):
        grow(model, 0.1)
        tracker.step(at=at)
    assert tracker.table()["step"].unique().tolist() == [20, 30]
    assert tracker.last()["layer"].tolist() == tracker.layers
    assert list(tracker.last().columns[4:]) == list(METRICS)
    restored = RWCTracker(model)
    restored.load_state_dict(tracker.state_dict())
    assert restored.table()["step"].unique().tolist() == [20, 30]


def test_every_measures_single_updates():
    model = net()
    tracker = RWCTracker(model, every=5)
    results = []
    for i in range(10):
        grow(model, 0.1 * (i + 1))
        results.append(tracker.step())
    assert [bool(result) for result in results] == [False, False, False, False, True] * 2
    assert tracker.table()["rwc"].tolist() == pytest.approx([0.5] * 3 + [1.0] * 3)
    tracker.rebase()
    assert tracker.steps == 2


def test_scalars_by_layer_and_by_block():
    model = nn.ModuleDict({f"layer{i}": nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 3)) for i in range(30)})
    tracker = RWCTracker(model)
    assert tracker.scalars() == tracker.scalars(by="block") == {}
    before = copy.deepcopy(model)
    with torch.no_grad():
        model["layer0"][1].weight *= 2
    rwc = tracker.step()
    assert tracker.scalars("x") == {f"x/{name}": value for name, value in rwc.items()}
    blocks = tracker.scalars(by="block", most=30)
    flat = [torch.cat([w.flatten() for w in m["layer0"].parameters() if w.dim() > 1]).detach() for m in (model, before)]
    assert list(blocks) == [f"rwc/layer{i}" for i in range(30)]
    assert blocks["rwc/layer0"] == pytest.approx(metrics.rwc(*flat))
    assert tracker.scalars(by="block", metric="cosine", most=30)["rwc/layer0"] == pytest.approx(metrics.cosine(*flat))
    assert len(tracker.scalars(by="block")) == 20
    assert list(tracker.scalars(by=lambda name: "all")) == ["rwc/all"]
    for bad in ({"by": "depth"}, {"metric": "l3"}):
        with pytest.raises(ConfigError, match="unknown"):
            tracker.scalars(**bad)


def test_effective_weights_of_parametrised_layers():
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(4, 4)), parametrizations.spectral_norm(nn.Linear(4, 4))
    )
    state = copy.deepcopy(model.state_dict())
    tracker = RWCTracker(model, effective=True)
    assert tracker.layers == ["0.weight", "1.weight"]
    before = [model[i].weight.detach().clone() for i in range(2)]
    model.load_state_dict(state)
    with torch.no_grad():
        model[0].parametrizations.weight.original0.mul_(1.5)
    assert tracker.step() == pytest.approx({"0.weight": 0.5, "1.weight": 0}, abs=1e-6)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items() if "original0" not in name)
    parametrize.remove_parametrizations(model[0], "weight")
    with torch.no_grad():
        model[0].weight.copy_(before[0])
    assert tracker.step()["0.weight"] == pytest.approx(1 / 3)


def test_lora_updates_are_measured_against_the_weights_that_they_adapt():
    pytest.importorskip("peft")
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(net(), LoraConfig(r=2, lora_alpha=4, target_modules=["0", "2"]))
    tracker = RWCTracker(model, "trainable", effective=True)
    with pytest.warns(RuntimeWarning, match="lora_B"):
        tracker.step()
    assert tracker.last()["lora_ratio"].dropna().tolist() == [0, 0]
    layer = model.base_model.model[0]
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_()
    tracker.step()
    update = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    row = tracker.last().dropna(subset="lora_ratio").iloc[0]
    assert row["layer"] == "base_model.model.0"
    assert row["lora_ratio"] == pytest.approx((update.norm() / layer.base_layer.weight.norm()).item())


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
def test_lora_is_measured_in_transformers_models_and_in_attention_modules():
    """`active_adapters` is a method of the former; the latter pack queries, keys and values in one weight."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {
        "vocab_size": 9,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    plain = LlamaForCausalLM(LlamaConfig(**sizes))
    RWCTracker(plain, effective=True).step()
    options = {"r": 2, "init_lora_weights": False}
    model = get_peft_model(plain, LoraConfig(target_modules=["q_proj"], **options))
    tracker = RWCTracker(model, "*lora_A*", effective=True)
    tracker.step()
    assert tracker.last().dropna(subset="lora_ratio")["layer"].str.split(".").str[-1].tolist() == ["q_proj"]

    attention = nn.Sequential(nn.MultiheadAttention(8, 2))
    model = get_peft_model(attention, LoraConfig(target_modules=["0"], **options))
    tracker = RWCTracker(model, "*lora_A*", effective=True)
    tracker.step()
    layer = model.base_model.model[0]
    update = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    right = (update.norm() / layer.base_layer.in_proj_weight.norm()).item()
    assert tracker.last()["lora_ratio"].dropna().iloc[0] == pytest.approx(right)


def test_a_step_number_is_a_whole_number():
    tracker = RWCTracker(net())
    tracker.step(at=np.int64(7))
    assert tracker.last()["step"].unique() == [7]
    tracker = RWCTracker(net())
    with pytest.raises(ConfigError, match=r"step\(at=\) takes the number of the step, a whole number, not 'a'"):
        tracker.step(at="a")


def test_neurons_are_the_rows_own_changes():
    model = nn.Linear(6, 11, bias=False)
    tracker = RWCTracker(model, neurons=True)
    with torch.no_grad():
        model.weight *= 1 + torch.arange(11).div(10)[:, None]
    tracker.step()
    row = tracker.last().iloc[0]
    assert row[["row_rwc_10%", "row_rwc_50%", "row_rwc_90%"]].tolist() == pytest.approx([0.1, 0.5, 0.9], rel=1e-5)
    assert row["rows_unmoved"] == pytest.approx(1 / 11)


@pytest.mark.parametrize(
    "option", [{"every": 0}, {"keep": 0}, {"every": 1.5}, {"reference": 3}, {"reference": "nowhere.pt"}]
)
def test_an_option_that_makes_no_sense_is_one_sentence(option):
    with pytest.raises(Exception, match=next(iter(option)) + "|checkpoint") as error:
        RWCTracker(net(), **option)
    assert "\n" not in str(error.value)


def test_trainable_layers_may_be_parametrised_and_shared():
    shared = parametrizations.weight_norm(nn.Linear(4, 4))
    model = nn.ModuleDict({"a": nn.Sequential(shared), "b": nn.Sequential(shared), "c": nn.Linear(4, 3)})
    assert RWCTracker(model, "trainable", effective=True).layers == ["a.0.weight", "c.weight"]
    shared.requires_grad_(False)
    assert RWCTracker(model, "trainable", effective=True).layers == ["c.weight"]


@pytest.mark.filterwarnings("ignore:no tracked weight has moved")
def test_a_module_of_other_dimensions_in_the_place_of_one_begins_or_ends_a_layer():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    tracker = RWCTracker(model, neurons=True)
    for other, layers in (
        (nn.Linear(4, 2), ["0.weight", "1.weight"]),
        (nn.LayerNorm(4), ["0.weight"]),
        (nn.Linear(4, 2), ["0.weight", "1.weight"]),
        (nn.Linear(4, 2).requires_grad_(False), ["0.weight", "1.weight"]),
    ):
        model[1] = other
        grow(model, 0.1)
        with pytest.warns(RuntimeWarning, match=r"1\.weight") if layers != tracker.layers else nullcontext():
            tracker.step()
        assert tracker.layers == layers
    model[1].weight = nn.Parameter(torch.empty(0, 4))
    with pytest.warns(RuntimeWarning, match=r"gone: 1\.weight"):
        tracker.step()


@pytest.mark.parametrize("offload", [None, "cpu"])
def test_all_layers_may_be_new_at_once(offload):
    model = nn.Sequential(nn.Linear(4, 4))
    tracker = RWCTracker(model, offload=offload, start=True, neurons=True)
    model[0] = nn.Linear(4, 6)
    with pytest.warns(RuntimeWarning, match=r"0\.weight"):
        assert tracker.step() == {}
    grow(model, 0.5)
    assert tracker.step() == pytest.approx({"0.weight": 0.5})


def test_of_a_vector_every_element_is_a_row():
    model = nn.Linear(4, 4)
    tracker = RWCTracker(model, ["weight", "bias"], neurons=True)
    with torch.no_grad():
        model.bias[:2] *= 1.5
    tracker.step()
    assert tracker.last().set_index("layer").loc["bias", "rows_unmoved"] == 0.5


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_no_comparison_with_a_weight_that_is_not_finite_has_a_number(bad, memory_format):
    model = nn.Conv2d(4, 4, 3).to(memory_format=memory_format)
    tracker = RWCTracker(model, start=True)
    with torch.no_grad():
        model.weight[0, 0] = bad
    tracker.step()
    row = tracker.last().iloc[0]
    assert row[[name for name in row.index if name.startswith(("rwc", "cosine", "changed"))]].isna().all()
    assert not np.isfinite(row[["l2_ratio", "l2_start"]].astype(float)).any()


def test_a_bounded_history_is_bounded_when_loaded_too():
    model = net()
    whole, bounded = RWCTracker(model), RWCTracker(model, keep=2)
    for _ in range(5):
        grow(model, 0.1)
        whole.step()
    bounded.load_state_dict(whole.state_dict())
    assert bounded.table()["step"].unique().tolist() == [4, 5]


@pytest.mark.parametrize("layers", [3, [], [3], {"0.weight": 1}])
def test_layers_of_no_known_form_are_one_sentence(layers):
    with pytest.raises(ConfigError, match="layers must be None, 'trainable', a glob"):
        RWCTracker(net(), layers)

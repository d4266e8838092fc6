"""Metrics against a float64 NumPy reference, and the properties that their definitions promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from rwclib import metrics
from rwclib.metrics import METRICS, measure

RATIOS = ("rwc", "rwc_elementwise", "rwc_median", "l2_ratio")
BETWEEN = (*RATIOS, "cosine")
SHAPES = [(1,), (7,), (3, 4), (2, 3, 3, 3), (64, 64), (65, 64), (1, 65_536), (257, 256), (512, 17, 3, 3), (333, 401)]
DTYPES = [torch.float32, torch.bfloat16, torch.float64]


def step(size):
    """The documented step of `rwc_median`: the smallest from size / 4,096 up that shares no factor with size."""
    return next(n for n in range(math.ceil(size / 4096), size + 2) if math.gcd(n, size) == 1)


def value(name: str, current: Tensor, previous: Tensor) -> float:
    function = getattr(metrics, name)
    return function(current) if name in ("l1_norm", "l2_norm") else function(current, previous)


def reference(current: Tensor, previous: Tensor) -> dict[str, float]:
    w, p = (t.detach().cpu().double().numpy().ravel() for t in (current, previous))
    with np.errstate(all="ignore"):
        change = np.where(w == p, 0, np.abs(w - p) / np.abs(p))
    sample = np.sort(change[:: step(change.size)])
    return {
        "rwc": np.abs(w - p).sum() / np.abs(p).sum(),
        "rwc_elementwise": change.mean(),
        "rwc_median": sample[(sample.size - 1) // 2],
        "l2_ratio": np.linalg.norm(w - p) / np.linalg.norm(p),
        "cosine": w @ p / (np.linalg.norm(w) * np.linalg.norm(p)),
        "l1_norm": np.abs(w).sum(),
        "l2_norm": np.linalg.norm(w),
    }


def pair(*shape: int, change: float = 0.1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Current and previous weights, normal, `change` apart."""
    rng = torch.Generator().manual_seed(seed)
    previous = torch.randn(shape, generator=rng, dtype=torch.float64)
    return previous + change * torch.randn(shape, generator=rng, dtype=torch.float64), previous


def close(expected: float) -> object:
    return pytest.approx(expected, rel=1e-5, nan_ok=True)


def assert_equals_reference(current: Tensor, previous: Tensor) -> None:
    for name, expected in reference(current, previous).items():
        tolerance = 1e-5 if name == "cosine" else 0  # it has the range [-1, 1] and may be near 0
        assert value(name, current, previous) == pytest.approx(expected, rel=1e-5, abs=tolerance), name


def assert_close(measured: dict[str, Tensor], expected: dict[str, Tensor], absolute: float) -> None:
    for name, values in expected.items():
        np.testing.assert_allclose(measured[name], values, rtol=1e-6, atol=absolute, err_msg=name)


@pytest.mark.parametrize("change", [1e-3, 0.1, 1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_metric_equals_the_float64_reference(shape, dtype, change):
    current, previous = pair(*shape, change=change)
    assert_equals_reference(current.to(dtype), previous.to(dtype))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_metric_equals_the_float64_reference_on_cuda(shape, dtype):
    current, previous = (t.to("cuda", dtype) for t in pair(*shape))
    assert_equals_reference(current, previous)


@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (4, 1, 3, 3), (4, 3, 1, 1)], ids=str)
@pytest.mark.parametrize("which", ["current", "previous", "both"])
def test_channels_last_snapshots_equal_the_reference(shape, which):
    current, previous = (t.float() for t in pair(*shape))
    if which != "previous":
        current = current.to(memory_format=torch.channels_last)
    if which != "current":
        previous = previous.to(memory_format=torch.channels_last)
    assert_equals_reference(current, previous)


def test_large_channels_last_snapshots_equal_the_reference_in_memory_order():
    current, previous = (t.float().to(memory_format=torch.channels_last) for t in pair(130, 60, 3, 3))
    in_memory = [t.permute(0, 2, 3, 1).contiguous() for t in (current, previous)]
    for name, expected in reference(*in_memory).items():
        assert value(name, current, previous) == close(expected), name


@pytest.mark.parametrize("name", METRICS)
def test_snapshots_that_require_gradients_are_measured_without_touching_them(name):
    current, previous = (t.float().requires_grad_() for t in pair(6, 5))
    assert value(name, current, previous) == close(reference(current, previous)[name])
    assert current.grad is None
    assert current.requires_grad


@pytest.mark.parametrize("n", [1, 2, 3, 10, 4095, 4096])
def test_median_of_up_to_4096_weights_is_exact(n):
    change = torch.randperm(n, generator=torch.Generator().manual_seed(n)).float() / 4096
    previous = torch.ones(n)
    assert metrics.rwc_median(previous + change, previous) == np.sort(change.numpy())[(n - 1) // 2]


@pytest.mark.parametrize("n", [4097, 8192, 8193, 100_000])
def test_median_of_more_weights_looks_at_every_nth_only(n):
    every = step(n)
    previous, current = torch.ones(n), torch.full((n,), 9.0)
    change = torch.arange(len(current[::every])) / 4096
    current[::every] = 1 + change
    assert len(change) <= 4096
    assert metrics.rwc_median(current, previous) == change.median().item()


@pytest.mark.parametrize("n", [5, 4096, 150_001])
def test_no_change_gives_zero_and_cosine_one(n):
    weights = pair(n)[0].float()
    assert [value(name, weights, weights.clone()) for name in BETWEEN] == [0, 0, 0, 0, pytest.approx(1, abs=1e-9)]


@pytest.mark.parametrize("shape", [(30, 7), (300, 301)], ids=str)
@pytest.mark.parametrize("scale", [2.0**20, 3.7, 1e-4])
def test_ratios_and_cosine_are_invariant_to_scaling_both_snapshots(shape, scale):
    current, previous = (t.float() for t in pair(*shape))
    for name in BETWEEN:
        assert value(name, scale * current, scale * previous) == close(value(name, current, previous)), name


@pytest.mark.parametrize("n", [50, 4096, 70_000])
def test_metrics_are_invariant_to_a_common_permutation(n):
    current, previous = (t.float() for t in pair(n))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(1))
    for name in METRICS:
        if name != "rwc_median" or n <= 4096:  # beyond, it looks at a sample
            assert value(name, current[order], previous[order]) == close(value(name, current, previous)), name


@pytest.mark.parametrize("n", [10, 70_000])
@pytest.mark.parametrize(("factor", "ratio", "cosine"), [(1.25, 0.25, 1), (0.5, 0.5, 1), (-1, 2, -1), (3, 2, 1)])
def test_scaling_the_weights_by_a_factor_changes_every_ratio_by_it_alone(n, factor, ratio, cosine):
    previous = pair(n)[1].float()
    for name in RATIOS:
        assert value(name, factor * previous, previous) == close(ratio), name
    assert metrics.cosine(factor * previous, previous) == close(cosine)


@pytest.mark.parametrize("factor", [1e-4, 1e-2, 1e2, 1e4])
def test_cosine_is_accurate_between_weights_of_very_different_size(factor):
    current, previous = (t.float() for t in pair(70_000))
    assert metrics.cosine(factor * current, previous) == close(metrics.cosine(current, previous))


def test_rwc_weighs_weights_by_size_and_rwc_elementwise_does_not():
    current, previous = torch.tensor([2.0, 100.0]), torch.tensor([1.0, 99.0])
    assert metrics.rwc(current, previous) == close(2 / 100)
    assert metrics.rwc_elementwise(current, previous) == close((1 + 1 / 99) / 2)


@pytest.mark.parametrize("n", [10, 70_000])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_zero_weight_that_moved_makes_the_elementwise_mean_infinite_and_nothing_else(n, sign):
    current, previous = (t.float() for t in pair(n))
    previous[-1], current[-1] = 0, sign * 0.5
    expected = reference(current, previous)
    assert metrics.rwc_elementwise(current, previous) == math.inf
    for name in ("rwc", "rwc_median", "l2_ratio", "cosine"):
        assert math.isfinite(expected[name])
        assert value(name, current, previous) == close(expected[name]), name


@pytest.mark.parametrize("n", [10, 70_000])
@pytest.mark.parametrize("zeros", [slice(0, 1), slice(-1, None), slice(2, 8)], ids=str)
def test_a_weight_that_stays_zero_counts_as_unchanged(n, zeros):
    current, previous = (t.float() for t in pair(n))
    current[zeros] = previous[zeros] = 0
    assert_equals_reference(current, previous)


def test_a_zero_that_moved_is_infinite_also_beside_one_that_stayed():
    current, previous = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.0, 0.0, 2.0])
    assert metrics.rwc_elementwise(current, previous) == math.inf
    assert metrics.rwc_median(current, previous) == 0


@pytest.mark.parametrize("n", [3, 70_000])
@pytest.mark.parametrize("current", [0.0, 1.0])
def test_all_zero_previous_weights_give_nan(n, current):
    weights, zeros = torch.full((n,), current), torch.zeros(n)
    assert all(math.isnan(value(name, weights, zeros)) for name in BETWEEN)
    assert metrics.l1_norm(weights) == n * current


@pytest.mark.parametrize("n", [3, 1001, 70_000, 131_075])
def test_weights_that_vanished_have_changed_by_all_of_themselves_and_have_no_direction(n):
    previous = pair(n)[1].float()
    assert [value(name, torch.zeros(n), previous) for name in RATIOS] == [close(1)] * 4
    assert math.isnan(metrics.cosine(torch.zeros(n), previous))


@pytest.mark.parametrize("n", [5, 131_075])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, -1])
@pytest.mark.parametrize("where", ["current", "previous", "both"])
def test_a_weight_that_is_not_finite_never_gives_a_finite_metric(n, bad, at, where):
    current, previous = (t.float() for t in pair(n))
    for name, snapshot in (("current", current), ("previous", previous)):
        if where in (name, "both"):
            snapshot[at] = bad
    values = {name: value(name, current, previous) for name in BETWEEN}
    assert not any(math.isfinite(v) for v in values.values()), values
    if math.isnan(bad) or where == "both":
        assert all(math.isnan(v) for v in values.values()), values
    if where != "previous":
        assert not math.isfinite(metrics.l1_norm(current))
        assert not math.isfinite(metrics.l2_norm(current))


@pytest.mark.parametrize("name", BETWEEN)
@pytest.mark.parametrize(("one", "other"), [((2, 3), (3, 2)), ((6,), (2, 3)), ((1,), (4,)), ((4, 1), (4, 4))], ids=str)
def test_snapshots_of_different_shape_are_an_error_that_names_the_shapes(name, one, other):
    with pytest.raises(ValueError, match="shape") as error:
        value(name, torch.ones(one), torch.ones(other))
    assert str(one) in str(error.value)
    assert str(other) in str(error.value)


def test_measure_gives_every_metric_of_every_layer_in_float64():
    pairs = [pair(4, 3, seed=1), pair(2, 3, 3, 3, seed=2), pair(300, 301, seed=3)]
    measured = measure([w.float() for w, _ in pairs], [p.float() for _, p in pairs])
    assert list(measured) == list(METRICS)
    assert {name: values.shape for name, values in measure([], []).items()} == dict.fromkeys(METRICS, (0,))
    assert all((v.dtype, v.device.type, v.shape) == (torch.float64, "cpu", (3,)) for v in measured.values())
    for i, (current, previous) in enumerate(pairs):
        layer = {name: values[i].item() for name, values in measured.items()}
        assert layer == {name: close(expected) for name, expected in reference(current, previous).items()}


LAYOUTS = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed": lambda t: t.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    "every other": lambda t: torch.stack([t, t], dim=-1)[..., 0],
    "slice of a larger one": lambda t: torch.cat([t, t], dim=1)[:, : t.shape[1]],
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("previous_layout", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_update_leaves_previous_equal_to_current_and_the_same_metrics(layout, previous_layout, dtype):
    current, previous = (t.to(dtype) for t in pair(40, 50, 7, 6))
    current, previous = LAYOUTS[layout](current), LAYOUTS[previous_layout](previous)
    kept, old, strides = current.clone(), previous.clone(), previous.stride()
    if layout != "channels_last":  # whose order in memory the sample of the median follows
        assert_equals_reference(current, previous)
    without = measure([current], [previous])
    assert torch.equal(previous, old)
    assert_close(measure([current], [previous], update=True), without, 0)
    assert torch.equal(previous, current)
    assert torch.equal(current, kept)
    assert previous.stride() == strides


@pytest.mark.parametrize("view", [slice(None), slice(None, None, 2), slice(3, None)], ids=str)
def test_update_of_a_vector_writes_into_its_view_only(view):
    current, base = torch.arange(140_000.0), torch.full((140_000,), -1.0)
    measure([current[view]], [base[view]], update=True)
    outside = torch.ones(140_000, dtype=torch.bool)
    outside[view] = False
    assert torch.equal(base[view], current[view])
    assert (base[outside] == -1).all()


def test_update_takes_bfloat16_weights_into_a_float32_reference():
    current, previous = (t.float() for t in pair(20, 30))
    kept = previous.clone()
    assert measure([current.bfloat16()], [previous], update=True)["rwc"] == close(metrics.rwc(current.bfloat16(), kept))
    assert torch.equal(previous, current.bfloat16().float())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_known_norms_of_the_previous_weights_change_no_result(shape):
    current, previous = (t.float() for t in pair(*shape))
    layers = [current, current], [previous, 2 * previous]
    before = measure(layers[1], layers[1])
    norms = before["l1_norm"], before["l2_norm"]
    assert_close(measure(*layers, previous_norms=norms), measure(*layers), 1e-6)


def test_known_norms_of_zero_give_nan_as_unknown_ones_do():
    zero = torch.zeros(1, dtype=torch.float64)
    known = {
        name: v.item() for name, v in measure([torch.ones(3)], [zero.expand(3)], previous_norms=(zero, zero)).items()
    }
    assert known == pytest.approx(dict.fromkeys(BETWEEN, math.nan) | {"l1_norm": 3, "l2_norm": 3**0.5}, nan_ok=True)


def test_five_million_float32_weights_are_measured_to_1e_5():
    rng = torch.Generator().manual_seed(0)
    previous = torch.rand(5_000_011, generator=rng) + 1e-3
    current = previous + 1e-3 * torch.rand(5_000_011, generator=rng)
    for name, expected in reference(current, previous).items():
        assert value(name, current, previous) == close(expected), name


@pytest.mark.parametrize("n", [1000, 3001])
def test_the_same_snapshots_give_the_same_bits_wherever_memory_is_taken_from(n):
    current, previous = (t.float() for t in pair(n))
    rng, kept, measured = np.random.default_rng(0), [], set()
    for _ in range(200):
        kept.append(np.empty(rng.integers(300, 400), np.float32))  # moves what is allocated next
        measured.add(tuple(v.item() for v in measure([current], [previous]).values()))
    assert len(measured) == 1


@pytest.mark.parametrize("n", [1, 100, 65_536, 65_537, 200_003])
@pytest.mark.parametrize("zeros", ["none", "stay", "move", "all"])
def test_device_arithmetic_equals_cpu_arithmetic(n, zeros):
    current, previous = (t.float() for t in pair(n))
    if zeros != "none":
        previous[n // 2 :] = 0
    if zeros == "stay":
        current[n // 2 :] = 0
    if zeros == "all":
        previous[:] = 0
    on_device = metrics._sums_on_device(current, previous)
    on_cpu = metrics._sums_on_cpu(current, previous, True, False, 1, torch.empty(metrics._CHUNK))[0]
    assert {v.dtype for v in on_cpu.values()} == {torch.float64}
    assert {name: v.item() for name, v in on_device.items()} == {name: close(v.item()) for name, v in on_cpu.items()}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_device_arithmetic_shows_weights_that_are_not_finite_as_cpu_arithmetic_does(bad):
    current, previous = (t.float() for t in pair(70_000))
    current[-1] = bad
    for sums in (
        metrics._sums_on_device(current, previous),
        metrics._sums_on_cpu(current, previous, True, False, 1, torch.empty(metrics._CHUNK))[0],
    ):
        assert not any(sums[name].isfinite() for name in ("change_l1", "change_squares", "l1", "squares"))
        assert all(sums[name].isfinite() for name in ("previous_l1", "previous_squares"))


def test_the_median_sees_every_tap_and_channel_of_a_power_of_two_convolution():
    previous = torch.ones(64, 64, 3, 3)
    for where in ((slice(None), slice(None), 0, 0), (slice(None), slice(0, 8)), (slice(0, 8),)):
        for layout in (torch.contiguous_format, torch.channels_last):
            current = previous.clone()
            current[where] = 2
            old = previous.to(memory_format=layout)
            assert metrics.rwc_median(current.to(memory_format=layout), old) == 0

"""Relative weight change and its relatives, as functions of two snapshots of a weight tensor.

`rwc` is Eq. 1 of arXiv 2011.06735 and of arXiv 2107.07005; `rwc_elementwise` is what those papers' released code
computes instead, the mean of the elements' own relative changes.

To add a metric, add an entry to `METRICS`: tracker, archive and plots take it from there. If it needs a sum that is not in
`_SUMS`, add its name there and its computation to `_sums_on_device` and `_sums_on_cpu`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from rwclib import _sharding

MEDIAN_SAMPLE = 4096
_CHUNK = 131_072
# Shares of weights, by the part of their magnitude that they moved by more than.
CHANGED = {"changed": 0, "changed_0.1%": 0.001, "changed_1%": 0.01}
# Over the elements of a layer, w now and p before: sums of |w - p|, (w - p)^2, |w - p| / |p|, |w|, w^2, w p, |p|, p^2.
_SUMS = ("change_l1", "change_squares", "relative_change", "l1", "squares", "dot", "previous_l1", "previous_squares")


@dataclass(frozen=True)
class Metric:
    """One number about a layer's weights `current` and `previous`.

    Attributes:
        name: its column in tables.
        label, unit: as on the axis of a plot; the unit may be empty.
        formula: from the sums by name to the metric, all (layers,) float64. There are those in `_SUMS`, `previous_l2`,
            `median_change` (of the sampled relative changes), `size` and `undefined`, which is 0, and NaN where a weight
            is not finite or `previous` is 0. `previous_l1` and `previous_l2` are NaN where `previous` is 0.
    """

    name: str
    label: str
    unit: str
    formula: Callable[[SimpleNamespace], Tensor]

    @property
    def axis(self) -> str:
        """Label and unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


def _rwc(sums: SimpleNamespace) -> Tensor:
    return sums.change_l1 / sums.previous_l1 + sums.undefined


def _l2_ratio(sums: SimpleNamespace) -> Tensor:
    return sums.change_squares.sqrt() / sums.previous_l2 + sums.undefined


def _elementwise(sums: SimpleNamespace) -> Tensor:
    return sums.relative_change / sums.size + sums.undefined


def _cosine(sums: SimpleNamespace) -> Tensor:
    return (sums.dot / (sums.squares.sqrt() * sums.previous_l2)).clamp(-1, 1)


METRICS = {
    metric.name: metric
    for metric in (
        Metric("rwc", "relative weight change, Eq. 1", "ratio", _rwc),
        Metric("rwc_elementwise", "elementwise mean change", "ratio", _elementwise),
        Metric("rwc_median", "elementwise median change", "ratio", lambda sums: sums.median_change + sums.undefined),
        Metric("l2_ratio", "L2 relative change", "ratio", _l2_ratio),
        Metric("cosine", "cosine to the step before", "", _cosine),
        Metric("l1_norm", "L1 norm", "", lambda sums: sums.l1),
        Metric("l2_norm", "L2 norm", "", lambda sums: sums.squares.sqrt()),
    )
}


def rwc(current: Tensor, previous: Tensor) -> float:
    """Relative weight change, Eq. 1: `||current - previous||_1 / ||previous||_1` (ratio; NaN if `previous` is 0)."""
    return _one("rwc", current, previous)


def rwc_elementwise(current: Tensor, previous: Tensor) -> float:
    """Mean over elements of `|current - previous| / |previous|` (ratio), as the papers' code computes it.

    Infinite when a weight that was exactly 0 moved. A weight that was and stays 0 counts as unchanged (0), where the
    released code would give NaN. NaN if all of `previous` is 0.
    """
    return _one("rwc_elementwise", current, previous)


def rwc_median(current: Tensor, previous: Tensor) -> float:
    """Median over elements of `|current - previous| / |previous|` (ratio), over at most 4,096 elements.

    The elements are every n-th in memory order, n the smallest step from size / 4,096 up that shares no factor with size.
    A robust companion of `rwc_elementwise`, whose mean has no finite expectation when weights have density at 0.
    """
    return _one("rwc_median", current, previous)


def l2_ratio(current: Tensor, previous: Tensor) -> float:
    """`||current - previous||_2 / ||previous||_2` (ratio; NaN if `previous` is 0)."""
    return _one("l2_ratio", current, previous)


def cosine(current: Tensor, previous: Tensor) -> float:
    """Cosine of the angle between the two weight vectors, in [-1, 1] (NaN if either is 0)."""
    return _one("cosine", current, previous)


def l1_norm(weights: Tensor) -> float:
    """Sum of the absolute weights."""
    return _one("l1_norm", weights, weights)


def l2_norm(weights: Tensor) -> float:
    """Euclidean norm of the weights."""
    return _one("l2_norm", weights, weights)


def _one(name: str, current: Tensor, previous: Tensor) -> float:
    current, previous = (w if isinstance(w, Tensor) else torch.as_tensor(w, device="cpu") for w in (current, previous))
    if current.shape != previous.shape:
        raise ValueError(f"snapshots differ in shape: {tuple(current.shape)} and {tuple(previous.shape)}")
    return measure([current], [previous])[name].item()


def measure(
    current: Sequence[Tensor],
    previous: Sequence[Tensor],
    *,
    previous_norms: tuple[Tensor, Tensor] | None = None,
    update: bool = False,
) -> dict[str, Tensor]:
    """Every metric of every layer.

    Args:
        current, previous: one weight tensor per layer, shapes and devices equal in pairs; arithmetic is in float32, of
            float64 weights in float64, and of complex weights' moduli. Of sharded ones (`DTensor`, placements equal in
            pairs) every rank reads its own part, and all ranks must call.
        previous_norms: L1 and L2 norms of `previous`, each (layers,), if known, which saves a pass over it.
        update: also copy `current` into `previous`, which must then have the same strides.

    Returns:
        By name, in the order of `METRICS`, (layers,) float64 on the CPU; the only copy from the device to the host. Of
        whole tensors also where they are sharded, and the same on every rank.
    """
    return formulas(layer_sums(current, previous, previous_norms is None, update), previous_norms)


@torch.no_grad()
def layer_sums(
    current: Sequence[Tensor], previous: Sequence[Tensor], with_previous: bool = True, update: bool = False
) -> SimpleNamespace:
    """What the metrics follow from: `_SUMS`, `median_change` and `size`, (layers,) float64 on the CPU each.

    Without `with_previous` the sums of `previous` alone may be 0; else as `measure`.
    """
    buffers = {}  # one for all layers of a type: fresh memory is slow
    parts = [_sums(w, p, with_previous, update, buffers) for w, p in zip(current, previous, strict=True)]
    rows = [torch.cat([sums, sample.median()[None]]) for sums, sample in _sharding.all_reduce(current, parts)]
    columns = to_host(rows, len(_SUMS) + 1)
    return SimpleNamespace(
        **dict(zip((*_SUMS, "median_change"), columns, strict=True)),
        size=torch.tensor([w.numel() for w in current], dtype=torch.float64, device="cpu"),
    )


def to_host(rows: Sequence[Tensor], width: int) -> Tensor:
    """Vectors of `width` numbers as (width, rows) float64 on the CPU: one copy per device, in the device's own precision."""
    table = torch.empty(len(rows), width, dtype=torch.float64, device="cpu")
    for device in {row.device for row in rows}:
        here = [i for i, row in enumerate(rows) if row.device == device]
        table[here] = torch.stack([rows[i] for i in here]).cpu().double()
    return table.T


def formulas(sums: SimpleNamespace, previous_norms: tuple[Tensor, Tensor] | None = None) -> dict[str, Tensor]:
    """Every metric from what `layer_sums` gives, (layers,) float64 each; completes `sums` on the way."""
    l1, l2 = previous_norms or (sums.previous_l1, sums.previous_squares.sqrt())
    sums.previous_l1, sums.previous_l2 = (norm.masked_fill(l1 == 0, torch.nan) for norm in (l1, l2))
    sums.undefined = 0 * (sums.change_l1 + sums.l1 + sums.previous_l1)
    return {name: metric.formula(sums) for name, metric in METRICS.items()}


def precision(*tensors: Tensor) -> torch.dtype:
    """The type of all arithmetic with these tensors, whatever the default type is."""
    exact = any(tensor.dtype in (torch.float64, torch.complex128) for tensor in tensors)
    if any(tensor.is_complex() for tensor in tensors):
        return torch.complex128 if exact else torch.complex64
    return torch.float64 if exact else torch.float32


def _sums(
    current: Tensor, previous: Tensor, with_previous: bool, update: bool, buffers: dict[torch.dtype, Tensor]
) -> tuple[Tensor, Tensor]:
    """What one layer's metrics follow from, on its device: `_SUMS`, and sampled relative changes.

    Of a sharded layer this rank's share (of the sample 0 where another rank has the element).
    """
    channels_last = _is_channels_last(current)
    size = current.numel()
    every = _every(size)
    whole, current, previous = current, _sharding.local(current), _sharding.local(previous)
    dtype = precision(current, previous)
    w, p = _flat(current, channels_last).to(dtype), _flat(previous, channels_last).to(dtype)
    if _sharding.is_sharded(whole):
        order = (0, 2, 3, 1) if channels_last else range(whole.dim())
        slots, places = _sharding.positions(whole, every, order)
        part = torch.zeros(-(-size // every), dtype=w.real.dtype, device=w.device)
        part[slots] = _relative((w[places] - p[places]).abs(), p[places])
    in_place = update and w.device.type == "cpu" and p.data_ptr() == previous.data_ptr()
    if w.device.type == "cpu" and not w.is_complex():
        if len(buffers.get(dtype, ())) < min(_CHUNK, len(w)):
            buffers[dtype] = torch.empty(min(_CHUNK, len(w)), dtype=dtype, device="cpu")
        sums, sample = _sums_on_cpu(w, p, with_previous, in_place, every, buffers[dtype] if len(w) else w)
    else:
        sums, sample = _sums_on_device(w, p), _relative((w[::every] - p[::every]).abs(), p[::every])
        in_place = False
    if _sharding.is_sharded(whole):
        sample = part
    if update and not in_place:
        previous.copy_(current)
    return torch.stack([sums[name] for name in _SUMS]), sample


def _every(size: int) -> int:
    """The median is of every n-th element."""
    every = max(1, -(-size // MEDIAN_SAMPLE))
    while math.gcd(every, size) > 1:  # else it may meet the same kernel tap or channel again and again
        every += 1
    return every


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


def _flat(tensor: Tensor, channels_last: bool) -> Tensor:
    """The elements as one dimension, in the order they have in memory where that needs no copy."""
    return (tensor.permute(0, 2, 3, 1) if channels_last else tensor).detach().reshape(-1)


def _relative(difference: Tensor, before: Tensor) -> Tensor:
    return (difference / before.abs()).nan_to_num_(nan=0.0, posinf=torch.inf)


def _sums_on_device(w: Tensor, p: Tensor) -> dict[str, Tensor]:
    difference, now, before = (w - p).abs(), w.abs(), p.abs()
    return {
        "change_l1": difference.sum(),
        "change_squares": difference.square().sum(),
        "relative_change": _relative(difference, before).sum(),
        "l1": now.sum(),
        "squares": now.square().sum(),
        "dot": (w * p.conj()).real.sum(),
        "previous_l1": before.sum(),
        "previous_squares": before.square().sum(),
    }


def _sums_on_cpu(
    w: Tensor,
    p: Tensor,
    with_previous: bool,
    update: bool,
    every: int,
    buffer: Tensor,
    thresholds: Sequence[float] = (),
) -> tuple[dict[str, Tensor], Tensor]:
    """In pieces that stay in the cache, summed by BLAS in float32 within a piece and in float64 across pieces.

    Of float64 weights (and buffer) everything is in float64. `moved_<threshold>` is the number of elements whose relative
    change is above that threshold.

    The sample is taken from the pieces on the way, since reading 4,096 elements far apart costs as much as all the sums.
    Several times faster than whole-tensor operations (`benchmarks/tracker.py`), and exact to 1e-6 where a float32 L1
    norm over 10^7 weights is off by 1%.
    """
    from scipy.linalg.blas import dasum, sasum

    asum = dasum if w.dtype == torch.float64 else sasum
    w, p, buffer = (tensor.numpy() for tensor in (w, p, buffer))  # torch aligns memory, without which last bits differ
    totals = dict.fromkeys((*_SUMS, *(f"moved_{threshold}" for threshold in thresholds)), 0.0)
    samples = [np.empty(0, w.dtype)]
    with np.errstate(all="ignore"):
        for start in range(0, w.size, _CHUNK):
            a, b = w[start : start + _CHUNK], p[start : start + _CHUNK]
            z = np.subtract(a, b, out=buffer[: a.size])
            sums = {"change_l1": asum(z), "change_squares": z.dot(z)}
            sums["relative_change"] = asum(np.divide(z, b, out=z))
            if np.isnan(sums["relative_change"]):  # 0 / 0
                np.nan_to_num(z, copy=False, nan=0.0, posinf=np.inf, neginf=np.inf)
                sums["relative_change"] = np.abs(z).sum()
            samples.append(np.abs(z[-start % every :: every]))
            sums |= {"l1": asum(a), "squares": a.dot(a), "dot": a.dot(b)}
            if with_previous:
                sums |= {"previous_l1": asum(b), "previous_squares": b.dot(b)}
            if thresholds:
                np.abs(z, out=z)
                for threshold in thresholds:  # a quotient may underflow, a comparison does not
                    sums[f"moved_{threshold}"] = np.count_nonzero(z > threshold if threshold else a != b)
            for name, value in sums.items():
                totals[name] += float(value)  # float64
            if update:
                b[:] = a
    sums = {name: torch.tensor(total, dtype=torch.float64, device="cpu") for name, total in totals.items()}
    return sums, torch.from_numpy(np.concatenate(samples))

"""Relative weight change and its relatives, as functions of two snapshots of a weight tensor.

`rwc` is Eq. 1 of arXiv 2011.06735 and of arXiv 2107.07005; `rwc_elementwise` is what those papers' released code
computes instead, the mean of the elements' own relative changes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rwclib import sharding

METRICS = ("rwc", "rwc_elementwise", "rwc_median", "l2_ratio", "cosine", "l1_norm", "l2_norm")
MEDIAN_SAMPLE = 4096
_CHUNK = 131_072


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
    if current.shape != previous.shape:
        raise ValueError(f"snapshots differ in shape: {tuple(current.shape)} and {tuple(previous.shape)}")
    return measure([current], [previous])[0, METRICS.index(name)].item()


@torch.no_grad()
def measure(
    current: Sequence[Tensor],
    previous: Sequence[Tensor],
    *,
    previous_norms: Tensor | None = None,
    update: bool = False,
) -> Tensor:
    """Every metric of every layer.

    Args:
        current, previous: one weight tensor per layer, shapes and devices equal in pairs; arithmetic is in float32.
            Of sharded ones (`DTensor`, placements equal in pairs) every rank reads its own part, and all ranks must call.
        previous_norms: (layers, 2) L1 and L2 norms of `previous` if known, which saves a pass over it.
        update: also copy `current` into `previous`, which must then have the same strides.

    Returns:
        (layers, 7) float64 on the CPU, columns as in `METRICS`; the only copy from the device to the host. Of whole
        tensors also where they are sharded, and the same on every rank.
    """
    buffer = torch.empty(min(_CHUNK, max((w.numel() for w in current), default=0)))  # one for all: fresh memory is slow
    parts = [_sums(w, p, previous_norms is None, update, buffer) for w, p in zip(current, previous, strict=True)]
    if not parts:
        return torch.empty(0, len(METRICS), dtype=torch.float64)
    rows = [torch.cat([sums, sample.median().double()[None]]) for sums, sample in sharding.all_reduce(current, parts)]
    d1, d2, e1, w1, w2, dot, p1, p2, median = (
        torch.stack([row.to(rows[0].device) for row in rows]).cpu().double().unbind(1)
    )
    sizes = torch.tensor([w.numel() for w in current], dtype=torch.float64)
    w2, d2 = w2.sqrt(), d2.sqrt()
    p1, p2 = (p1, p2.sqrt()) if previous_norms is None else previous_norms.unbind(1)
    finite = 0 * (d1 + w1)  # NaN where a weight is not finite
    metrics = torch.stack(
        [d1 / p1, e1 / sizes + finite, median + finite, d2 / p2, (dot / (w2 * p2)).clamp(-1, 1), w1, w2], dim=1
    )
    metrics[p1 == 0, :5] = torch.nan
    return metrics


def _sums(
    current: Tensor, previous: Tensor, with_previous: bool, update: bool, buffer: Tensor
) -> tuple[Tensor, Tensor]:
    """What one layer's metrics follow from: eight sums, float64, and sampled relative changes, float32.

    Both on its device, and of a sharded layer this rank's share (of the sample 0 where another rank has the element).
    """
    channels_last = current.dim() == 4 and current.is_contiguous(memory_format=torch.channels_last)
    size = current.numel()
    every = max(1, -(-size // MEDIAN_SAMPLE))
    while math.gcd(every, size) > 1:  # else it may meet the same kernel tap or channel again and again
        every += 1
    whole, current, previous = current, sharding.local(current), sharding.local(previous)
    w, p = _flat(current, channels_last).float(), _flat(previous, channels_last).float()
    if sharding.is_sharded(whole):
        order = (0, 2, 3, 1) if channels_last else range(whole.dim())
        slots, places = sharding.positions(whole, every, order)
        part = w.new_zeros(-(-size // every))
        part[slots] = _relative((w[places] - p[places]).abs_(), p[places])
    in_place = update and w.device.type == "cpu" and p.data_ptr() == previous.data_ptr()
    if w.device.type == "cpu":
        sums, sample = _sums_on_cpu(w, p, with_previous, in_place, every, buffer)
    else:
        sums, sample = _sums_on_device(w, p), _relative((w[::every] - p[::every]).abs_(), p[::every])
    if sharding.is_sharded(whole):
        sample = part
    if update and not in_place:
        previous.copy_(current)
    return sums, sample


def _flat(tensor: Tensor, channels_last: bool) -> Tensor:
    """The elements as one dimension, in the order they have in memory where that needs no copy."""
    return (tensor.permute(0, 2, 3, 1) if channels_last else tensor).detach().reshape(-1)


def _relative(difference: Tensor, before: Tensor) -> Tensor:
    return (difference / before.abs()).nan_to_num_(nan=0.0, posinf=torch.inf)


def _sums_on_device(w: Tensor, p: Tensor) -> Tensor:
    difference = (w - p).abs_()
    parts = [difference, difference.square(), _relative(difference, p), w.abs(), w.square(), w * p, p.abs(), p.square()]
    return torch.stack([part.sum() for part in parts]).double()


def _sums_on_cpu(
    w: Tensor, p: Tensor, with_previous: bool, update: bool, every: int, buffer: Tensor
) -> tuple[Tensor, Tensor]:
    """In pieces that stay in the cache, summed by BLAS in float32 within a piece and in float64 across pieces; the sample is
    taken from them on the way, since reading 4,096 elements far apart from memory costs as much as all the sums.

    Several times faster than whole-tensor operations (`benchmarks/tracker.py`), and exact to 1e-6 where a float32 L1
    norm over 10^7 weights is off by 1%.
    """
    from scipy.linalg.blas import sasum

    w, p, total, samples = w.numpy(), p.numpy(), np.zeros(8), []
    buffer = buffer.numpy()  # torch aligns memory; BLAS sums differ in the last bit otherwise
    with np.errstate(all="ignore"):
        for start in range(0, w.size, _CHUNK):
            a, b = w[start : start + _CHUNK], p[start : start + _CHUNK]
            z = np.subtract(a, b, out=buffer[: a.size])
            l1, squares = sasum(z), z.dot(z)
            elementwise = sasum(np.divide(z, b, out=z))
            if np.isnan(elementwise):  # 0 / 0
                elementwise = np.abs(np.nan_to_num(z, copy=False, nan=0.0, posinf=np.inf, neginf=np.inf)).sum()
            samples.append(np.abs(z[-start % every :: every]))
            total[:6] += l1, squares, elementwise, sasum(a), a.dot(a), a.dot(b)
            if with_previous:
                total[6:] += sasum(b), b.dot(b)
            if update:
                b[:] = a
    return torch.from_numpy(total), torch.from_numpy(np.concatenate(samples) if samples else np.empty(0, w.dtype))

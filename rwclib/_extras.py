"""What the tracker measures beside the metrics on request: distance from the start, output rows' own changes, LoRA's updates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from rwclib import _sharding
from rwclib._layers import classes, modules
from rwclib.metrics import CHANGED, precision, to_host

START = ("l2_start", "cosine_start", *CHANGED)
NEURONS = ("row_rwc_10%", "row_rwc_50%", "row_rwc_90%", "rows_unmoved")
LORA = "lora_ratio"
_LORA_LAYER = "peft.tuners.lora.layer.LoraLayer"
_PIECE = 131_072


def since_start(current: Sequence[Tensor], start: Sequence[Tensor]) -> dict[str, Tensor]:
    """Of each layer (layers,) float64 each: the squared L2 distance, the inner product, and the shares of `CHANGED`."""
    nothing = torch.empty(0, device="cpu")
    parts = []
    for whole, first in zip(current, start, strict=True):
        w, s = _sharding.local(whole), _sharding.local(first).to(precision(whole, first))
        on_cpu = w.device.type == "cpu" and not w.is_complex() and w.stride() == s.stride()
        sums = _on_cpu(w.to(s.dtype), s) if on_cpu else _on_device(w.to(s.dtype), s)
        parts.append((sums, nothing.to(sums)))
    sums = to_host([row for row, _ in _sharding.all_reduce(current, parts)], 2 + len(CHANGED))
    sizes = torch.tensor([w.numel() for w in current], dtype=torch.float64, device="cpu")
    shares = sums[2:] / sizes + 0 * sums[0]  # NaN where a weight is not finite
    return {"start_squares": sums[0], "start_dot": sums[1]} | dict(zip(CHANGED, shares, strict=True))


def _on_device(w: Tensor, s: Tensor) -> Tensor:
    moved, size = (w - s).abs(), s.abs()
    shares = [(moved > threshold * size).sum().to(moved.dtype) for threshold in CHANGED.values()]
    return torch.stack([moved.square().sum(), (w * s.conj()).real.sum(), *shares])


def _on_cpu(w: Tensor, s: Tensor) -> Tensor:
    """The same in pieces that stay in the cache; both tensors have the same strides."""
    order = sorted(range(w.dim()), key=w.stride, reverse=True)
    now, first = (tensor.permute(order).reshape(-1).numpy() for tensor in (w, s))
    totals = np.zeros(2 + len(CHANGED))
    buffer, above = np.empty(_PIECE, now.dtype), np.empty(_PIECE, bool)
    with np.errstate(all="ignore"):  # of weights that were 0
        for i in range(0, now.size, _PIECE):
            a, b = now[i : i + _PIECE], first[i : i + _PIECE]
            moved, where = np.subtract(a, b, out=buffer[: a.size]), above[: a.size]
            sums = [moved.dot(moved), a.dot(b), np.count_nonzero(np.not_equal(moved, 0, out=where))]
            np.abs(np.divide(moved, b, out=moved), out=moved)
            sums += [np.count_nonzero(np.greater(moved, share, out=where)) for share in CHANGED.values() if share]
            totals += sums
    return torch.from_numpy(totals)


def neuron_changes(current: Sequence[Tensor], previous: Sequence[Tensor]) -> dict[str, Tensor]:
    """`NEURONS` of each layer, (layers,) float64: of its rows (the first dimension), each with its own L1 ratio.

    Rows that were all zero have no ratio and are left out of the quantiles; NaN if all were.
    """
    rows = []
    for w, p in zip(current, previous, strict=True):
        dtype = precision(w, p)
        w, p = (tensor.to(dtype).reshape(tensor.shape[:1].numel(), -1) for tensor in (w, p))  # of a vector each element
        moved, size = (w - p).abs().sum(1), p.abs().sum(1)
        ratio = (moved / size).masked_fill(size == 0, torch.nan)
        quantiles = torch.nanquantile(ratio, torch.tensor([0.1, 0.5, 0.9], dtype=ratio.dtype, device=ratio.device))
        rows.append(torch.cat([quantiles, (moved == 0).to(ratio.dtype).mean()[None]]))
    return dict(zip(NEURONS, to_host(rows, len(NEURONS)), strict=True))


def lora_ratios(model: nn.Module) -> dict[str, tuple[int, float]]:
    """Of each layer that PEFT's LoRA adapts: weights, and `||s B A|| / ||W||` (Frobenius norms, ratio), by its name.

    The product's norm comes from the two Gram matrices, `tr(B'B AA')`; NaN if W is quantised or all zero.
    """
    ratios = {}
    for prefix, module in modules(model):
        if _LORA_LAYER not in classes(module):
            continue
        active = [name for name in module.active_adapters if name in module.lora_A]
        if not active:
            continue
        layer = module.get_base_layer()
        base = layer.in_proj_weight if isinstance(layer, nn.MultiheadAttention) else layer.weight
        if base is None:  # an attention module whose queries, keys and values differ in size
            continue
        a = torch.cat([module.lora_A[name].weight.detach().flatten(1).float() for name in active])
        scaled = [module.scaling[name] * module.lora_B[name].weight.detach().flatten(1).float() for name in active]
        b = torch.cat(scaled, 1)
        update = ((b.T @ b) * (a @ a.T)).sum().clamp(min=0).sqrt().item()
        norm = base.detach().float().norm().item() if base.is_floating_point() else float("nan")
        ratios[prefix.rstrip(".")] = base.numel(), update / norm if norm else float("nan")
    return ratios


def by_group(sums: SimpleNamespace, group: Callable[[str], str], most: int | None) -> SimpleNamespace:
    """What the metrics of groups of layers follow from, each taken as one long vector; `names` are the groups'.

    Args:
        sums: of `layer_sums`, with the layers' `names` and the norms `before`, L1 and L2, of the weights before.
        group: from a layer's name to its group's.
        most: more groups than so many are joined with their neighbours.
    """
    groups: dict[str, list[int]] = {}
    for i, name in enumerate(sums.names):
        groups.setdefault(group(name), []).append(i)
    if most and len(groups) > most:
        joined = [list(names) for names in np.array_split(np.array(list(groups), dtype=object), most)]
        groups = {
            "-".join(dict.fromkeys([names[0], names[-1]])): [i for name in names for i in groups[name]]
            for names in joined
        }
    parts = {key: values for key, values in vars(sums).items() if isinstance(values, Tensor)}
    parts |= {"previous_l1": sums.before[0], "previous_squares": sums.before[1].square()}
    parts["median_change"] = sums.median_change * sums.size
    totals = {key: torch.stack([values[rows].sum() for rows in groups.values()]) for key, values in parts.items()}
    totals["median_change"] = totals["median_change"] / totals["size"]
    return SimpleNamespace(**totals, names=list(groups))

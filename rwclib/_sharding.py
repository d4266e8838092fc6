"""Models trained by several processes: DDP replicas, and weights that `fully_shard` (FSDP2) spreads as `DTensor`s.

Without a process group every tensor counts as plain, and `torch.distributed.tensor` is never loaded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel


def initialized() -> bool:
    """Whether this process belongs to a process group."""
    return dist.is_available() and dist.is_initialized()


def is_replica(model: nn.Module) -> bool:
    """Whether `model` is, or contains, a DDP copy of what rank 0 has too."""
    if not initialized() or dist.get_rank() == 0:
        return False
    return any(isinstance(module, DistributedDataParallel) for module in model.modules())


def is_sharded(tensor: Tensor) -> bool:
    """Whether `tensor` is a `DTensor`; its shape, stride and size are then those of the whole tensor."""
    if not initialized():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """The part of `tensor` on this rank, sharing its memory; a plain tensor as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def reshard(model: nn.Module) -> None:
    """Give back the full copies that a forward pass without a backward pass leaves in FSDP2 modules in place of shards.

    They may have the lower precision of the computation; the next forward pass gathers them again.
    """
    if not initialized():
        return
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def layout(tensor: Tensor) -> tuple[object, ...]:
    """Device, strides and, if sharded, mesh and placements."""
    plain = tensor.device, tensor.stride()
    return (*plain, tensor.device_mesh, tensor.placements) if is_sharded(tensor) else plain


def like(weight: Tensor, reference: Tensor, device: str | torch.device) -> Tensor:
    """`reference`, or a new tensor of its values on `device` where the weights have another layout or more precision."""
    dtype = torch.promote_types(reference.dtype, weight.dtype)
    same = (device, *layout(weight)[1:]) == layout(reference)
    if same and dtype == reference.dtype:
        return reference
    return copy_(torch.empty_like(weight, dtype=dtype, device=device), reference)


def copy_(target: Tensor, source: Tensor) -> Tensor:
    """`target.copy_(source)`, either of them sharded or whole (a whole source: the same on every rank)."""
    if is_sharded(target) and not is_sharded(source):
        from torch.distributed.tensor import distribute_tensor

        source = distribute_tensor(source, target.device_mesh, target.placements, src_data_rank=None)
    elif is_sharded(source) and not is_sharded(target):
        source = source.full_tensor()
    return target.copy_(source)


def positions(tensor: Tensor, every: int, order: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Which of the elements 0, every, 2 * every, ... of a `DTensor` this rank has, and where.

    Whole and part are flattened with the dimensions in `order`, outermost first. Returns two int64 vectors, one entry
    for each such element: its number among all of them, and its place in the flattened part.
    """
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    part = tensor.to_local()
    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    whole = torch.arange(0, tensor.numel(), every, device="cpu")
    here, place = torch.ones_like(whole, dtype=torch.bool), torch.zeros_like(whole)
    for dim, index in zip(order, torch.unravel_index(whole, [tensor.shape[d] for d in order]), strict=True):
        index = index - offset[dim]
        here &= (index >= 0) & (index < part.shape[dim])
        place = place * part.shape[dim] + index
    return here.nonzero()[:, 0].to(part.device), place[here].to(part.device)


def all_reduce(tensors: Sequence[Tensor], parts: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Add up what the ranks found in their parts of the weights, two vectors per weight; replicas count once.

    One collective per sharded mesh dimension for all weights together, on the device of the mesh (on the CPU in float64);
    what was found in tensors that are not sharded stays as it is.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, tensor in enumerate(tensors):
        if is_sharded(tensor):
            dims = tuple(d for d, placement in enumerate(tensor.placements) if not placement.is_replicate())
            groups.setdefault((tensor.device_mesh, *dims), []).append(i)
    reduced = list(parts)
    for (mesh, *dims), members in groups.items():
        vectors = [vector for i in members for vector in parts[i]]
        total = torch.cat(vectors).to(mesh.device_type, torch.float64 if mesh.device_type == "cpu" else torch.float32)
        for dim in dims:
            dist.all_reduce(total, group=mesh.get_group(dim))
        summed = iter(total.split([len(vector) for vector in vectors]))
        for i in members:
            reduced[i] = next(summed), next(summed)
    return reduced

"""Which tensors of a model are its layers, under which names: wrappers leave no trace, and what cannot be read is named."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from rwclib import _sharding
from rwclib.errors import ConfigError

NAMED = 5  # layers that one sentence names

LayerFilter = str | Sequence[str] | Callable[[str, Tensor], bool] | None
_INNER = {  # where a wrapper, by its class, keeps the model
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper.ActivationWrapper": "_checkpoint_wrapped_module",
    "torch.optim.swa_utils.AveragedModel": "module",
    "lightning.fabric.wrappers._FabricModule": "_forward_module",
    "lightning_fabric.wrappers._FabricModule": "_forward_module",
    "deepspeed.runtime.engine.DeepSpeedEngine": "module",
}
_FSDP1 = "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel"


def classes(module: nn.Module) -> set[str]:
    """Full names of the module's class and its bases, so that no framework need be imported."""
    return {f"{cls.__module__}.{cls.__qualname__}" for cls in type(module).__mro__}


def modules(module: nn.Module, prefix: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, nn.Module]]:
    """Every module once, with its name followed by a dot, in network order, wrappers left out."""
    seen = set() if seen is None else seen
    if id(module) in seen:
        return
    seen.add(id(module))
    kinds = classes(module)
    inner = next((_INNER[kind] for kind in kinds if kind in _INNER), None)
    if inner:
        yield from modules(getattr(module, inner), prefix, seen)
        return
    if _FSDP1 in kinds:
        raise ConfigError(
            "FSDP1 flattens weights so that no layer can be read; use fully_shard (FSDP2), or rwclib.compare on checkpoints"
        )
    yield prefix, module
    for name, child in module.named_children():
        yield from modules(child, f"{prefix}{name}.", seen)


def weights(model: nn.Module, effective: bool = False) -> dict[str, Tensor]:
    """All parameters in network order, each once; with `effective` what parametrisations make of them in their place."""
    named, seen = {}, set()
    for prefix, module in modules(model):
        if effective and isinstance(module, parametrize.ParametrizationList):
            seen |= {id(parameter) for parameter in module.parameters()}
        elif effective and parametrize.is_parametrized(module):
            with _still(module.parametrizations):
                for name, parametrization in module.parametrizations.items():
                    trains = any(parameter.requires_grad for parameter in parametrization.parameters())
                    named[f"{prefix}{name}"] = getattr(module, name).detach().requires_grad_(trains)
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                named[f"{prefix}{name}"] = parameter
    return named


@contextmanager
def _still(parametrizations: nn.Module) -> Iterator[None]:
    """In evaluation mode: in training, spectral norm changes its state whenever the weight is read."""
    training = {module: module.training for module in parametrizations.modules()}
    parametrizations.eval()
    try:
        yield
    finally:
        for module, was in training.items():
            module.training = was


def wanted(name: str, tensor: Tensor, layers: LayerFilter) -> bool:
    """Whether `layers` admits a tensor; `ConfigError` if it does and the tensor cannot be read."""
    unknown = is_lazy(tensor) or hasattr(tensor, "ds_id")  # its dimensions are not those of the weight
    if callable(layers):
        admitted = is_lazy(tensor) or layers(name, tensor)
    elif layers is None or layers == "trainable":
        admitted = (unknown or tensor.dim() > 1) and (layers is None or tensor.requires_grad)
    else:
        patterns = [layers] if isinstance(layers, str) else layers
        admitted = (unknown or tensor.dim() > 1) and any(fnmatchcase(name, pattern) for pattern in patterns)
        admitted |= not isinstance(layers, str) and name in layers
    if not admitted:
        return False
    obstacle = _obstacle(tensor)
    if obstacle:
        raise ConfigError(f"layer {name} {obstacle}, or leave it out by layers=")
    return tensor.numel() > 0


def _obstacle(tensor: Tensor) -> str:
    """Why the numbers of a tensor cannot be read, and what to do; empty if they can."""
    if is_lazy(tensor):
        return "is not initialised yet: make the tracker after the first forward pass"
    if hasattr(tensor, "ds_id"):
        return "is partitioned by DeepSpeed ZeRO-3: use stage 1 or 2, or rwclib.compare on checkpoints"
    if tensor.is_meta:
        return "has no data (meta device, or offloaded): make the tracker when the weights are loaded"
    if tensor.layout != torch.strided:
        return f"is sparse ({tensor.layout}): make it dense"
    subclass = is_traceable_wrapper_subclass(tensor) and not _sharding.is_sharded(tensor)
    if subclass or not (tensor.is_floating_point() or tensor.is_complex()):
        kind = type(tensor.data).__name__ if subclass else tensor.dtype
        return f"is quantised or no floating point ({kind}): track what is trained by layers='trainable'"
    return ""


def weight_tensors(model: nn.Module, layers: LayerFilter = None) -> dict[str, nn.Parameter]:
    """The parameters with more than one dimension, in network order, by name without wrappers' prefixes.

    Args:
        model: any module, wrapped or not.
        layers: None for all; `"trainable"` for those that require gradients; a glob over names (`"layer4.*"`); a list of
            globs and names, where a name may also be that of a vector; or a predicate of name and parameter.

    Raises:
        ConfigError: nothing is left, a pattern matches nothing, or a layer cannot be read (the sentence says why).
    """
    check_filter(layers)
    named = weights(model)
    chosen = {name: tensor for name, tensor in named.items() if wanted(name, tensor, layers)}
    check_choice(chosen, layers)
    return chosen


def check_filter(layers: LayerFilter) -> None:
    """`ConfigError` if `layers` is nothing that `weight_tensors` takes."""
    patterns = [layers] if isinstance(layers, str) or layers is None or callable(layers) else layers
    listed = isinstance(patterns, Sequence) and len(patterns) > 0
    if not listed or (patterns is layers and not all(isinstance(pattern, str) for pattern in patterns)):
        raise ConfigError(
            f"layers must be None, 'trainable', a glob, a list of globs and names or a predicate, not {layers!r}"
        )


def check_choice(chosen: Mapping[str, Tensor], layers: LayerFilter) -> None:
    """`ConfigError` if no layer is left, or a pattern matches none."""
    patterns = [] if layers is None or callable(layers) else [layers] if isinstance(layers, str) else list(layers)
    for pattern in patterns if len(patterns) > 1 else []:
        if not any(wanted(name, tensor, [pattern]) for name, tensor in chosen.items()):
            raise ConfigError(f"layers: no weight tensor matches {pattern!r}")
    if not chosen:
        rule = f" that match {layers!r}" if patterns else ""
        raise ConfigError(f"the model has no weight tensors with more than one dimension{rule}")


def should_move(model: nn.Module, names: Iterable[str], again: bool) -> bool:
    """Whether any of these parameters has a gradient that is not 0; `again`: or whether not all of them are frozen."""
    named = weights(model)
    here = [named[name] for name in names if name in named]
    gradients = [weight.grad for weight in here if weight.is_leaf]
    moves = any(gradient is not None and bool((gradient != 0).any()) for gradient in gradients)
    return moves or (again and (not here or any(weight.requires_grad for weight in here)))


def some(names: Sequence[str]) -> str:
    """The first of these names, and how many more there are."""
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")

"""Weights that a network begins with, besides its own: drawn by fan in, or another's."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from rwclib.errors import ConfigError, DataError


def initialise(model: nn.Module, fill: Callable) -> None:
    """He et al.'s (2015) initialisation: `fill` the weights by fan in for ReLU, biases zero; normalisation as it is."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fill(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def imagenet(name: str) -> dict[str, Tensor]:
    """torchvision's ImageNet weights of its network of this name; `DataError` if they cannot be downloaded."""
    from torchvision.models import get_model_weights

    try:
        weights = get_model_weights(name).DEFAULT
        return weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # no connection; a digest that differs
        raise DataError(
            f"ImageNet weights of {name} cannot be downloaded ({error}); connect, or use init pretrained:DATASET"
        ) from error


@torch.no_grad()
def transfer(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Start the model from another's weights and buffers, its stem and head adapted.

    The head, the last linear layer, keeps its initial weights, since the classes are others. A stem for other image
    channels takes the sum of the other's filters over channels, divided evenly, so that it answers alike to a grey image;
    of a larger kernel (ImageNet's 7x7 of a ResNet) the middle. Everything else is copied.

    Raises:
        ConfigError: a tensor is missing or has another shape.
    """
    own = model.state_dict()
    heads = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1:]
    stem = next(name for name, value in own.items() if value.dim() == 4)
    for name, value in own.items():
        if name.rpartition(".")[0] in heads:
            continue
        given = state.get(name)
        if name == stem and given is not None and given.dim() == 4:
            cut = (given.shape[-1] - value.shape[-1]) // 2
            given = given[..., cut : cut + value.shape[-2], cut : cut + value.shape[-1]] if cut > 0 else given
            if given.shape[1] != value.shape[1]:
                given = (given.sum(1, keepdim=True) / value.shape[1]).expand(-1, value.shape[1], -1, -1)
        if given is None or given.shape != value.shape:
            raise ConfigError(f"the other network's weights do not fit: {name} is missing or has another shape")
        value.copy_(given)

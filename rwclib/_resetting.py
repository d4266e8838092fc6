"""What a network loses when one of its layers is set back to where it started."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import pandas as pd
import torch
from torch import Tensor, nn

from rwclib import _sharding, metrics
from rwclib._layers import LayerFilter, weight_tensors
from rwclib._reference import take
from rwclib.errors import ConfigError


@torch.no_grad()
def reset_layers(
    model: nn.Module,
    start: str | os.PathLike | Mapping[str, Tensor],
    evaluate: Callable[[nn.Module], float],
    layers: LayerFilter = None,
) -> pd.DataFrame:
    """Evaluate the model with one layer at a time set back ("Are All Layers Created Equal?", arXiv 1902.01996, JMLR 2022).

    Only the layer's weight tensor is set back; biases, normalisation and its running statistics stay. The model is left as it was,
    in its mode too, but for running statistics that `evaluate` lets change: evaluate in evaluation mode.

    Args:
        start: a checkpoint of the start, as `rwclib.compare` takes it (a path or a state_dict).
        evaluate: called with the model, in the mode it is in; returns a number such as accuracy.
        layers: which layers, as in `weight_tensors`.

    Returns:
        layer, depth (from 1), value (of `evaluate`), change (value minus that of the model as it is), l2_start (distance from
        the start over the start's norm, ratio).

    Raises:
        ConfigError, DataError: `start` lacks a layer, cannot be read, or is what the model is now.
    """
    weights = weight_tensors(model, layers)
    first = {name: weight.detach().clone() for name, weight in weights.items()}
    take(first, start)
    if all(torch.equal(first[name], weight) for name, weight in weights.items()):
        raise ConfigError("start is what the model is now; before training take copy.deepcopy(model.state_dict())")
    modes = {module: module.training for module in model.modules()}
    whole, rows = float(evaluate(model)), []
    for depth, (name, weight) in enumerate(weights.items(), 1):
        trained = weight.detach().clone()
        try:
            _sharding.copy_(weight, first[name])
            value = float(evaluate(model))
        finally:
            _sharding.copy_(weight, trained)
        rows.append((name, depth, value, value - whole, metrics.l2_ratio(trained, first[name])))
    for module, mode in modes.items():
        module.training = mode
    return pd.DataFrame(rows, columns=["layer", "depth", "value", "change", "l2_start"])

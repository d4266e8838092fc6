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


@torch.no_grad()
def reset_layers(
    model: nn.Module,
    start: str | os.PathLike | Mapping[str, Tensor],
    evaluate: Callable[[nn.Module], float],
    layers: LayerFilter = None,
) -> pd.DataFrame:
    """Evaluate the model with one layer at a time set back ("Are All Layers Created Equal?", arXiv 1902.01996, JMLR 2022).

    Only the layer's weight tensor is set back; biases, normalisation and its running statistics stay. The model is left as it was.

    Args:
        start: a checkpoint of the start, as `rwclib.compare` takes it (a path or a state_dict).
        evaluate: called with the model, in the mode it is in; returns a number such as accuracy.
        layers: which layers, as in `weight_tensors`.

    Returns:
        layer, depth (from 1), value (of `evaluate`), change (value minus that of the model as it is), l2_start (distance from
        the start over the start's norm, ratio).

    Raises:
        ConfigError, DataError: `start` lacks a layer, or cannot be read.
    """
    weights = weight_tensors(model, layers)
    first = {name: weight.detach().clone() for name, weight in weights.items()}
    take(first, start)
    whole, rows = evaluate(model), []
    for depth, (name, weight) in enumerate(weights.items(), 1):
        trained = weight.detach().clone()
        try:
            _sharding.copy_(weight, first[name])
            value = evaluate(model)
        finally:
            _sharding.copy_(weight, trained)
        rows.append((name, depth, value, value - whole, metrics.l2_ratio(trained, first[name])))
    return pd.DataFrame(rows, columns=["layer", "depth", "value", "change", "l2_start"])

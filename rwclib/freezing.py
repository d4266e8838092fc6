"""Freezer: stops training the layers that a rule over the tracker's table names, for the rest of a training."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping

import pandas as pd
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rwclib import _layers
from rwclib.errors import ConfigError
from rwclib.tracker import RWCTracker

Rule = Callable[[pd.DataFrame], Iterable[str]]


def below(threshold: float, metric: str = "rwc") -> Rule:
    """The rule that freezes a layer when its `metric` (a column of the tracker's table) was below `threshold` in the last step."""

    def rule(table: pd.DataFrame) -> pd.Series:
        return table.loc[(table["step"] == table["step"].max()) & (table[metric] < threshold), "layer"]

    return rule


def freeze(model: nn.Module, layers: Container[str]) -> None:
    """Stop training these layers and the vectors behind each; names as in `RWCTracker.layers`."""
    layer = None
    for name, parameter in _layers.weights(model).items():
        layer = name if parameter.dim() > 1 else layer
        if layer in layers:
            parameter.requires_grad_(False)
            parameter.grad = None


class Freezer:
    """Freezes layers of a tracker's model while it trains.

    With a layer go the vectors behind it, up to the next layer in the order of the model's parameters: its bias, the normalisation
    that follows. They get `requires_grad=False` and no gradient, and PyTorch's optimizers pass over what has none: neither
    momentum nor weight decay moves it, it stays bit for bit. Running statistics of batch norm go on. A backward pass ends
    behind the last frozen layer before which all are frozen; for others only the weights' own gradients are saved.

    Args:
        tracker: of the model; `DistributedDataParallel` and FSDP decide what trains when they wrap a model, so not with them.
        rule: given `tracker.table()` without the layers that are frozen, returns the names of those to freeze now.

    Example:
        >>> freezer = rwclib.Freezer(tracker, rwclib.freezing.below(0.01))
        >>> for epoch in range(epochs):
        ...     train_one_epoch(model)
        ...     tracker.step()
        ...     freezer.step()
        >>> freezer.table()
    """

    def __init__(self, tracker: RWCTracker, rule: Rule) -> None:
        if isinstance(tracker._model, DistributedDataParallel):
            raise ConfigError("DistributedDataParallel waits for every gradient; give the tracker the model without it")
        self._tracker, self._rule, self._steps = tracker, rule, 0
        self.frozen: dict[str, int] = {}  # the step after which each stopped, by layer

    def step(self) -> list[str]:
        """Freeze what the rule names, after `tracker.step()`; returns the names. `ConfigError` for one that is not tracked."""
        self._steps += 1
        table = self._tracker.table()
        named = list(dict.fromkeys(self._rule(table[~table["layer"].isin(self.frozen)])))
        unknown = [name for name in named if name not in self._tracker.layers]
        if unknown:
            raise ConfigError(f"the rule named {_layers.some(unknown)}, which the tracker does not follow")
        new = [name for name in named if name not in self.frozen]
        self.frozen |= dict.fromkeys(new, self._steps)
        freeze(self._tracker._model, self.frozen)
        return new

    def table(self) -> pd.DataFrame:
        """Per layer: layer, frozen (the step after which it was; NaN while it trains), saved (share of all steps that it was spared)."""
        frozen = pd.Series(self.frozen, dtype=float).reindex(self._tracker.layers)
        saved = (1 - frozen / max(1, self._steps)).fillna(0.0)
        return pd.DataFrame({"layer": self._tracker.layers, "frozen": frozen.to_numpy(), "saved": saved.to_numpy()})

    def state_dict(self) -> dict[str, object]:
        """Steps and frozen layers, for a checkpoint."""
        return {"steps": self._steps, "frozen": dict(self.frozen)}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Freeze again what was frozen; load the model's weights and make its optimizer as for any other checkpoint."""
        self._steps, self.frozen = state["steps"], dict(state["frozen"])
        freeze(self._tracker._model, self.frozen)

"""Freezer: stops training the layers that a rule over the tracker's table names, for the rest of a training."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

import pandas as pd
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rwclib import _layers, _sharding
from rwclib.errors import ConfigError
from rwclib.tracker import RWCTracker

Rule = Callable[[pd.DataFrame], Iterable[str]]


def below(threshold: float, metric: str = "rwc") -> Rule:
    """The rule that freezes a layer when its `metric` (a column of the tracker's table) was below `threshold` in the last step."""

    def rule(table: pd.DataFrame) -> pd.Series:
        if metric not in table:
            raise ConfigError(f"the tracker's table has no column {metric!r}; known: {', '.join(table.columns[4:])}")
        return table.loc[(table["step"] == table["step"].max()) & (table[metric] < threshold), "layer"]

    return rule


def freeze(model: nn.Module, layers: Collection[str]) -> None:
    """Stop training these weight tensors (names as in `RWCTracker.layers`) and the vectors that go with them, as `Freezer` does.

    Raises:
        ConfigError: the model has no such weight tensor, or nothing would be left to train; nothing is changed.
    """
    chosen, train, met, layer = [], [], set(), None
    for prefix, module in _layers.modules(model):
        own = dict(module.named_parameters(prefix.removesuffix("."), recurse=False))
        weights = [name for name, parameter in own.items() if parameter.dim() > 1]
        if weights:
            layer = weights[-1]
        elif any(True for _ in module.children()):
            layer = None if own else layer  # vectors of a block, such as a scale, are no layer's
        for name, parameter in own.items():
            stops = (name if name in weights else layer) in layers
            met |= {name} & set(layers) & set(weights)
            (chosen if stops else train).append(parameter)
    if len(met) < len(layers):
        raise ConfigError(f"no weight tensor to freeze: {_layers.some(sorted(set(layers) - met))}")
    if not any(parameter.requires_grad for parameter in train):
        raise ConfigError("with every layer frozen nothing is left to train; leave out the last one")
    for parameter in chosen:
        parameter.requires_grad_(False)
        parameter.grad = None


class Freezer:
    """Freezes layers of a tracker's model while it trains.

    With a layer goes its module's bias, and the normalisation registered behind it, before the next layer. They get
    `requires_grad=False` and no gradient, and PyTorch's optimizers (LBFGS excepted) pass over what has none: neither momentum nor
    weight decay moves it, it stays bit for bit. Running statistics of batch norm go on. A frozen layer spares the gradient of its
    weights; where all before it are frozen too, the backward pass ends behind it.

    Args:
        tracker: of the model, without `effective`. `DistributedDataParallel` and FSDP fix what trains when they wrap a model.
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
        model = tracker._model
        wrapped = any(isinstance(module, DistributedDataParallel) for module in model.modules())
        if wrapped or any(map(_sharding.is_sharded, model.parameters())):
            raise ConfigError("layers cannot be frozen once DistributedDataParallel or FSDP has wrapped the model")
        if tracker._effective:
            raise ConfigError("effective=True measures weights that are no parameters; use a tracker without it")
        self._tracker, self._rule, self._steps = tracker, rule, 0
        self.frozen: dict[str, int] = {}  # by layer, the call of `step` that froze it

    def step(self) -> list[str]:
        """Freeze what the rule names, after `tracker.step()`; returns the names.

        Raises:
            ConfigError: the tracker has no step yet, or as `freeze`.
        """
        table = self._tracker.table()
        if table.empty:
            raise ConfigError("the tracker has measured nothing yet; call tracker.step() first")
        self._steps += 1
        named = self._rule(table[~table["layer"].isin(self.frozen)])
        new = [name for name in dict.fromkeys([named] if isinstance(named, str) else named) if name not in self.frozen]
        freeze(self._tracker._model, [*self.frozen, *new])
        self.frozen |= dict.fromkeys(new, self._steps)
        return new

    def table(self) -> pd.DataFrame:
        """Per layer: layer, frozen (the call of `step` that froze it; NaN while it trains), saved (share of the calls so far)."""
        frozen = pd.Series(self.frozen, dtype=float).reindex(self._tracker.layers)
        saved = (1 - frozen / max(1, self._steps)).fillna(0.0)
        return pd.DataFrame({"layer": self._tracker.layers, "frozen": frozen.to_numpy(), "saved": saved.to_numpy()})

    def state_dict(self) -> dict[str, object]:
        """Steps and frozen layers, for a checkpoint."""
        return {"steps": self._steps, "frozen": dict(self.frozen)}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Freeze again what was frozen; load the model's weights and make its optimizer as for any other checkpoint."""
        freeze(self._tracker._model, list(state["frozen"]))
        self._steps, self.frozen = state["steps"], dict(state["frozen"])

"""Freezer: stops training the layers that a rule over the tracker's table names, for the rest of a training."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from fnmatch import fnmatchcase

import pandas as pd
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rwclib import _layers, _sharding
from rwclib.errors import ConfigError
from rwclib.tracker import RWCTracker

Rule = Callable[[pd.DataFrame], Iterable[str] | str | None]


def below(threshold: float, metric: str = "rwc", after: float = -math.inf) -> Rule:
    """The rule that freezes a layer when its `metric` (a column of the tracker's table) was below `threshold` in the last step.

    Never all layers that the tracker follows, and none up to the tracker's step `after`: while a learning rate warms up, layers
    change little.
    """

    def rule(table: pd.DataFrame) -> pd.Series:
        if metric not in table:
            raise ConfigError(f"the tracker's table has no column {metric!r}; known: {', '.join(table.columns[4:])}")
        last = table.groupby("layer", sort=False).tail(1)
        small = last[metric] < threshold
        if small.all():
            small &= last[metric] < last[metric].max()
        return last.loc[small & (last["step"] > after), "layer"]

    return rule


def freeze(model: nn.Module, layers: str | Iterable[str]) -> list[str]:
    """Stop training these weight tensors and the vectors that go with them, as `Freezer` does.

    Args:
        layers: a glob over names (`"layer1.*"`), or several globs and names; names are those of `RWCTracker.layers`.

    Returns:
        Names of the parameters that trained until now.

    Raises:
        ConfigError: the model has no such weight tensor, or nothing would be left to train; nothing is changed.
    """
    known, names = [name for name, weight in _layers.weights(model).items() if weight.dim() > 1], set()
    for pattern in [layers] if isinstance(layers, str) else layers:
        met = {name for name in known if name == pattern or fnmatchcase(name, pattern)}
        if not met:
            raise ConfigError(f"no weight tensor to freeze: {pattern}; known: {_layers.some(known)}")
        names |= met
    return _freeze(model, names)


def _freeze(model: nn.Module, names: Collection[str]) -> list[str]:
    chosen, train, layer = {}, [], None
    for prefix, module in _layers.modules(model):
        own = dict(module.named_parameters(prefix.removesuffix("."), recurse=False))
        weights = [name for name, parameter in own.items() if parameter.dim() > 1]
        if weights:
            layer = weights[-1]
        elif any(True for _ in module.children()):
            layer = None if own else layer  # vectors of a block, such as a scale, are no layer's
        for name, parameter in own.items():
            twin = prefix + name.removeprefix(prefix).replace("bias", "weight")  # an LSTM has several of each
            owner = name if name in weights else twin if twin in weights else layer
            if name in names or owner in names:
                chosen[name] = parameter
            else:
                train.append(parameter)
    if names and not any(parameter.requires_grad for parameter in train):
        raise ConfigError("with every layer frozen nothing is left to train; leave out the last one")
    new = [name for name, parameter in chosen.items() if parameter.requires_grad]
    for name in new:
        chosen[name].requires_grad_(False)
        chosen[name].grad = None
    return new


class Freezer:
    """Freezes layers of a tracker's model while it trains.

    With a layer goes its bias (but that of a parametrised module, such as `weight_norm` makes), and the normalisation registered
    behind it, before the next layer. They get `requires_grad=False` and no gradient, and PyTorch's optimizers (LBFGS excepted) pass
    over what has none: neither momentum nor weight decay moves it, it stays bit for bit. Running statistics of batch norm go on. A
    frozen layer spares the gradient of its weights; where all before it are frozen too, the backward pass ends behind it.

    Args:
        tracker: of the model, without `effective`. `DistributedDataParallel` and FSDP fix what trains when they wrap a model.
        rule: given `tracker.table()` of the layers that still train, returns the names of those to freeze now, or None.

    Attributes:
        frozen: by layer, the call of `step` that froze it.

    Raises:
        ConfigError: a model that DDP or FSDP has wrapped, a tracker with `effective`, or arguments of another kind.

    Example:
        >>> freezer = rwclib.Freezer(tracker, rwclib.freezing.below(0.01, after=5))
        >>> for epoch in range(epochs):
        ...     train_one_epoch(model)
        ...     tracker.step()
        ...     freezer.step()
        >>> freezer.table()
    """

    def __init__(self, tracker: RWCTracker, rule: Rule) -> None:
        if not isinstance(tracker, RWCTracker) or not callable(rule):
            kinds = type(tracker).__name__, type(rule).__name__
            raise ConfigError(f"Freezer takes an RWCTracker and a function of its table, not {kinds[0]} and {kinds[1]}")
        model = tracker._model
        wrapped = any(isinstance(module, DistributedDataParallel) for module in model.modules())
        if wrapped or any(map(_sharding.is_sharded, model.parameters())):
            raise ConfigError("layers cannot be frozen once DistributedDataParallel or FSDP has wrapped the model")
        if tracker._effective:
            raise ConfigError("effective=True measures weights that are no parameters; use a tracker without it")
        self._tracker, self._rule, self._steps = tracker, rule, 0
        self._stopped: list[str] = []  # parameters, with vectors
        self.frozen: dict[str, int] = {}

    def step(self) -> list[str]:
        """Freeze what the rule names, after `tracker.step()`; returns the names.

        Raises:
            ConfigError: the tracker has measured nothing yet, the rule names what it does not track, or nothing would be left to train.
        """
        table, known = self._tracker.table(), self._tracker.layers
        if table.empty:
            raise ConfigError("the tracker has measured nothing yet; call this after a tracker.step() that gave a row")
        weights = _layers.weights(self._tracker._model)
        left = table[table["layer"].map(lambda name: name in weights and weights[name].requires_grad)]
        named = self._rule(left) if len(left) else None
        if isinstance(named, str) or not isinstance(named, Iterable):
            named = [named] if named else []
        names = list(dict.fromkeys(map(str, named)))
        if unknown := [name for name in names if name not in known]:
            said = f"not {_layers.some(unknown)}; known: {_layers.some(known)}"
            raise ConfigError(f"the rule must return names of layers, {said}")
        new = [name for name in names if name not in self.frozen]
        self._stopped += _freeze(self._tracker._model, [name for name in (*self.frozen, *new) if name in weights])
        self._steps += 1
        self.frozen |= dict.fromkeys(new, self._steps)
        return new

    def table(self) -> pd.DataFrame:
        """Per layer: layer, frozen (the call of `step` that froze it; NaN while it trains), saved (share of the calls so far)."""
        frozen = pd.Series(self.frozen, dtype=float).reindex(self._tracker.layers)
        saved = (1 - frozen / max(1, self._steps)).fillna(0.0)
        return pd.DataFrame({"layer": self._tracker.layers, "frozen": frozen.to_numpy(), "saved": saved.to_numpy()})

    def state_dict(self) -> dict[str, object]:
        """Steps and frozen layers, for a checkpoint that takes numbers and names, as `torch.save` and JSON do."""
        return {"steps": self._steps, "frozen": dict(self.frozen)}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Freeze what was frozen then, and nothing else: of an earlier state, later layers train again."""
        weights = _layers.weights(self._tracker._model)
        for name in weights.keys() & self._stopped:
            weights[name].requires_grad_(True)
        self._steps, self._stopped, self.frozen = state["steps"], [], {}
        self._stopped = _freeze(self._tracker._model, state["frozen"])
        self.frozen = dict(state["frozen"])

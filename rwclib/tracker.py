"""RWCTracker: follows the weights of a model through any training loop, without hooks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor, nn

from rwclib import _sharding
from rwclib.errors import ConfigError
from rwclib.metrics import METRICS, measure

if TYPE_CHECKING:
    from rwclib.analysis.plotting import Figure

LayerFilter = str | Callable[[str, nn.Parameter], bool] | None
_WRAPPERS = {"module", "_orig_mod"}  # DataParallel, DistributedDataParallel; torch.compile


def weight_tensors(model: nn.Module, layers: LayerFilter = None) -> dict[str, nn.Parameter]:
    """The parameters with more than one dimension, in network order, by name without wrappers' prefixes.

    Args:
        model: any module, wrapped or not.
        layers: a glob over names (`"layer4.*"`), a predicate of name and parameter, or None for all.

    Raises:
        ConfigError: nothing is left.
    """
    chosen: dict[str, nn.Parameter] = {}
    for full_name, parameter in model.named_parameters():
        name = ".".join(part for part in full_name.split(".") if part not in _WRAPPERS)
        name = full_name if name in chosen else name  # a model may have a submodule of its own called `module`
        if layers is None:
            wanted = parameter.dim() > 1
        elif isinstance(layers, str):
            wanted = parameter.dim() > 1 and fnmatchcase(name, layers)
        else:
            wanted = layers(name, parameter)
        if wanted and parameter.numel():
            chosen[name] = parameter
    if not chosen:
        rule = f" that match {layers!r}" if isinstance(layers, str) else ""
        raise ConfigError(f"the model has no weight tensors with more than one dimension{rule}")
    return chosen


class RWCTracker:
    """Relative weight change of every layer between successive calls of `step()`.

    A layer is a parameter tensor with more than one dimension. No hooks are used: parameters are looked up by name at
    each step, so the tracker survives `torch.compile`, wrappers, `model.to(...)` and in-place changes.

    Under `DistributedDataParallel` rank 0 alone tracks, without communication; on the other ranks the tracker holds no
    weights, and its steps and tables are empty. Of a model that `fully_shard` (FSDP2) has sharded every rank keeps and
    measures its own shards and gets the numbers of the whole tensors: all ranks must make the tracker, take its steps
    and load its state together.

    Args:
        model: the model in training.
        layers: which layers, as in `weight_tensors`; a predicate may also admit vectors.
        offload: `"cpu"` keeps the reference weights off the model's device; None beside the weights.

    Raises:
        ConfigError: no layer is left, or an unknown `offload`.

    Example:
        >>> tracker = RWCTracker(model)
        >>> for epoch in range(epochs):
        ...     train_one_epoch(model)
        ...     tracker.step()
        >>> tracker.table()
    """

    def __init__(self, model: nn.Module, layers: LayerFilter = None, offload: str | None = None) -> None:
        if not isinstance(model, nn.Module):
            raise ConfigError(f"the tracker needs the model itself, a torch.nn.Module, not {type(model).__name__}")
        if offload not in (None, "cpu"):
            raise ConfigError(f"offload must be None or 'cpu', not {offload!r}")
        self._model, self._filter, self._offload = model, layers, offload
        self._reference: dict[str, Tensor] = {}
        self._idle = _sharding.is_replica(model)
        weights = self._weights()
        self._names = list(weights)
        for name, weight in weights.items():
            if not self._idle:
                self._reference[name] = weight.detach().clone().to(offload or weight.device)
        self._norms = self._reference_norms()
        self._history: list[dict[str, Tensor]] = []  # a step's metrics by name, (layers,) each
        self._at: list[int] = []
        self._warned = False

    @property
    def layers(self) -> list[str]:
        """Names of the layers, in network order."""
        return list(self._names)

    def _weights(self) -> dict[str, nn.Parameter]:
        _sharding.reshard(self._model)
        return weight_tensors(self._model, self._filter)

    def _reference_norms(self) -> tuple[Tensor, Tensor]:
        weights = list(self._reference.values())
        metrics = measure(weights, weights)
        return metrics["l1_norm"], metrics["l2_norm"]

    def step(self, at: int | None = None) -> dict[str, float]:
        """Compare the weights with those of the step before, keep the result, and remember the weights.

        Returns:
            `rwc` (ratio) by layer name; NaN, with one warning, for a layer whose weights were all zero, and NaN for one
            whose weights are not finite. Empty on the ranks of a DDP model other than 0.
        """
        if self._idle:
            return {}
        weights = self._weights()
        if list(weights) != self.layers:
            gone = set(self.layers) ^ set(weights)
            raise ConfigError(f"the model's layers changed since the tracker was made: {', '.join(sorted(gone))}")
        wrong = [name for name, weight in weights.items() if weight.shape != self._reference[name].shape]
        if wrong:
            raise ConfigError(
                f"layers changed their shape since the tracker was made: {', '.join(wrong)}; make a new one"
            )
        current = []
        for name, weight in weights.items():
            weight = weight.detach()
            if self._offload:
                weight = weight.to(self._offload)
            reference = self._reference[name]
            if _sharding.layout(reference) != _sharding.layout(weight):
                self._reference[name] = _sharding.copy_(torch.empty_like(weight), reference)
            current.append(weight)
        zero = self._norms[0] == 0
        metrics = measure(current, list(self._reference.values()), previous_norms=self._norms, update=True)
        self._norms = metrics["l1_norm"], metrics["l2_norm"]
        self._history.append(metrics)
        self._at.append(len(self._history) if at is None else at)
        if zero.any() and not self._warned:
            self._warned = True
            names = ", ".join(name for name, is_zero in zip(self.layers, zero.tolist(), strict=True) if is_zero)
            warnings.warn(
                f"relative weight change is NaN for {names}: all weights were zero", RuntimeWarning, stacklevel=2
            )
        return dict(zip(self.layers, metrics["rwc"].tolist(), strict=True))

    @property
    def steps(self) -> int:
        """How many steps were taken."""
        return len(self._history)

    def history(self) -> dict[str, Tensor]:
        """The metrics by name, (steps, layers) float64 on the CPU each."""
        if not self._history:
            return {name: torch.empty(0, len(self._names), dtype=torch.float64) for name in METRICS}
        return {name: torch.stack([step[name] for step in self._history]) for name in METRICS}

    def scalars(self, prefix: str = "rwc", by: str = "layer") -> dict[str, float]:
        """`rwc` (ratio) of the last step by `<prefix>/<layer>`; empty before the first."""
        if not self._history:
            return {}
        return {
            f"{prefix}/{name}": value
            for name, value in zip(self.layers, self._history[-1]["rwc"].tolist(), strict=True)
        }

    def table(self) -> pd.DataFrame:
        """Tidy table, one row per (step, layer): step (from 1), layer, depth (from 1), size and the metrics."""
        rows = {
            "step": [step for step in self._at for _ in self.layers],
            "layer": self.layers * self.steps,
            "depth": list(range(1, len(self.layers) + 1)) * self.steps,
            "size": [reference.numel() for reference in self._reference.values()] * self.steps,
        }
        return pd.DataFrame(rows | {name: values.flatten().numpy() for name, values in self.history().items()})

    def plot(self, metric: str = "rwc") -> Figure:
        """One line per layer, coloured by depth: `metric` (a name of `METRICS`) against the step.

        The matplotlib figure shows itself at the end of a notebook cell; elsewhere use its `savefig`.
        """
        from rwclib.analysis.plotting import layer_lines

        return layer_lines(self.table(), metric)

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors only: `history.<metric>`, and `reference.<layer>` for every layer; save it before the next step.

        References of sharded layers are `DTensor`s, for `torch.distributed.checkpoint`; to load, hand it a state whose
        histories have the saved number of steps. A rank of a DDP model other than 0 has empty histories alone.
        """
        history = {f"history.{name}": values for name, values in self.history().items()}
        if self._at != list(range(1, self.steps + 1)):
            history["at"] = torch.tensor(self._at)
        return history | {f"reference.{name}": weights.contiguous() for name, weights in self._reference.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up the history and the reference weights that `state_dict` gave; `ConfigError` if layers differ.

        A metric that did not exist when the state was made is NaN in its steps.
        References may be whole where the model is sharded and sharded where it is not. A rank of a DDP model other than
        0 takes nothing up.
        """
        if self._idle:
            return
        names = [key.removeprefix("reference.") for key in state if key.startswith("reference.")]
        if set(names) != set(self.layers):
            differing = ", ".join(sorted(set(names) ^ set(self.layers)))
            raise ConfigError(f"the saved state is of other layers than the tracker's: {differing}")
        wrong = [
            name for name, reference in self._reference.items() if state[f"reference.{name}"].shape != reference.shape
        ]
        if wrong:
            raise ConfigError(f"the saved state has other shapes than the tracker's layers {', '.join(wrong)}")
        for name, reference in self._reference.items():
            _sharding.copy_(reference, state[f"reference.{name}"])
        history = {key.removeprefix("history."): state[key].cpu() for key in state if key.startswith("history.")}
        unknown = torch.full_like(history["rwc"], torch.nan)
        columns = {name: history.get(name, unknown).unbind(0) for name in METRICS}
        self._history = [{name: column[i] for name, column in columns.items()} for i in range(len(unknown))]
        self._norms = self._reference_norms()
        self._at = state["at"].tolist() if "at" in state else list(range(1, self.steps + 1))

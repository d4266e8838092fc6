"""RWCTracker: follows the weights of a model through any training loop, without hooks."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from rwclib import _history, _layers, _sharding
from rwclib._extras import LORA, NEURONS, START, by_group, lora_ratios
from rwclib._layers import LayerFilter, weight_tensors
from rwclib._names import block
from rwclib._reference import Reference
from rwclib.errors import ConfigError
from rwclib.metrics import METRICS, formulas

if TYPE_CHECKING:
    from rwclib.analysis.plotting import Figure

__all__ = ["RWCTracker", "weight_tensors"]


class RWCTracker:
    """Relative weight change of every layer between successive calls of `step()`.

    A layer is a parameter tensor with more than one dimension. No hooks are used: weights are looked up by name at each
    step, so the tracker survives `torch.compile`, wrappers, `model.to(...)` and in-place changes. Whether a
    weight is a layer is decided once; where the model's structure changes, rows of layers that are gone end, those of new
    layers begin, and a warning names them. Arithmetic is in float32 (float64 weights: float64; complex weights: moduli).

    Under `DistributedDataParallel` rank 0 alone tracks, without communication; on the other ranks the tracker holds no
    weights, and its steps and tables are empty. Of a model that `fully_shard` (FSDP2) has sharded every rank keeps and
    measures its own shards and gets the numbers of the whole tensors: all ranks must make the tracker, take its steps
    and load its state together.

    Args:
        model: the model in training.
        layers: which layers, as in `weight_tensors`.
        offload: `"cpu"` keeps the reference weights off the model's device; None beside the weights.
        reference: what a change is measured against: `"previous"`, the measured step before; `"start"`, the weights of now;
            or a checkpoint, as `rwclib.compare` takes it (a path or a state_dict).
        start: add columns on the distance from the weights of now: `l2_start` (ratio), `cosine_start` (layer rotation is 1
            minus it), `changed`, `changed_0.1%` and `changed_1%` (shares of weights that moved by more than that).
        neurons: add columns on the output rows' own changes (first dimension; L1 ratio): `row_rwc_10%`, `row_rwc_50%` and
            `row_rwc_90%`, quantiles over rows, and `rows_unmoved`, the share of rows that did not move.
        effective: measure the weights that parametrised layers (weight norm, spectral norm) compute with, and add a row
            `lora_ratio` = `||s B A|| / ||W||` for each layer that PEFT's LoRA adapts.
        every: measure single updates: of so many calls of `step()`, one after each update, the last gives a row.
        keep: how many rows of the history to keep; None for all.

    Raises:
        ConfigError: no layer is left, one cannot be read, or an option is unknown.

    Example:
        >>> tracker = RWCTracker(model)
        >>> for epoch in range(epochs):
        ...     train_one_epoch(model)
        ...     tracker.step()
        >>> tracker.table()
    """

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(
        self,
        model: nn.Module,
        layers: LayerFilter = None,
        offload: str | None = None,
        *,
        reference: str | os.PathLike | Mapping[str, Tensor] = "previous",
        start: bool = False,
        neurons: bool = False,
        effective: bool = False,
        every: int = 1,
        keep: int | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ConfigError(f"the tracker needs the model itself, a torch.nn.Module, not {type(model).__name__}")
        if offload not in (None, "cpu"):
            raise ConfigError(f"offload must be None or 'cpu', not {offload!r}")
        for option, number in (("every", every), ("keep", 1 if keep is None else keep)):
            if not isinstance(number, int) or number < 1:
                raise ConfigError(f"{option} must be a whole number of at least 1, not {number!r}")
        _layers.check_filter(layers)
        self._model, self._filter, self._effective = model, layers, effective
        self._every, self._keep, self._neurons = every, keep, neurons
        self._chosen: dict[tuple, bool] = {}
        self._calls, self._still, self._warned = 0, 0, set()
        self._history: list[_history.Row] = []
        self._sums: SimpleNamespace | None = None
        self._expected: pd.DataFrame | None = None
        self._columns = [
            *METRICS,
            *(START if start else ()),
            *(NEURONS if neurons else ()),
            *([LORA] if effective else ()),
        ]
        self._idle = _sharding.is_replica(model)
        weights = self._weights()
        _layers.check_choice(weights, layers)
        self._names = list(weights)
        if neurons and any(map(_sharding.is_sharded, weights.values())):
            raise ConfigError("neurons=True needs whole weights, not those that fully_shard has spread over ranks")
        self._reference = Reference({} if self._idle else weights, offload, reference, start)

    @property
    def layers(self) -> list[str]:
        """Names of the layers, in network order."""
        return list(self._names)

    @property
    def steps(self) -> int:
        """How many steps were measured and kept."""
        return len(self._history)

    def _weights(self) -> dict[str, Tensor]:
        _sharding.reshard(self._model)
        chosen = {}
        for name, weight in _layers.weights(self._model, self._effective).items():
            kind = name, None if is_lazy(weight) else (weight.dim(), weight.numel() > 0)
            if kind not in self._chosen:
                self._chosen[kind] = _layers.wanted(name, weight, self._filter)
            if self._chosen[kind]:
                chosen[name] = weight.detach()
        return chosen

    @torch.inference_mode(False)
    @torch.no_grad()
    def rebase(self) -> None:
        """Take the weights as they are now as the new reference, without a row."""
        if self._idle:
            return
        weights = self._weights()
        self._follow(weights)
        self._reference.rebase(weights)

    @torch.inference_mode(False)
    @torch.no_grad()
    def step(self, at: int | None = None) -> dict[str, float]:
        """Compare the weights with the reference (the measured step before), keep the result, and remember the weights.

        Args:
            at: the caller's own number of this step, for the table; by default the number of calls.

        Returns:
            `rwc` (ratio) by layer name; NaN, with one warning, for a layer whose weights were all zero, and NaN for one
            whose weights are not finite. Empty on the ranks of a DDP model other than 0, and for calls that `every` passes over.
        """
        self._calls += 1
        if self._idle:
            return {}
        phase = self._calls % self._every
        if phase:
            if phase == self._every - 1 and not self._reference.fixed:
                self.rebase()
            return {}
        weights = self._weights()
        new = self._follow(weights)
        measured = [name for name in self._names if name not in new]
        values, self._sums = self._reference.measure({name: weights[name] for name in measured}, self._neurons)
        self._notice(weights, values["rwc"])
        unknown = torch.full_like(values["rwc"], torch.nan)
        values = {column: values.get(column, unknown) for column in self._columns}
        depths = {name: (depth, weights[name].numel()) for depth, name in enumerate(self._names, 1)}
        row = _history.Row(_history.step_number(at, self._calls), {name: depths[name] for name in measured}, values)
        if self._effective:
            for name, (size, ratio) in lora_ratios(self._model).items():
                row.layers[name] = len(self._names) + len(row.layers) - len(measured) + 1, size
                for column, known in values.items():
                    values[column] = torch.cat([known, known.new_tensor([ratio if column == LORA else torch.nan])])
        self._history.append(row)
        del self._history[: -(self._keep or len(self._history))]
        return dict(zip(measured, values["rwc"].tolist(), strict=False))

    def _follow(self, weights: dict[str, Tensor]) -> set[str]:
        """Follow a change of the model's structure; the names of layers that are new or have another shape."""
        gone, new = self._reference.follow(weights)
        if gone or new:
            titles = {"gone": gone, "new or of another shape": new}
            parts = [f"{title}: {', '.join(names)}" for title, names in titles.items() if names]
            warnings.warn(f"the model's layers changed; {'; '.join(parts)}", RuntimeWarning, stacklevel=5)
            self._names = list(weights)
        return set(new)

    def _notice(self, weights: dict[str, Tensor], rwc: Tensor) -> None:
        """Warn once of layers without a norm, and once of a model that does not move."""
        zero = [name for name, l1 in zip(self._sums.names, self._sums.before[0].tolist(), strict=True) if l1 == 0]
        if zero:
            self._warn("zero", f"relative weight change is NaN for {_layers.some(zero)}: all weights were zero")
        self._still = self._still + 1 if len(rwc) and bool((rwc == 0).all()) else 0
        if self._still and _layers.should_move(self._model, weights, again=self._still > 1):
            self._warn(
                "still",
                "no tracked weight has moved: is the model that trains another object (after copy.deepcopy, or a trainer's "
                "model_init)? Make the tracker of that one; with a learning rate of 0 all is well",
            )

    def _warn(self, about: str, text: str) -> None:
        if about not in self._warned:
            self._warned.add(about)
            warnings.warn(text, RuntimeWarning, stacklevel=6)

    def history(self) -> dict[str, Tensor]:
        """The columns by name, (steps, layers) float64 on the CPU each; NaN where a layer was not measured.

        Layers are those of all rows, in the order in which they came.
        """
        return _history.tensors(self._history, _history.names(self._history, self._names), self._columns)

    def table(self) -> pd.DataFrame:
        """Tidy table, one row per (step, layer): step, layer, depth (from 1), size and the metrics."""
        return _history.frame(self._history, self._columns)

    def last(self) -> pd.DataFrame:
        """The rows of the last step, as in `table`; none before the first."""
        return _history.frame(self._history[-1:], self._columns)

    def scalars(
        self, prefix: str = "rwc", by: str | Callable[[str], str] = "layer", metric: str = "rwc", most: int = 20
    ) -> dict[str, float]:
        """The last step as a flat dict for a logger: `metric` by `<prefix>/<layer or block>`, NaN left out.

        Empty before the first step, and by block after `load_state_dict`, until the next.

        Args:
            by: `"layer"`; `"block"` (`layer4`, `transformer.h.3`: the name up to its first number); or a function from a
                layer's name to that of its group. A group's number is that of the one long vector of all its weights (of
                `rwc_median` the layers' mean by size).
            metric: a column of the table; by block one of `METRICS`.
            most: more blocks than so many are joined with their neighbours.

        Raises:
            ConfigError: unknown `by` or `metric`.
        """
        known = self._columns if by == "layer" else METRICS
        if metric not in known:
            raise ConfigError(f"unknown metric {metric!r}; known: {', '.join(known)}")
        if by not in ("layer", "block") and not callable(by):
            raise ConfigError(
                f"unknown by {by!r}; known: layer, block, or a function from a layer's name to its group's"
            )
        if by == "layer" and self._history:
            values = self.last().set_index("layer")[metric].dropna()
            return {f"{prefix}/{name}": value for name, value in values.items()}
        if self._sums is None or not self._history:
            return {}
        totals = by_group(self._sums, (block if by == "block" else by), most if by == "block" else None)
        return {
            f"{prefix}/{name}": value
            for name, value in zip(totals.names, formulas(totals)[metric].tolist(), strict=True)
        }

    def expected(
        self, optimizer: torch.optim.Optimizer, steps: int, inputs: object = None, invariant: Mapping[str, bool] | None = None
    ) -> pd.DataFrame:  # fmt: skip
        """What theory expects of a row of so many optimizer steps, once norms have settled, at the present learning rate.

        Weights and changes share a distribution's shape, so `rwc` is the L2 ratio. `rwclib.theory.expected` says more.

        Args:
            inputs: a batch as `theory.scale_invariant` takes it; or give `invariant`, what that function returned.

        Returns:
            layer, rwc, l2_ratio (NaN where theory is silent), and reason (why; empty where there is a number).
        """
        from rwclib.analysis import theory

        self._expected = theory.expected(self._model, self._names, optimizer, steps, inputs, invariant)
        return self._expected

    def plot(self, metric: str = "rwc", expected: pd.DataFrame | bool | None = None) -> Figure:
        """One line per layer, coloured by depth: `metric` (a name of `METRICS`) against the step.

        `expected`: a table of that method to draw dashed, or True for its last. The matplotlib figure shows itself at the
        end of a notebook cell; in a script use its `show` or `savefig`.
        """
        from rwclib.analysis.plotting import layer_lines

        if expected is True and self._expected is None:
            raise ConfigError("plot(expected=True) draws what expected(...) gave last; call that first")
        return layer_lines(self.table(), metric, self._expected if expected is True else expected)

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors only: the layers' names, the history, and `reference.<layer>` for every layer; save it before the next step.

        `layers` holds the names of the history's columns in order (JSON as bytes), `history.<column>` (steps, layers) its
        values, `history.step` (steps,), `history.depth` and `history.size` (steps, layers; 0 where a layer was not measured).
        References of sharded layers are `DTensor`s, for `torch.distributed.checkpoint`; to load, hand it a state whose
        histories have the saved number of steps. A rank of a DDP model other than 0 has empty histories alone.
        """
        state = _history.to_state(self._history, self._names, self._columns)
        state["calls"] = torch.tensor(self._calls, device="cpu")
        return state | self._reference.state()

    @torch.inference_mode(False)
    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up the history and the reference weights that `state_dict` gave, by the layers' names.

        A metric that did not exist when the state was made is NaN in its steps.
        References may be whole where the model is sharded and sharded where it is not. A rank of a DDP model other than
        0 takes nothing up.

        Raises:
            ConfigError: the state is of other layers or shapes, or its history is missing or incomplete; nothing is changed.
        """
        if self._idle:
            return
        self._reference.check(state)
        history = _history.from_state(state, self._names, self._columns)
        self._reference.load(state)
        kept = history[-self._keep :] if self._keep else history
        self._history, self._calls, self._sums, self._still = kept, int(state.get("calls", len(history))), None, 0

"""The weights that a tracker measures changes against."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

import torch
from torch import Tensor

from rwclib import _sharding
from rwclib._extras import neuron_changes, since_start
from rwclib._names import agree
from rwclib.errors import ConfigError
from rwclib.metrics import formulas, layer_sums


class Reference:
    """Copies of a model's weights by layer, and of those of the start if asked for, with their norms.

    Args:
        weights: of the model, by layer; nothing of them is kept but copies.
        offload: `"cpu"`, or None for beside the weights.
        source: `"previous"`, so that each measurement takes the weights as the new reference; `"start"`; or a checkpoint.
        start: whether to keep the weights of now for the columns of `rwclib._extras.START`.
    """

    def __init__(self, weights: Mapping[str, Tensor], offload: str | None, source: object, start: bool) -> None:
        self._offload, self._with_start = offload, start
        self.fixed = not (isinstance(source, str) and source == "previous")
        self._weights = {name: self._copy(weight) for name, weight in weights.items()}
        self._start = {name: self._copy(weight) for name, weight in weights.items()} if start else {}
        if self.fixed and not (isinstance(source, str) and source == "start"):
            take(self._weights, source)
        self._renew_norms()

    def _device(self, weight: Tensor) -> torch.device:
        return torch.device(self._offload) if self._offload else weight.device

    def _copy(self, weight: Tensor) -> Tensor:
        return weight.clone().to(self._device(weight))

    def _renew_norms(self) -> None:
        weights, first = list(self._weights.values()), list(self._start.values())
        metrics = formulas(layer_sums(weights, weights))
        self._norms = metrics["l1_norm"], metrics["l2_norm"]
        self._start_norms = formulas(layer_sums(first, first))["l2_norm"]

    def rebase(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights as the new reference."""
        for name, weight in weights.items():
            target = _sharding.like(weight, self._weights[name], self._device(weight))
            self._weights[name] = _sharding.copy_(target, weight)
        self._renew_norms()

    def follow(self, weights: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
        """Drop layers that are gone, take up those that are new or have another shape as they are; the names of both."""
        held = self._weights
        gone = [name for name in held if name not in weights]
        new = [name for name, weight in weights.items() if name not in held or weight.shape != held[name].shape]
        if not weights:
            raise ConfigError(f"the model has no tracked layer left; gone: {', '.join(gone)}")
        if gone or new:
            self._weights = {name: self._copy(weights[name]) if name in new else held[name] for name in weights}
            if self._with_start:
                self._start = {n: self._copy(weights[n]) if n in new else self._start[n] for n in weights}
            self._renew_norms()
        return gone, new

    def measure(self, weights: Mapping[str, Tensor], neurons: bool) -> tuple[dict[str, Tensor], SimpleNamespace]:
        """All columns of these layers, (layers,) float64 each, and the sums they follow from, as `by_group` takes them."""
        rows = [i for i, name in enumerate(self._weights) if name in weights]
        names = [name for name in self._weights if name in weights]
        norms = tuple(norm[rows] for norm in self._norms)
        for kept in (self._weights, self._start) if self._start else (self._weights,):
            kept |= {name: _sharding.like(w, kept[name], self._device(w)) for name, w in weights.items()}
        one_by_one = self._offload and names  # one tensor at a time on the host
        groups = [[name] for name in names] if one_by_one else [names]
        parts, extras = [], []
        for group in groups:
            now = [weights[name].to(self._device(weights[name])) for name in group]
            before = [self._weights[name] for name in group]
            more = neuron_changes(now, before) if neurons else {}
            parts.append(layer_sums(now, before, with_previous=False, update=not self.fixed))
            extras.append(more | (since_start(now, [self._start[name] for name in group]) if self._start else {}))
        sums = SimpleNamespace(**{key: torch.cat([vars(part)[key] for part in parts]) for key in vars(parts[0])})
        sums.names, sums.before = names, norms
        values = formulas(sums, norms)
        values |= {column: torch.cat([more[column] for more in extras]) for column in extras[0]}
        if self._start:
            start = self._start_norms[rows].masked_fill(self._start_norms[rows] == 0, torch.nan)
            values["l2_start"] = values["start_squares"].sqrt() / start
            values["cosine_start"] = (values["start_dot"] / (values["l2_norm"] * start)).clamp(-1, 1)
        if not self.fixed:
            for norm, known in zip(self._norms, ("l1_norm", "l2_norm"), strict=True):
                norm[rows] = values[known]
        return values, sums

    def state(self) -> dict[str, Tensor]:
        """`reference.<layer>` and `start.<layer>`."""
        state = {f"reference.{name}": weight.contiguous() for name, weight in self._weights.items()}
        return state | {f"start.{name}": weight.contiguous() for name, weight in self._start.items()}

    def check(self, state: Mapping[str, Tensor]) -> None:
        """Raise `ConfigError` unless `state` has weights for these layers, and for no others."""
        names = {key.removeprefix("reference.") for key in state if key.startswith("reference.")}
        if names != set(self._weights):
            differing = ", ".join(sorted(names ^ set(self._weights)))
            raise ConfigError(f"the saved state is of other layers than the tracker's: {differing}")
        if any(f"start.{name}" not in state for name in self._start):
            raise ConfigError("the saved state has no weights of the start; make the tracker without start=True")
        wrong = [name for name, weight in self._weights.items() if state[f"reference.{name}"].shape != weight.shape]
        if wrong:
            raise ConfigError(f"the saved state has other shapes than the tracker's layers {', '.join(wrong)}")

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave; `check` it first."""
        for kept, prefix in ((self._weights, "reference"), (self._start, "start")):
            for name, weight in kept.items():
                _sharding.copy_(weight, state[f"{prefix}.{name}"])
        self._renew_norms()


def take(weights: Mapping[str, Tensor], source: object) -> None:
    """Copy into `weights` those of a checkpoint, as `rwclib.compare` takes it; `ConfigError` if a layer is missing there."""
    from rwclib._checkpoints import open_checkpoint

    entries = open_checkpoint(source).entries
    entries = {name: entries[old] for old, name in agree(entries, weights)[0].items()}
    for name, weight in weights.items():
        if name not in entries or entries[name].shape != tuple(weight.shape):
            lack = f"another shape ({tuple(entries[name].shape)})" if name in entries else "no tensor"
            raise ConfigError(
                f"the reference has {lack} for layer {name}; give a checkpoint of this model, or choose layers="
            )
        _sharding.copy_(weight, entries[name].read().to(weight.dtype))

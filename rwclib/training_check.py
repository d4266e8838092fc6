"""check(model, optimizer): did a few steps of training move every tensor that they should, and no other?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase

import pandas as pd
import torch
from torch import Tensor, nn

from rwclib import _layers, _sharding
from rwclib.errors import ConfigError, RwcError

FINDINGS = {  # what can be wrong with a tensor
    "frozen": "frozen, though it should train",
    "frozen but moved": "frozen, yet the optimizer moved it (weight decay or momentum, with a gradient left from before)",
    "not finite": "its weights became NaN or infinite",
    "not in the optimizer": "not among the optimizer's parameters, and did not move",
    "no step": "the optimizer took no step (was it called, or did a GradScaler skip it?)",
    "no gradient": "no gradient came, or all zeros (is its branch detached?)",
    "updates lost": "gradients came, but hardly a weight moved: updates too small for the dtype, or learning rate 0",
    "did not move": "did not move",
}
_LOST = 0.1  # updates are lost where fewer of the elements that had a gradient moved


@contextmanager
def check(model: nn.Module, optimizer: torch.optim.Optimizer, must_train: str | None = None) -> Iterator[TrainingCheck]:
    """Watch the training steps inside the `with` block; what they did is known after it.

    Take three steps: behind a factor that starts at zero, as in LoRA, gradients come from the second on. Costs a copy of
    the weights and, after each step, reductions of the gradients on their device; nothing is read back before the end.

    Args:
        model: the model in training, wrapped or not.
        optimizer: PyTorch's, or accelerate's or Lightning's around it.
        must_train: a glob over names (`"adapter.*"`) of tensors that must not be frozen.

    Raises:
        ConfigError: not a model, not an optimizer, or no parameters, or none that match.

    Example:
        >>> with rwclib.check(model, optimizer) as result:
        ...     for _ in range(3):
        ...         train_step()
        >>> print(result)
        >>> result.raise_if_bad()
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"the check needs the model itself, a torch.nn.Module, not {type(model).__name__}")
    inner = optimizer
    while isinstance(getattr(inner, "optimizer", None), torch.optim.Optimizer):
        inner = inner.optimizer
    if not isinstance(inner, torch.optim.Optimizer):
        raise ConfigError(f"the check needs the optimizer, a torch.optim.Optimizer, not {type(optimizer).__name__}")
    result = TrainingCheck(model, inner, must_train)
    hook = inner.register_step_post_hook(result._look)  # after the step: by then a closure has made its gradients
    try:
        yield result
        result._compare()
    finally:
        hook.remove()
        result._before.clear()


class TrainingCheck:
    """What `check` found; `RwcError` if read before its `with` block has ended well.

    Attributes:
        steps: of the optimizer, as far as seen: a replayed CUDA graph shows none.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, must_train: str | None) -> None:
        self._model, self._optimizer, self._table, self.steps = model, optimizer, None, 0
        self._parameters = _layers.weights(model)
        self._required = [name for name in self._parameters if fnmatchcase(name, must_train or "")]
        if not self._parameters or (must_train and not self._required):
            raise ConfigError(f"the model has no parameters{f' that match {must_train!r}' if must_train else ''}")
        if any(isinstance(p, nn.UninitializedParameter) for p in self._parameters.values()):
            raise ConfigError("the model has lazy parameters without shapes; run it once before the check")
        _sharding.reshard(model)
        self._trainable = {name: p.requires_grad for name, p in self._parameters.items()}
        self._before = {name: _elements(p).clone() for name, p in self._parameters.items()}
        self._seen: dict[str, list[Tensor]] = {name: [] for name in self._parameters}
        self._taken: list[Tensor] = []

    @torch.no_grad()
    def _look(self, *_: object) -> None:
        """After a step, at each gradient: is there any, in how many elements, and its root mean square, (3,) float32."""
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
            return  # else its replays would write into memory that the check has given back
        skipped = getattr(self._optimizer, "found_inf", None)  # a GradScaler leaves it to a fused optimizer to skip
        self._taken.append(torch.ones(()) if skipped is None else (skipped == 0).float())
        for name, p in self._parameters.items():
            if p.grad is not None:
                grad = _elements(p.grad)
                count = grad.count_nonzero().float()
                rms = torch.linalg.vector_norm(grad.float()) / max(grad.numel(), 1) ** 0.5
                row = torch.stack([count.clamp(max=1), count, rms])
                self._seen[name].append(row if skipped is None else row.where(self._taken[-1].to(row.device) > 0, 0))

    @torch.no_grad()
    def _compare(self) -> None:
        """At the end: make the table."""
        _sharding.reshard(self._model)
        parts = []
        for (name, p), before in zip(self._parameters.items(), self._before.values(), strict=True):
            now = _elements(p).to(before.device)
            moved, looks = now != before, torch.stack(self._seen[name] or [torch.zeros(3, device=now.device)])
            changes = torch.stack([moved.sum(), (moved & ~now.isfinite()).sum()]).float()
            parts.append((changes, torch.cat([looks[:, :1].sum(0), looks[:, 1:].amax(0)])))
        whole = _sharding.all_reduce(list(self._parameters.values()), parts)
        counts = {name: torch.cat(pair).tolist() for name, pair in zip(self._parameters, whole, strict=True)}
        self.steps = int(sum(taken.item() for taken in self._taken))
        self._held = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
        self._table = pd.DataFrame([
            {"tensor": name, "size": p.numel(), "dtype": str(p.dtype).removeprefix("torch."),
             "trainable": self._trainable[name], "moved": counts[name][0] / max(p.numel() * (1 + p.is_complex()), 1),
             "gradient_steps": min(int(counts[name][2]), self.steps),
             "finding": self._finding(name, p, counts) if p.numel() else ""}
            for name, p in self._parameters.items()
        ])  # fmt: skip

    def _finding(self, name: str, p: nn.Parameter, counts: dict[str, list[float]]) -> str:
        """`counts` by name: elements that moved and that broke, steps with a gradient, most elements in one, its size."""
        (moved, broken, came, reached, size), held = counts[name], id(p) in self._held
        if broken:
            return "not finite"
        if not self._trainable[name]:
            wanted = name in self._required or not any(self._trainable.values())
            return "frozen but moved" if moved and held else "frozen" if wanted else ""
        if moved and not (held and self.steps and self._seen[name]):
            return ""  # by another optimizer, or a step that the hook does not see or that clears its gradients
        if not held:
            return "not in the optimizer"
        if not self.steps:
            return "did not move" if any(other[0] for other in counts.values()) else "no step"
        if not came:
            return "no gradient"
        if name.endswith("bias"):  # before a batch norm its gradient is rounding noise beside its weight's
            weight = counts.get(f"{name.removesuffix('bias')}weight")
            if weight and size < min(0.1, 1000 * torch.finfo(p.dtype).eps) * weight[4]:
                return ""
        return "updates lost" if moved < _LOST * reached else ""

    @property
    def table(self) -> pd.DataFrame:
        """One row per parameter tensor, in network order: tensor (its name), size (elements), dtype, trainable, moved (share
        of elements that changed), gradient_steps (with a nonzero gradient), finding (a key of `FINDINGS`, or empty).
        """
        if self._table is None:
            raise RwcError("the check has no result: its with block has not ended, or ended in an error")
        return self._table.copy()

    @property
    def bad(self) -> pd.DataFrame:
        """The rows of `table` with a finding."""
        return self.table.query("finding != ''")

    def raise_if_bad(self) -> None:
        """`RwcError` that names the tensors that are not as they should be, and what is wrong; nothing if there are none."""
        groups = self.bad.groupby("finding", sort=False)["tensor"]
        sentences = [f"{_layers.some(names)}: {FINDINGS[finding]}" for finding, names in groups]
        if sentences:
            raise RwcError(f"{self._verdict()}: {'; '.join(sentences)}")

    def _verdict(self) -> str:
        steps = f"{self.steps} optimizer step{'' if self.steps == 1 else 's'}"
        if len(self.bad):
            return f"after {steps} {len(self.bad)} of {len(self.table)} tensors are not as they should be"
        trained = self.table.query("trainable")
        moved = f"{(trained['moved'] > 0).sum()} of {len(trained)} trainable tensors moved in {steps}"
        frozen = self.table.query("not trainable")["tensor"]
        return f"{moved}; frozen: {_layers.some(frozen) or 'none'}"

    def __str__(self) -> str:
        """The verdict, then a row per finding and tensor."""
        verdict = self._verdict()
        lines = [f"{verdict[0].upper()}{verdict[1:]}."]
        for finding, rows in self.bad.groupby("finding", sort=False):
            lines.append(f"{FINDINGS[finding]}:")
            shown = rows[["tensor", "size", "dtype", "moved", "gradient_steps"]].head(_layers.NAMED)
            lines.append(shown.to_string(index=False, formatters={"moved": "{:.1%}".format}))
            lines += [f"and {len(rows) - _layers.NAMED} more"] * (len(rows) > _layers.NAMED)
        return "\n".join(lines)


def _elements(tensor: Tensor) -> Tensor:
    """This rank's elements, to compare and count: values of a sparse tensor, both parts of complex ones, bytes of a float8."""
    tensor = _sharding.local(tensor.detach())
    tensor = tensor.coalesce().values() if tensor.is_sparse else tensor
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor

"""check(model, optimizer): did a few steps of training change every tensor that they should, and no other?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from rwclib import _sharding
from rwclib.errors import ConfigError, RwcError

FINDINGS = {  # what can be wrong with a tensor, and what that says
    "frozen": "frozen, though it should train",
    "frozen but moved": "frozen, yet the optimizer moved it (weight decay or momentum, with a gradient left from before)",
    "not finite": "holds NaN or infinite weights",
    "not in the optimizer": "not among the optimizer's parameters, and did not move",
    "no step": "the optimizer took no step (was it called, or did a GradScaler skip it?)",
    "no gradient": "no gradient came, or all zeros (is its branch detached?)",
    "updates lost": "gradients came, but hardly a weight moved: updates too small for its dtype, or a learning rate of 0",
    "did not move": "did not move",
}
_LOST = 0.1  # updates are lost where fewer of the elements with a gradient moved
_CANCELLED = (
    1000  # machine epsilons: a bias whose gradient is so small beside its weight's is noise, as before a batch norm
)
_NAMED = 5  # tensors of one finding that are named one by one


@contextmanager
def check(model: nn.Module, optimizer: torch.optim.Optimizer, must_train: str | None = None) -> Iterator[TrainingCheck]:
    """Watch the training steps inside the `with` block; what they did is known after it.

    Three steps are enough, and one is not: behind a factor that starts at zero, as in LoRA, gradients come from the second
    step on. Costs a copy of the weights, and small reductions after each step; nothing is read back before the end.

    Args:
        model: the model in training, wrapped or not.
        optimizer: of PyTorch, or accelerate's or Lightning's around one.
        must_train: a glob over names (`"adapter.*"`) of tensors for which being frozen is a fault.

    Raises:
        ConfigError: not a model, not an optimizer, or no tensor that matches.

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
    hook = inner.register_step_post_hook(lambda *_: result._look())  # after: a closure's gradients are there by then
    try:
        yield result
        result._compare()
    finally:
        hook.remove()
        result._before.clear()


class TrainingCheck:
    """What `check` found; complete after its `with` block, and an `RwcError` to read before.

    Attributes:
        table: one row per parameter tensor, in network order: tensor (its name), size (elements), dtype, trainable, moved
            (share of elements that changed), gradient_steps (optimizer steps with a nonzero gradient), finding (a name in
            `FINDINGS`, or empty).
        steps: how many steps of the optimizer were seen; a replayed CUDA graph shows none.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, must_train: str | None) -> None:
        self._model, self._optimizer, self._table, self.steps = model, optimizer, None, 0
        self._parameters = dict(_named(model))
        if any(isinstance(p, nn.parameter.UninitializedParameter) for p in self._parameters.values()):
            raise ConfigError(
                "the model has lazy parameters without a shape yet; run a batch through it before the check"
            )
        self._demanded = {n for n in self._parameters if must_train is not None and fnmatchcase(n, must_train)}
        if not self._parameters or (must_train is not None and not self._demanded):
            raise ConfigError(f"the model has no parameters{f' that match {must_train!r}' if must_train else ''}")
        _sharding.reshard(model)
        self._trainable = {name: p.requires_grad for name, p in self._parameters.items()}
        self._before = {name: _elements(p).clone() for name, p in self._parameters.items()}
        self._seen: dict[str, list[Tensor]] = {name: [] for name in self._parameters}
        self._taken: list[bool | Tensor] = []

    @torch.no_grad()
    def _look(self) -> None:
        """At the gradients of a step: whether there are any, in how many elements, and their root mean square."""
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
            return  # a graph must not write to what is gone after the check
        skipped = getattr(self._optimizer, "found_inf", None)  # a GradScaler's word to a fused optimizer
        self._taken.append(True if skipped is None else skipped == 0)
        for name, p in self._parameters.items():
            if p.grad is not None:
                grad = _elements(p.grad)
                count = grad.count_nonzero().float()
                row = torch.stack([count.clamp(max=1), count, torch.linalg.vector_norm(grad.float())])
                row[2] /= max(grad.numel(), 1) ** 0.5
                alive = self._taken[-1]
                self._seen[name].append(row if alive is True else row.where(alive.to(row.device), 0))

    @torch.no_grad()
    def _compare(self) -> None:
        _sharding.reshard(self._model)
        parts = []
        for (name, p), before in zip(self._parameters.items(), self._before.values(), strict=True):
            now = _elements(p).to(before.device)
            moved = (
                (now != before).sum() if now.shape == before.shape else torch.tensor(before.numel(), device=now.device)
            )
            broken = (~now.isfinite()).sum() if now.is_floating_point() else torch.zeros_like(moved)
            rows = torch.stack(self._seen[name]) if self._seen[name] else torch.zeros(1, 3, device=now.device)
            parts.append(
                (torch.stack([moved, broken]).float(), torch.cat([rows[:, 0].sum()[None], rows[:, 1:].amax(0)]))
            )
        self.steps = sum(bool(taken) for taken in self._taken)
        parts = _sharding.all_reduce(list(self._parameters.values()), parts)
        self._table = pd.DataFrame([
            {"tensor": name, "size": p.numel(), "dtype": str(p.dtype).removeprefix("torch."),
             "trainable": self._trainable[name], "moved": first[0].item() / max(p.numel(), 1),
             "gradient_steps": min(int(second[0]), self.steps), "broken": first[1].item(),
             "reach": second[1].item(), "rms": second[2].item()}
            for (name, p), (first, second) in zip(self._parameters.items(), parts, strict=True)
        ]).set_index("tensor", drop=False)  # fmt: skip
        held = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
        self._table["finding"] = [
            self._finding(row, id(self._parameters[row.tensor]) in held) for row in self._table.itertuples()
        ]
        self._table = self._table.drop(columns=["broken", "reach", "rms"]).reset_index(drop=True)

    def _finding(self, row: tuple, held: bool) -> str:
        """The first thing that is wrong with a tensor, of which `row` tells the counts; `held` by the optimizer."""
        if not row.size:
            return ""
        if row.broken:
            return "not finite"
        if not row.trainable:
            bad = row.tensor in self._demanded or not any(self._trainable.values())
            return "frozen but moved" if row.moved and held else "frozen" if bad else ""
        if not held:
            return "" if row.moved else "not in the optimizer"
        if not self.steps:
            return "" if row.moved else "did not move" if self._table["moved"].any() else "no step"
        if not row.gradient_steps:  # where it moved, its gradient was all zeros, or gone at the end of the step
            return "" if row.moved and not self._seen[row.tensor] else "no gradient"
        lost = row.moved * row.size < _LOST * row.reach
        return "updates lost" if lost and not self._is_cancelled(row) else ""

    def _is_cancelled(self, row: tuple) -> bool:
        weight = row.tensor.rpartition(".")[0] + ".weight"
        if not row.tensor.endswith("bias") or weight not in self._table.index:
            return False
        epsilon = torch.finfo(self._parameters[row.tensor].dtype).eps
        return row.rms < _CANCELLED * epsilon * self._table.loc[weight, "rms"]

    @property
    def table(self) -> pd.DataFrame:
        if self._table is None:
            raise RwcError("the check has no result before its with block has ended, or where an error ended it")
        return self._table.copy()

    @property
    def bad(self) -> pd.DataFrame:
        """The rows of `table` with a finding."""
        table = self.table
        return table[table["finding"] != ""].reset_index(drop=True)

    def raise_if_bad(self) -> None:
        """`RwcError` that says in one sentence which tensors are not as they should be, and why; else nothing."""
        if len(self.bad):
            groups = self.bad.groupby("finding", sort=False)["tensor"]
            found = "; ".join(f"{_some(list(names))}: {FINDINGS[finding]}" for finding, names in groups)
            raise RwcError(f"{self._verdict()}: {found}")

    def _verdict(self) -> str:
        table, steps = self.table, f"{self.steps} optimizer step{'' if self.steps == 1 else 's'}"
        if len(self.bad):
            return f"after {steps} {len(self.bad)} of {len(table)} tensors are not as they should be"
        trainable, frozen = table["trainable"], (~table["trainable"]).sum()
        moved = f"{(table['moved'][trainable] > 0).sum()} of {trainable.sum()} trainable tensors moved in {steps}"
        return f"{moved}; {frozen} frozen" if frozen else moved

    def __str__(self) -> str:
        if self._table is None:
            return "a check of training that has not ended"
        rows = []
        for finding, group in self.bad.groupby("finding", sort=False):
            parts = [group] if len(group) > _NAMED else [group[i : i + 1] for i in range(len(group))]
            rows += [
                {"tensor": _some(list(part["tensor"]), 1), "elements": part["size"].sum(),
                 "dtype": ", ".join(part["dtype"].unique()), "moved": f"{part['moved'].max():.1%}",
                 "gradient steps": part["gradient_steps"].max(), "finding": FINDINGS[finding]}
                for part in parts
            ]  # fmt: skip
        verdict = self._verdict()
        return f"{verdict[0].upper()}{verdict[1:]}." + (
            f"\n{pd.DataFrame(rows).to_string(index=False)}" if rows else ""
        )


def _some(names: list[str], most: int = _NAMED) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _named(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Parameter]]:
    """Names, without those of wrappers, and parameters, tied ones once, in network order."""
    seen: set[int] = set()

    def walk(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Parameter]]:
        if isinstance(module, DataParallel | DistributedDataParallel):
            yield from walk(module.module, prefix)
        elif type(module).__name__ == "OptimizedModule":  # torch.compile's, whose import takes seconds
            yield from walk(module._orig_mod, prefix)
        else:
            for name, p in module.named_parameters(prefix=prefix, recurse=False):
                if id(p) not in seen:
                    seen.add(id(p))
                    yield name, p
            for name, child in module.named_children():
                yield from walk(child, f"{prefix}.{name}" if prefix else name)

    yield from walk(module, prefix)


def _elements(tensor: Tensor) -> Tensor:
    """This rank's elements as numbers that can be compared and counted: values of a sparse tensor, bytes of a float8."""
    tensor = _sharding.local(tensor.detach())
    tensor = tensor.coalesce().values() if tensor.is_sparse else tensor
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor

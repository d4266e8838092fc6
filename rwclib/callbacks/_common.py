"""What the callbacks share."""

from __future__ import annotations

from torch import Tensor

from rwclib import _sharding
from rwclib.errors import ConfigError


def check_every(every_n_steps: int | None) -> None:
    """`ConfigError` for what is neither None nor a whole number from 1."""
    if every_n_steps is not None and not (type(every_n_steps) is int and every_n_steps >= 1):
        raise ConfigError(
            f"every_n_steps must be a whole number from 1, or None for once an epoch, not {every_n_steps!r}"
        )


def whole(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A tracker's state with sharded tensors gathered, for a file that one rank writes; all ranks must call."""
    return {name: t.full_tensor() if _sharding.is_sharded(t) else t for name, t in state.items()}

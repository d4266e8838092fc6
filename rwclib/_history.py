"""The rows that a tracker has measured: as tensors, as a tidy table, and as tensors to save."""

from __future__ import annotations

import json
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from rwclib.errors import ConfigError


@dataclass(frozen=True)
class Row:
    """One measured step: its number, by layer its depth and size, by column the layers' values (layers,) float64."""

    step: int
    layers: dict[str, tuple[int, int]]
    values: dict[str, Tensor]


def names(rows: Sequence[Row], layers: Sequence[str]) -> list[str]:
    """All layers of the rows in the order in which they came, and then `layers`."""
    return list(dict.fromkeys([*(name for row in rows for name in row.layers), *layers]))


def step_number(at: int | None, calls: int) -> int:
    """The number of a row: the caller's own, else that of the call; `ConfigError` if it is no whole number."""
    try:
        return calls if at is None else operator.index(at)
    except TypeError:
        raise ConfigError(f"step(at=) takes the number of the step, a whole number, not {at!r}") from None


def tensors(rows: Sequence[Row], known: Sequence[str], columns: Sequence[str]) -> dict[str, Tensor]:
    """The columns by name, (steps, known layers) float64 each; NaN where a layer was not measured."""
    shape, place = (len(rows), len(known)), {name: i for i, name in enumerate(known)}
    values = {c: torch.full(shape, torch.nan, dtype=torch.float64, device="cpu") for c in columns}
    for i, row in enumerate(rows):
        here = [place[name] for name in row.layers]
        for column in columns:
            values[column][i, here] = row.values[column]
    return values


def frame(rows: Sequence[Row], columns: Sequence[str]) -> pd.DataFrame:
    """A table with one line per step and layer."""
    lines = [(row.step, name, *layer) for row in rows for name, layer in row.layers.items()]
    table = pd.DataFrame(lines, columns=["step", "layer", "depth", "size"])
    nothing = torch.empty(0, dtype=torch.float64, device="cpu")
    return table.assign(**{c: torch.cat([nothing, *(row.values[c] for row in rows)]).numpy() for c in columns})


def to_state(rows: Sequence[Row], layers: Sequence[str], columns: Sequence[str]) -> dict[str, Tensor]:
    """The rows as tensors by name; `RWCTracker.state_dict` says which."""
    known = names(rows, layers)
    state = {f"history.{name}": values for name, values in tensors(rows, known, columns).items()}
    for i, what in enumerate(("depth", "size")):
        numbers = [[row.layers.get(name, (0, 0))[i] for name in known] for row in rows]
        state[f"history.{what}"] = torch.tensor(numbers, dtype=torch.int64, device="cpu").reshape(len(rows), len(known))
    state["history.step"] = torch.tensor([row.step for row in rows], dtype=torch.int64, device="cpu")
    state["layers"] = torch.tensor(list(json.dumps(known).encode()), dtype=torch.uint8, device="cpu")
    return state


def from_state(state: dict[str, Tensor], layers: Sequence[str], columns: Sequence[str]) -> list[Row]:
    """The rows that `to_state` gave; a column that did not exist then is NaN.

    Raises:
        ConfigError: the state has no history, one of other layers, or an incomplete one.
    """
    try:
        known = json.loads(bytes(state["layers"].cpu().tolist()))
        steps, depth, size = (state[f"history.{key}"].cpu().tolist() for key in ("step", "depth", "size"))
        values = {column: state[f"history.{column}"].cpu() for column in columns if f"history.{column}" in state}
        shapes = {tuple(column.shape) for column in (values["rwc"], state["history.depth"], state["history.size"])}
        shapes |= {tuple(column.shape) for column in values.values()}
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(f"the saved state has no tracker's history ({error}); load what state_dict gave") from None
    if shapes != {(len(steps), len(known))} or not set(layers) <= set(known):
        raise ConfigError(f"the saved history is not of {len(steps)} steps and {len(known)} layers, as it says")
    rows = []
    for i, step in enumerate(steps):
        here = [j for j in range(len(known)) if size[i][j]]
        unknown = torch.full((len(here),), torch.nan, dtype=torch.float64, device="cpu")
        row = {column: values[column][i, here] if column in values else unknown for column in columns}
        rows.append(Row(step, {known[j]: (depth[i][j], size[i][j]) for j in here}, row))
    return rows

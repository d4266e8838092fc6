"""Weights on disk: safetensors files written tensor by tensor, the final weights that dependent runs start from, and
what snapshots of the weights during training are reduced to.

A run with `snapshot_every` never holds a second copy of its weights in memory: the start and the latest snapshot lie in its
cache folder and are read one tensor at a time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from rwclib.errors import ArchiveError, ConfigError
from rwclib.runs import archive
from rwclib.runs.config import RunConfig

THRESHOLDS = {"changed": 0.0, "changed_1e3": 1e-3, "changed_1e2": 1e-2}
WHOLE = "all"  # the row of a snapshot that counts every parameter
# Over the elements of a tensor: how many there are and have changed, sums of squares and of products.
_SUMS = ("size", "squares", "squares_start", "squares_since_previous", "squares_since_start", "dot_start", *THRESHOLDS,
         "squares_parent", "squares_from_parent", "dot_parent")  # fmt: skip
_SQUARES = {
    "norm": "squares", "norm_start": "squares_start", "norm_parent": "squares_parent", "distance_previous": "squares_since_previous",
    "distance_start": "squares_since_start", "distance_parent": "squares_from_parent",
}  # fmt: skip
COLUMNS = ("norm", "norm_start", "distance_previous", "distance_start", "cosine_start", *THRESHOLDS,
           "norm_parent", "distance_parent", "cosine_parent")  # fmt: skip
_TYPES = {
    torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file, written beside its place and renamed; unlike `safetensors.torch.save_file` it makes no copy of
    more than one tensor at a time.
    """
    header, end = {"__metadata__": dict(metadata)}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def chunks() -> Iterator[bytes | memoryview]:
        yield len(text).to_bytes(8, "little")
        yield text
        for tensor in tensors.values():
            yield _bytes(tensor)

    archive.write_atomically(path, chunks())


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(_bytes(tensors[name]))
    return digest.hexdigest()


def _load(file: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with safe_open(file, "pt") as opened:
        return opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)


def path(results: Path, parent: str) -> Path:
    """Where the final weights of the run with this hash lie, until `rwc results clean`."""
    return Path(results) / ".cache" / "weights" / f"{parent}.safetensors"


@dataclass(frozen=True)
class Final:
    """A file of a run's weights and buffers, read when asked for.

    dataset: what the run was trained on; sha256: digest of the tensors.
    """

    file: Path
    dataset: str = ""
    sha256: str = ""

    def state(self) -> dict[str, Tensor]:
        """All tensors, on the CPU."""
        return _load(self.file)[1]

    @torch.no_grad()
    def load_into(self, model: nn.Module) -> None:
        """Copy them into the model, one at a time; `ConfigError` if names or shapes differ."""
        own = model.state_dict()
        with safe_open(self.file, "pt") as opened:
            if set(opened.keys()) != set(own):
                raise ConfigError("it is another network")
            for name, value in own.items():
                given = opened.get_tensor(name)
                if given.shape != value.shape:
                    raise ConfigError(f"{name} has shape {tuple(given.shape)} there and {tuple(value.shape)} here")
                value.copy_(given)


def keep(results: Path, config: RunConfig, model: nn.Module) -> str:
    """Store a finished run's weights and buffers for its dependents; returns their digest."""
    state = model.state_dict()
    notes = {"config": config.canonical_json(), "sha256": _digest(state)}
    write(path(results, config.hash), state, {"rwclib": json.dumps(notes)})
    return notes["sha256"]


def read(results: Path, parent: str) -> Final:
    """The final weights of the run with this hash.

    Raises:
        ArchiveError: they are not kept, or the file was truncated or edited or belongs to another run.
    """
    file = path(results, parent)
    if not file.exists():
        raise ArchiveError(
            f"the weights of the parent run {parent} are not in {file.parent}; sweep parent and child together, "
            "which trains the parent for them"
        )
    damaged = f"{file} was truncated or edited; delete it and start the sweep again, which trains the parent anew"
    try:
        metadata, state = _load(file)
        notes = json.loads(metadata["rwclib"])
        whose, config = hashlib.sha256(notes["config"].encode()).hexdigest(), json.loads(notes["config"])
        final = Final(file, config["dataset"], notes["sha256"])
    except (OSError, SafetensorError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ArchiveError(damaged) from error
    if not whose.startswith(parent) or _digest(state) != final.sha256:
        raise ArchiveError(damaged)
    return final


class Snapshots:
    """The weights every few epochs, reduced on the fly to norms, distances and shares changed, per tensor.

    Args:
        folder: of the files; those of the start and of the latest snapshot are kept.
        parent: the weights to compare with besides the start; tensors of other shapes are not compared.
    """

    def __init__(self, folder: Path, parent: Final | None = None) -> None:
        self._folder, self._parent = folder, parent
        self.epochs: list[int] = []
        self.sums: list[Tensor] = []  # (tensors, len(_SUMS)) float64 each

    def file(self, epoch: int) -> Path:
        """The weights and buffers of the snapshot after this epoch; 0 is the start."""
        return self._folder / f"weights-{epoch:06d}.safetensors"

    def start(self) -> Final:
        """The weights and buffers that the run began with."""
        return Final(self.file(0))

    def take(self, model: nn.Module, epoch: int) -> None:
        """Measure the model against the start, the snapshot before and the parent, and keep its weights for the next."""
        write(self.file(epoch), model.state_dict(), {"epoch": str(epoch)})
        before = self.epochs[-1] if self.epochs else epoch
        with (
            safe_open(self.file(0), "pt") as start,
            safe_open(self.file(before), "pt") as previous,
            safe_open(self._parent.file if self._parent else self.file(0), "pt") as parent,
        ):
            known = set(parent.keys()) if self._parent else set()
            rows = []
            for name, value in model.named_parameters():
                of_parent = parent.get_tensor(name) if name in known else None
                rows.append(_sums(value.detach(), start.get_tensor(name), previous.get_tensor(name), of_parent))
        self.sums.append(torch.tensor(rows, dtype=torch.float64))
        self.epochs.append(epoch)

    def resume(self, epochs: list[int], sums: Tensor) -> None:
        """Go on from these; `ValueError` if the files of the start and the latest are not there."""
        missing = [self.file(epoch).name for epoch in (0, epochs[-1]) if not self.file(epoch).exists()]
        if missing:
            raise ValueError(f"{missing[0]} is missing beside it")
        self.epochs, self.sums = list(epochs), list(sums)

    def drop(self) -> None:
        """Delete the snapshots before the latest but the start's: once a checkpoint knows the latest."""
        for epoch in self.epochs[1:-1]:
            self.file(epoch).unlink(missing_ok=True)

    def table(self, names: list[str]) -> pd.DataFrame:
        """Tidy table, one row per (epoch, tensor) and one per epoch for all parameters (`WHOLE`).

        Columns: epoch, tensor, size; L2 norms `norm`, `norm_start`, `norm_parent`; L2 distances to the snapshot before, the
        start and the parent's final weights; cosines to the last two; and of `THRESHOLDS`, the share of the weights that
        differ from the start by more than that much of their start (exactly unequal for 0).
        """
        parts = []
        for epoch, sums in zip(self.epochs, self.sums, strict=True):
            total = pd.DataFrame(torch.cat([sums, sums.sum(0, keepdim=True)]).numpy(), columns=list(_SUMS))
            table = pd.DataFrame({"epoch": epoch, "tensor": [*names, WHOLE], "size": total["size"].astype("int64")})
            for column in COLUMNS:
                if column in THRESHOLDS:
                    table[column] = total[column] / total["size"]
                elif column in _SQUARES:
                    table[column] = np.sqrt(total[_SQUARES[column]])
                else:
                    other = column.removeprefix("cosine_")
                    product = np.sqrt(total["squares"] * total[f"squares_{other}"])
                    table[column] = total[f"dot_{other}"] / product.where(product > 0)
            parts.append(table)
        return pd.concat(parts, ignore_index=True).astype({"epoch": "int32"})


def _sums(value: Tensor, start: Tensor, previous: Tensor, parent: Tensor | None) -> list[float]:
    """`_SUMS` of one tensor: sums of squares, of products and of weights changed; NaN without a parent's."""

    def squares(tensor: Tensor) -> Tensor:
        return tensor.square().sum(dtype=torch.float64)

    start, previous = start.to(value.device), previous.to(value.device)
    moved = value - start
    sums = [value.new_tensor(value.numel(), dtype=torch.float64), squares(value), squares(start),
            squares(value - previous), squares(moved), (value * start).sum(dtype=torch.float64)]  # fmt: skip
    sums += [(moved.abs() > relative * start.abs()).sum() for relative in THRESHOLDS.values()]
    if parent is None or parent.shape != value.shape:
        sums += [value.new_tensor(float("nan"))] * 3
    else:
        parent = parent.to(value.device)
        sums += [squares(parent), squares(value - parent), (value * parent).sum(dtype=torch.float64)]
    return torch.stack([total.double() for total in sums]).tolist()

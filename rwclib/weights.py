"""Weights on disk: safetensors files written tensor by tensor, the final weights that dependent runs start from, and
what snapshots of the weights during training are reduced to.

A run with `snapshot_every` never holds a second copy of its weights in memory: the start and the latest snapshot lie in its
cache folder and are read one tensor at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from rwclib import archive
from rwclib.config import RunConfig
from rwclib.errors import ArchiveError, ConfigError

THRESHOLDS = {"changed": 0.0, "changed_1e3": 1e-3, "changed_1e2": 1e-2}
WHOLE = "all"  # the row of a snapshot that counts every parameter
_SUMS = ("size", "norm", "norm_start", "distance_previous", "distance_start", "dot_start", *THRESHOLDS,
         "norm_parent", "distance_parent", "dot_parent")  # fmt: skip
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
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(_bytes(tensors[name]))
    return found.hexdigest()


def _load(file: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with safe_open(file, "pt") as opened:
        return opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)


def path(results: Path, parent: str) -> Path:
    """Where the final weights of the run with this hash lie for as long as a dependent run needs them."""
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


def read(file: Path, parent: str, source: Path | None = None) -> Final:
    """The weights in `file`, checked to be what the run with this hash ended with.

    Raises:
        ArchiveError: the file was truncated, edited or belongs to another run; it names `source`, from which it came.
    """
    damaged = (
        f"{source or file} was truncated or edited; delete it and start the sweep again, which trains the parent anew"
    )
    try:
        metadata, state = _load(file)
        notes = json.loads(metadata["rwclib"])
        of, config = hashlib.sha256(notes["config"].encode()).hexdigest(), json.loads(notes["config"])
        found = Final(file, config["dataset"], notes["sha256"])
    except (OSError, SafetensorError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ArchiveError(damaged) from error
    if not of.startswith(parent) or _digest(state) != found.sha256:
        raise ArchiveError(damaged)
    return found


def borrowed(results: Path, config: RunConfig) -> Path:
    """Where a run in progress has its parent's weights."""
    return archive.cache_dir(results, config) / "parent.safetensors"


def lend(results: Path, config: RunConfig) -> bool:
    """Link the weights of the run's parent into the run's cache folder, if they are there: from then on no sweep that ends
    takes them from it. Whether it has them.
    """
    own, store = borrowed(results, config), path(results, config.parent)
    part = own.with_name(f".{own.name}.{secrets.token_hex(4)}.part")
    try:
        if not own.exists():
            own.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(store, part)
            except FileNotFoundError:
                raise
            except OSError:  # a file system without links
                shutil.copyfile(store, part)
            os.replace(part, own)
    except FileNotFoundError:
        with contextlib.suppress(OSError):  # only if it is empty
            own.parent.rmdir()
    return own.exists()


def borrow(results: Path, config: RunConfig) -> Final:
    """The weights of the run's parent, from the run's own link to them.

    Raises:
        ArchiveError: they are not kept, or as in `read`.
    """
    own, store = borrowed(results, config), path(results, config.parent)
    if not lend(results, config):
        raise ArchiveError(
            f"the weights of the parent run {config.parent} are not in {store.parent}; sweep parent and child together, "
            "which trains the parent for them"
        )
    try:
        return read(own, config.parent, store)
    except ArchiveError:
        own.unlink()
        raise


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
            found = pd.DataFrame(torch.cat([sums, sums.sum(0, keepdim=True)]).numpy(), columns=list(_SUMS))
            table = pd.DataFrame({"epoch": epoch, "tensor": [*names, WHOLE], "size": found["size"].astype("int64")})
            for column in COLUMNS:
                if column.startswith("cosine"):
                    other = column.removeprefix("cosine_")
                    product = np.sqrt(found["norm"] * found[f"norm_{other}"])
                    table[column] = found[f"dot_{other}"] / product.where(product > 0)
                else:
                    table[column] = found[column] / found["size"] if column in THRESHOLDS else np.sqrt(found[column])
            parts.append(table)
        return pd.concat(parts, ignore_index=True).astype({"epoch": "int32"})


def _sums(value: Tensor, start: Tensor, previous: Tensor, parent: Tensor | None) -> list[float]:
    """`_SUMS` of one tensor: sums of squares, of products and of weights changed; NaN without a parent's."""

    def squares(tensor: Tensor) -> Tensor:
        return tensor.square().sum(dtype=torch.float64)

    start, previous = start.to(value.device), previous.to(value.device)
    moved = value - start
    found = [value.new_tensor(value.numel(), dtype=torch.float64), squares(value), squares(start),
             squares(value - previous), squares(moved), (value * start).sum(dtype=torch.float64)]  # fmt: skip
    found += [(moved.abs() > relative * start.abs()).sum() for relative in THRESHOLDS.values()]
    if parent is None or parent.shape != value.shape:
        found += [value.new_tensor(float("nan"))] * 3
    else:
        parent = parent.to(value.device)
        found += [squares(parent), squares(value - parent), (value * parent).sum(dtype=torch.float64)]
    return torch.stack([part.double() for part in found]).tolist()

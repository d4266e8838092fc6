"""Reading of checkpoints' tensors one at a time, without building the model and without running code that a file holds."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from rwclib.errors import ConfigError, DataError, one_line

NESTS = (
    "state_dict",
    "model_state_dict",
    "model",
    "module",
)  # where training loops put the weights; Lightning: the first
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_MAPPED = (
    2**25
)  # bytes of a safetensors file that may have been read before it is opened anew, which gives its pages back


@dataclass(frozen=True)
class Entry:
    """One tensor of a checkpoint; `read()` gives it, on the CPU and perhaps still in the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


@dataclass
class Checkpoint:
    """Tensors by name; `ordered` if in the order of the network, which safetensors files do not keep."""

    label: str
    entries: dict[str, Entry] = field(default_factory=dict)
    ordered: bool = True


def open_checkpoint(source: object) -> Checkpoint:
    """The tensors of a file, a folder, an index of shards, a state_dict or a module, none of them read yet.

    Raises:
        ConfigError: `source` is nothing of that, or its tensors lie nowhere or on several devices.
        DataError: a file is missing, damaged, no checkpoint, or would run code when loaded.
    """
    if isinstance(source, nn.Module):
        return _of_tensors("the model", source.state_dict())
    if isinstance(source, Mapping):
        return _of_tensors("the state_dict", source)
    if not isinstance(source, str | os.PathLike):
        kind = type(source).__name__
        raise ConfigError(f"a checkpoint is a path, a state_dict or a torch.nn.Module, not {kind}; give one of these")
    path = Path(source)
    if path.is_dir():
        path = _file_in(path)
    if not path.exists():
        raise DataError(f"there is no file or folder {path}; name a checkpoint that is there")
    if path.suffix == ".json":
        return _of_index(path)
    return _of_safetensors(path) if path.suffix == ".safetensors" else _of_tensors(str(path), _load(path))


def _file_in(folder: Path) -> Path:
    """The index or checkpoint of a folder, as `save_pretrained` names them, else the only one there."""
    for stem in ("model.safetensors", "pytorch_model.bin", "adapter_model.safetensors", "adapter_model.bin"):
        for name in (f"{stem}.index.json", stem):
            if (folder / name).exists():
                return folder / name
    files = sorted(file for file in folder.iterdir() if file.name.endswith(".index.json"))
    files = files or sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES)
    if len(files) != 1:
        holds = (
            f"several checkpoints ({', '.join(file.name for file in files[:4])}{', ...' * (len(files) > 4)})"
            if files
            else "no checkpoint"
        )
        raise DataError(f"the folder {folder} holds {holds} and no index of shards; name a file")
    return files[0]


def _of_index(path: Path) -> Checkpoint:
    try:
        shards = json.loads(path.read_text())["weight_map"]
        files = list(dict.fromkeys(shards.values()))
        absent = [file for file in files if not (path.parent / file).is_file()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no index of shards (a weight_map of names to files); name another file") from error
    if absent:
        raise DataError(f"{path} names the shard {absent[0]}, which is missing; fetch it and put it beside the index")
    whole = Checkpoint(str(path), ordered=False)
    for file in files:
        shard = open_checkpoint(path.parent / file)
        lacks = [name for name, of in shards.items() if of == file and name not in shard.entries]
        if lacks:
            raise DataError(f"the shard {path.parent / file} lacks the tensor {lacks[0]}; fetch it again")
        whole.entries |= shard.entries
    return whole


class _Safetensors:
    """A safetensors file, of which little stays mapped: tensors are views of it."""

    def __init__(self, path: Path) -> None:
        self.path, self.file, self.mapped = path, None, 0

    def read(self, name: str) -> Tensor:
        if self.file is None or self.mapped > _MAPPED:
            self.file, self.mapped = safe_open(self.path, "pt"), 0
        tensor = self.file.get_tensor(name)
        self.mapped += tensor.nbytes
        return tensor

    def entries(self) -> dict[str, Entry]:
        with safe_open(self.path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return {name: Entry(t.dtype, tuple(t.shape), lambda name=name: self.read(name)) for name, t in tensors.items()}


def _of_safetensors(path: Path) -> Checkpoint:
    try:
        return Checkpoint(str(path), _Safetensors(path).entries(), ordered=False)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is no whole safetensors file ({one_line(error)}); fetch or save it again") from error


def _load(path: Path) -> object:
    """What `torch.save` wrote, its tensors left in the file where its format allows."""
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)  # a format from before 2020
    except pickle.UnpicklingError as error:
        needs = re.search(r"GLOBAL (\S+)|class (\S+)|function (\S+)", str(error))
        if not needs:
            raise DataError(f"{path} is no checkpoint that torch.load can read; name another file") from error
        named = next(filter(None, needs.groups()))
        raise DataError(
            f"{path} wants to run code when loaded ({named}), which is refused; save its state_dict alone, or as safetensors"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise DataError(
            f"{path} is damaged or no checkpoint; fetch or save it again ({one_line(error):.120})"
        ) from error


def _of_tensors(label: str, state: object) -> Checkpoint:
    tensors = _tensors(state)
    while isinstance(state, Mapping) and (nest := next((n for n in NESTS if isinstance(state.get(n), Mapping)), None)):
        state, tensors = state[nest], _tensors(state[nest])
    if not tensors and isinstance(state, Mapping):
        nested = [value for value in state.values() if _tensors(value)]
        tensors = _tensors(nested[0]) if len(nested) == 1 else {}
    if not tensors:
        raise DataError(
            f"{label} holds no weights by name, nor as one of {', '.join(NESTS)}; give the state_dict itself"
        )
    for name, tensor in tensors.items():
        if tensor.is_meta or tensor.layout != torch.strided or type(tensor).__name__ == "DTensor":
            raise ConfigError(
                f"{name} of {label} is no plain tensor (sharded, sparse, or on meta); save it whole first"
            )
    return Checkpoint(
        label, {name: Entry(t.dtype, tuple(t.shape), lambda t=t: t.detach().cpu()) for name, t in tensors.items()}
    )


def _tensors(state: object) -> dict[str, Tensor]:
    """The tensors that a mapping has by name."""
    if not isinstance(state, Mapping):
        return {}
    return {name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, Tensor)}

"""How the weights of two checkpoints differ, tensor by tensor or block by block, without building the model."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

from rwclib import metrics
from rwclib._checkpoints import Checkpoint, Entry, open_checkpoint
from rwclib._names import agree, block
from rwclib.errors import ConfigError, DataError
from rwclib.metrics import CHANGED, METRICS

_PIECE = 2**21  # weights at a time, as float32 or float64


def compare(
    a: object, b: object = None, layers: str | Sequence[str] | None = None, by: str | Callable[[str], str] | None = None
) -> pd.DataFrame:
    """How far the weights of `b` (after) are from those of `a` (before).

    At most the tensor being compared is held of each side, and 200 MB; pages of a file that the system can take back at
    will apart. Names need not be the same: wrappers' parts (`module`, `_orig_mod`) and a prefix (`model.`) are taken off
    where that makes the names of the two sides agree.

    Args:
        a, b: a `.safetensors` file; a file that `torch.save` wrote (`.pt`, `.pth`, `.bin`, `.ckpt`; weights alone, or as
            Lightning and other loops nest them), in which nothing is executed; an index of shards
            (`model.safetensors.index.json`); the folder of one of these; a state_dict; or a `torch.nn.Module`. Without
            `b`, `a` is a list of at least two of these: the successive checkpoints of one training.
        layers: None for every float or complex tensor with more than one dimension; a glob over names chooses among
            those; a list of globs and names, where a name may also be that of a vector.
        by: None for a row per tensor; "block" for a row per `layer4`, `transformer.h.3` or `fc` (the name up to its first
            number); or a function from a tensor's name to that of its row. A row of several tensors is about the one long
            vector of all their weights that could be compared; its median weighs each tensor by its size.

    Returns:
        A row per tensor or block in network order (of safetensors: names in order, numbers as numbers) with columns

        - layer, and size: the number of weights compared;
        - all of `METRICS`, NaN where nothing could be compared, as `RWCTracker` computes them, but in float64 if either
          side is float64;
        - changed, changed_0.1%, changed_1%: the share of weights that moved at all, by more than 0.1% and 1% of their
          magnitude in `a`; NaN where a weight is not finite;
        - dtype, shape: `float32`, `64x3x7x7`; `before -> after` where they differ;
        - status: "both", "only in a", "only in b", "other shape", "other dtype" (compared all the same).

        Of a list, a history as `RWCTracker.table()` gives it: step (from 1), layer, depth, size, `METRICS`, and changed.

    Raises:
        ConfigError: what `a` or `b` is cannot be compared, `layers` match nothing, or `by` is unknown.
        DataError: a checkpoint is damaged, or would run code; or two have no tensor in common.

    Example:
        >>> compare("before.safetensors", "after.safetensors", by="block")
        >>> compare(sorted(Path("checkpoints").glob("*.ckpt")))
    """
    if by is not None and by != "block" and not callable(by):
        raise ConfigError(f"unknown by {by!r}; known: block, or a function from a tensor's name to its row's")
    wanted = [layers] if isinstance(layers, str) else layers
    if wanted is not None and not (isinstance(wanted, Sequence) and wanted and all(isinstance(w, str) for w in wanted)):
        raise ConfigError(f"layers must be None, a glob or a list of names and globs, not {layers!r}")
    group = (block if by == "block" else by) or (lambda name: name)
    if b is None:
        return _history(a, wanted, group)
    if isinstance(a, list | tuple):
        raise ConfigError("a list of checkpoints is a history of its own; leave b out")
    before, after = open_checkpoint(a), open_checkpoint(b)
    new_a, new_b = agree(before.entries, after.entries)
    return _table(_pairs(_renamed(before, new_a), _renamed(after, new_b), wanted), group)


@dataclass(frozen=True)
class _Pair:
    """A tensor of two checkpoints; None where one lacks it."""

    name: str
    before: Entry | None
    after: Entry | None

    @property
    def status(self) -> str:
        if self.before is None or self.after is None:
            return "only in a" if self.after is None else "only in b"
        if self.before.shape != self.after.shape:
            return "other shape"
        return "both" if self.before.dtype == self.after.dtype else "other dtype"

    @property
    def comparable(self) -> bool:
        """Whether both are there, of one shape, and both real or both complex."""
        if self.status not in ("both", "other dtype"):
            return False
        a, b = self.before.dtype, self.after.dtype
        return (a.is_complex and b.is_complex) or (a.is_floating_point and b.is_floating_point)

    def of(self, what: Callable[[Entry], str]) -> str:
        """A word about each side: one if they agree."""
        return " -> ".join(dict.fromkeys(what(entry) for entry in (self.before, self.after) if entry))


def _history(sources: object, wanted: Sequence[str] | None, group: Callable[[str], str]) -> pd.DataFrame:
    if not isinstance(sources, list | tuple) or len(sources) < 2:
        raise ConfigError("one checkpoint has nothing to be compared with; give b, or a list of at least two")
    opened = [open_checkpoint(source) for source in sources]
    shortest = min(opened, key=lambda checkpoint: sum(map(len, checkpoint.entries)))
    opened = [_renamed(one, agree(shortest.entries, one.entries)[1]) for one in opened]
    steps = []
    for step, (before, after) in enumerate(pairwise(opened), 1):
        pairs = _pairs(before, after, wanted)
        odd = [f"{pair.name} ({pair.status})" for pair in pairs if not pair.comparable]
        if odd:
            which = ", ".join(odd[:3]) + (f" and {len(odd) - 3} more" if len(odd) > 3 else "")
            raise ConfigError(
                f"from checkpoint {step} to {step + 1} not in both alike: {which}; choose others by layers"
            )
        table = _table(pairs, group).drop(columns=["dtype", "shape", "status"])
        table.insert(0, "step", step)
        table.insert(2, "depth", range(1, len(table) + 1))
        steps.append(table)
    return pd.concat(steps, ignore_index=True)


def _renamed(checkpoint: Checkpoint, new: dict[str, str]) -> Checkpoint:
    return replace(checkpoint, entries={new[name]: entry for name, entry in checkpoint.entries.items()})


def _pairs(a: Checkpoint, b: Checkpoint, wanted: Sequence[str] | None) -> list[_Pair]:
    """The tensors to compare, in network order."""
    if not set(a.entries) & set(b.entries):
        names = f"{next(iter(a.entries), None)}, ..., and {next(iter(b.entries), None)}, ..."
        raise DataError(f"{a.label} and {b.label} have no tensor in common ({names}); compare two of one network")
    first, second = (b, a) if b.ordered and not a.ordered else (a, b)
    names = list(dict.fromkeys([*first.entries, *second.entries]))
    if not first.ordered:
        names.sort(
            key=lambda name: [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
        )
    pairs = [_Pair(name, a.entries.get(name), b.entries.get(name)) for name in names]
    pairs = [pair for pair in pairs if any(entry and _is_float(entry) for entry in (pair.before, pair.after))]
    tensors = [pair for pair in pairs if any(entry and len(entry.shape) > 1 for entry in (pair.before, pair.after))]
    chosen = set()
    for pattern in ["*"] if wanted is None else wanted:
        matching = [pair.name for pair in pairs if pair.name == pattern]
        matching += [pair.name for pair in tensors if fnmatchcase(pair.name, pattern)]
        if not matching:
            raise ConfigError(
                f"no weight tensor matches {pattern!r}; among them is {pairs[0].name if pairs else 'none'}"
            )
        chosen.update(matching)
    return [pair for pair in pairs if pair.name in chosen]


def _is_float(entry: Entry) -> bool:
    return entry.dtype.is_floating_point or entry.dtype.is_complex


def _table(pairs: list[_Pair], group: Callable[[str], str]) -> pd.DataFrame:
    """The rows: pairs of one group together, in the order of their first."""
    groups: dict[str, list[_Pair]] = {}
    for pair in pairs:
        groups.setdefault(group(pair.name), []).append(pair)
    return pd.DataFrame([{"layer": name, **_numbers(members), **_words(members)} for name, members in groups.items()])


def _words(pairs: list[_Pair]) -> dict[str, str]:
    dtypes = dict.fromkeys(pair.of(lambda entry: str(entry.dtype).removeprefix("torch.")) for pair in pairs)
    shape = pairs[0].of(lambda entry: "x".join(map(str, entry.shape)))
    counts = Counter(pair.status for pair in pairs)
    status = next(iter(counts)) if len(counts) == 1 else ", ".join(f"{status}: {n}" for status, n in counts.items())
    return {
        "dtype": ", ".join(dtypes),
        "shape": shape if len(pairs) == 1 else f"{len(pairs)} tensors",
        "status": status,
    }


def _numbers(pairs: list[_Pair]) -> dict[str, float]:
    """Size, metrics and shares of the one vector that these tensors make together; NaN if none can be compared."""
    compared = [_sums(pair) for pair in pairs if pair.comparable and math.prod(pair.after.shape)]
    size = int(sum(sums["size"] for sums, _, _ in compared))
    if not size:
        return {"size": 0} | dict.fromkeys([*METRICS, *CHANGED], float("nan"))
    total = {name: sum(sums[name] for sums, _, _ in compared) for name in compared[0][0]}
    total["median_change"] = _median([sample for _, sample, _ in compared], [every for _, _, every in compared])
    sums = SimpleNamespace(**{name: torch.tensor([value], dtype=torch.float64) for name, value in total.items()})
    measured = {name: value.item() for name, value in metrics.formulas(sums).items()}
    unknown = 0 * (total["change_l1"] + total["l1"] + total["previous_l1"])  # NaN where a weight is not finite
    shares = {name: total[f"moved_{threshold}"] / size + unknown for name, threshold in CHANGED.items()}
    return {"size": size} | measured | shares


def _sums(pair: _Pair) -> tuple[dict[str, float], np.ndarray, int]:
    """Of one tensor what the metrics follow from, a sample of its relative changes, and one in how many is in the sample."""
    before, after = pair.before.read(), pair.after.read()
    kind, channels_last = metrics.precision(before, after), metrics._is_channels_last(after)
    p, w = (metrics._flat(tensor, channels_last) for tensor in (before, after))
    every, buffer = metrics._every(w.numel()), torch.empty(metrics._CHUNK, dtype=kind, device="cpu")
    sums, samples = Counter(size=w.numel()), [np.empty(0)]
    piece = every * max(1, _PIECE // every)  # so that the sample goes on in each
    for start in range(0, w.numel(), piece):
        now, then = (flat[start : start + piece].to(kind) for flat in (w, p))
        if kind.is_complex:
            part, sample = _complex_sums(now, then, every)
        else:
            part, sample = metrics._sums_on_cpu(now, then, True, False, every, buffer, tuple(CHANGED.values()))
        sums.update({name: value.item() for name, value in part.items()})
        samples.append(sample.numpy())
    return sums, np.concatenate(samples), every


def _complex_sums(now: torch.Tensor, then: torch.Tensor, every: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The same of complex weights, which are compared by their moduli."""
    moved, before = (now - then).abs(), then.abs()
    shares = {f"moved_{threshold}": (moved > threshold * before).sum() for threshold in CHANGED.values()}
    return metrics._sums_on_device(now, then) | shares, metrics._relative(moved, before)[::every]


def _median(samples: list[np.ndarray], weights: list[int]) -> float:
    """The lower median of all samples, each value of one standing for so many; of one sample, as `torch.median`."""
    values = np.concatenate(samples)
    order = values.argsort()
    counts = np.repeat(weights, [len(sample) for sample in samples])[order].cumsum()
    return float(values[order][np.searchsorted(counts, counts[-1] / 2)])

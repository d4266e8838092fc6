"""Names of weight tensors: the block that one belongs to, and the same name in two checkpoints."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

WRAPPERS = {"module", "_orig_mod"}  # DataParallel, DistributedDataParallel; torch.compile
# Parts without a digit, then one with, which is not the parameter's own name unless it is a number alone.
_BLOCK = re.compile(r"(?:[^.\d]+\.)*(?:[^.]*\d[^.]*(?=\.)|\d+$)")


def block(name: str) -> str:
    """The leading part of a tensor's name up to and including its first number, else the name without its last part.

    `layer4.1.conv1.weight` is in `layer4`, `transformer.h.3.attn.c_attn.weight` in `transformer.h.3`, `fc.weight` in `fc`.
    The parameter's own name does not count (`rnn.weight_ih_l0` is in `rnn`) unless it is a number alone, or all there is.
    """
    leading = _BLOCK.match(name)
    return leading[0] if leading else name.rpartition(".")[0] or name


def agree(a: Iterable[str], b: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """The names of two checkpoints' tensors, stripped of wrappers' parts and of a prefix where that makes more of them agree.

    Returns:
        Of each side, a new name for every name. They are the same if as many names agree without stripping. A prefix is
        taken off one side if it is the only one that makes so many names agree, and they are at least half of a side.
    """
    plain_a, plain_b = ({name: name for name in side} for side in (a, b))
    renamed, most = (plain_a, plain_b), _common(plain_a, plain_b)
    for x in (plain_a, _unwrapped(plain_a)):
        for y in (plain_b, _unwrapped(plain_b)):
            for pair in ((x, y), (_without_prefix(x, y), y), (x, _without_prefix(y, x))):
                if _common(*pair) > most:
                    renamed, most = pair, _common(*pair)
    return renamed


def _common(a: dict[str, str], b: dict[str, str]) -> int:
    return len(set(a.values()) & set(b.values()))


def _unwrapped(names: dict[str, str]) -> dict[str, str]:
    return _renamed(names, lambda name: ".".join(part for part in name.split(".") if part not in WRAPPERS))


def _without_prefix(names: dict[str, str], other: dict[str, str]) -> dict[str, str]:
    known, votes = set(other.values()), Counter()
    for name in names.values():
        parts = name.split(".")
        for i in range(1, len(parts)):
            if ".".join(parts[i:]) in known:
                votes[".".join([*parts[:i], ""])] += 1
    (prefix, count), (_, second) = [*votes.most_common(2), ("", 0), ("", 0)][:2]
    if count == second or 2 * count < min(len(names), len(other)):
        return names
    return _renamed(names, lambda name: name.removeprefix(prefix))


def _renamed(names: dict[str, str], rename: object) -> dict[str, str]:
    """Every new name renamed, unless another has that name already: a model may have a submodule of its own called `module`."""
    renamed, taken = {}, set(names.values())
    for old, name in names.items():
        new = rename(name)
        renamed[old] = name if not new or new in taken - {name} else new
        taken.add(renamed[old])
    return renamed

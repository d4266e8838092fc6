"""What the fuzz tests share: two ways to draw cases, changes of bytes and of JSON, and files to change.

Hypothesis draws where words and opcodes are put together; where whole files are changed, a seeded generator, ten times faster.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import hypothesis
import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

hypothesis.configuration.set_hypothesis_home_dir(Path(tempfile.gettempdir()) / f"rwclib-hypothesis-{os.getuid()}")
CASES = {
    "configs": 2000, "records": 1000, "tables": 500, "tars": 1500, "damaged tars": 1500, "npz": 1500, "damaged npz": 4000,
    "pickles": 2500, "damaged pickles": 4000, "weights": 2500, "checkpoints": 600, "parameters": 1500, "notebooks": 500,
    "command lines": 400,
}  # fmt: skip
ODD = [
    "", ".", "..", "../..", ".cache", "a/b", "/etc", "a\0b", "a\nb", "\ud800", "é", "x" * 300, "nan", "1e999", "'", "{}", "resnet18",
    "mnist", "done", "diverged", None, True, False, 0, 1, 8, -1, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"),
]  # fmt: skip
sprung: list[int] = []


def spring(*_: object) -> list:
    """What hostile files try to call."""
    sprung.append(1)
    return []


class Trap:
    """Springs when it is unpickled."""

    def __reduce__(self) -> tuple:
        return spring, ()


def explore(name: str, cases: st.SearchStrategy | Callable[[Random], object], check: Callable[[object], None]) -> None:
    """`check` as many cases as `CASES` says, the same ones in every run."""
    count = 0

    def one(case: object) -> None:
        nonlocal count
        count += 1
        check(case)
        assert not sprung, "code of a file has run"

    if isinstance(cases, st.SearchStrategy):
        settings(
            max_examples=CASES[name], derandomize=True, deadline=None, database=None, phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )(given(cases)(one))()  # fmt: skip
    else:
        for number in range(CASES[name]):
            case = cases(Random(f"{name} {number}"))
            try:
                one(case)
            except BaseException as error:
                error.add_note(f"in case {number} of {name}: {case!r:.2000}")
                raise
    assert count >= CASES[name]


def answer(call: Callable, *errors: type[Exception]) -> object:
    """What the call returns; None if it raises one of these errors, in one line. Anything else is a failure."""
    try:
        return call()
    except errors as error:
        text = str(error)
    assert len(text.splitlines()) == 1, text
    return None


def anything(r: Random, depth: int = 2) -> object:
    """Any JSON."""
    if depth and r.random() < 0.3:
        inner = [anything(r, depth - 1) for _ in range(r.randrange(4))]
        return inner if r.random() < 0.5 else {str(r.choice(ODD)): value for value in inner}
    return r.choice(ODD)


def edited(r: Random, raw: bytes) -> bytes:
    """Bytes with bits flipped, overwritten, cut out, repeated, put in, cut off."""
    new = bytearray(raw)
    for _ in range(r.randint(1, 3)):
        at, some = r.randrange(len(new) + 1), r.randrange(1, 64)
        kind = r.randrange(6)
        if kind == 0 and at < len(new):
            new[at] ^= 1 << r.randrange(8)
        elif kind == 1:
            new[at : at + 1] = r.randbytes(1)
        elif kind == 2:
            del new[at : at + some]
        elif kind == 3:
            new[at:at] = new[at : at + some]
        elif kind == 4:
            new[at:at] = r.choice([b"\0", b"\xff", r.randbytes(1)]) * some
        elif r.random() < 0.3:
            del new[at:]
    return bytes(new)


def places(tree: object, path: tuple = ()) -> list[tuple]:
    """The path of everything in a JSON tree."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path] + [place for key, value in inner for place in places(value, (*path, key))]


def regrown(r: Random, tree: object, most: int = 2) -> object:
    """A JSON tree with up to so many parts replaced, taken out or added."""
    tree = {"": copy.deepcopy(tree)}
    for _ in range(r.randint(0, most)):
        *path, key = r.choice(places(tree)[1:] or [("",)])
        node, kind = tree, r.random()
        for step in path:
            node = node[step]
        if kind < 0.6 or not path:
            node[key] = anything(r)
        elif kind < 0.8 and isinstance(node, dict):
            node[str(r.choice(ODD))] = anything(r)
        else:
            del node[key]
    return tree.get("")


def signed(record: object) -> object:
    """A record with the checksum that the archive expects, as anyone can make one."""
    if not isinstance(record, dict):
        return record
    rest = {key: value for key, value in record.items() if key != "checksum"}
    return rest | {"checksum": hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}


def npy(array: object, **header: object) -> bytes:
    """An `.npy` file, with another header than the array's own where one is given."""
    buffer = io.BytesIO()
    if not header:
        np.save(buffer, np.asarray(array), allow_pickle=True)
        return buffer.getvalue()
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + np.asarray(array).tobytes()

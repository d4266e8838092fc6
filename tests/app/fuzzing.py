"""What the fuzz tests share: two ways to draw cases, and changes of bytes.

Hypothesis draws where words and opcodes are put together; where whole files are changed, a seeded generator, ten times faster.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

hypothesis.configuration.set_hypothesis_home_dir(Path(tempfile.gettempdir()) / f"rwclib-hypothesis-{os.getuid()}")
ODD = [
    "", ".", "..", "../..", ".cache", "a/b", "/etc", "a\0b", "a\nb", "\ud800", "é", "x" * 300, "nan", "1e999", "'", "{}", "resnet18",
    "mnist", "done", "diverged", None, True, False, 0, 1, 8, -1, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"),
]  # fmt: skip


def often(few: int, many: int) -> pytest.MarkDecorator:
    """The test with a small count of cases, and marked long with a large one."""
    return pytest.mark.parametrize("count", [few, pytest.param(many, marks=pytest.mark.long)])


def explore(count: int, cases: st.SearchStrategy | Callable[[Random], object], check: Callable[[object], None]) -> None:
    """`check` so many cases, the same ones in every run."""
    if isinstance(cases, st.SearchStrategy):
        settings(
            max_examples=count, derandomize=True, deadline=None, database=None, phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )(given(cases)(check))()  # fmt: skip
        return
    for number in range(count):
        case = cases(Random(number))
        try:
            check(case)
        except BaseException as error:
            error.add_note(f"in case {number}: {case!r:.2000}")
            raise


def answer(call: Callable, *errors: type[Exception]) -> object:
    """What the call returns; None if it raises one of these errors, in one line. Anything else is a failure."""
    try:
        return call()
    except errors as error:
        text = str(error)
    assert len(text.splitlines()) == 1, text
    return None


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

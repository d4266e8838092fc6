"""Tables that take long to compute, stored in the archive beside the runs that they are made of: `<study>/tables/<function>.json`.

A table is found by its function and inputs, so that other runs or settings are computed as if nothing were stored. With
`RWC_STORE_TABLES=1` in the environment what was computed is stored.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd

from rwclib.runs import archive

READABLE = 80  # characters of inputs that are a table's name as they stand


def stored(compute: Callable[..., pd.DataFrame]) -> Callable[..., pd.DataFrame]:
    """Decorates a function of a study: its table is read where it is stored for these inputs, else computed.

    Inputs may be arrays, tables of released arrays, and what `repr` tells apart. Its `known` gives None where nothing is stored.
    """
    study = compute.__module__.split(".")[2]
    signature = inspect.signature(compute)

    def place(*inputs: object, **options: object) -> tuple[Path, str]:
        arguments = signature.bind(*inputs, **options)
        arguments.apply_defaults()
        key = "; ".join(map(_text, arguments.args))
        key = key if len(key) < READABLE else hashlib.sha256(key.encode()).hexdigest()[:16]
        return archive.default_results() / study / "tables" / f"{compute.__name__}.json", key

    def known(*inputs: object, **options: object) -> pd.DataFrame | None:
        file, key = place(*inputs, **options)
        table = _read(file).get(key)
        return None if table is None else pd.DataFrame(table)

    @functools.wraps(compute)
    def read_or_compute(*inputs: object, **options: object) -> pd.DataFrame:
        table = known(*inputs, **options)
        if table is None:
            table = compute(*inputs, **options)
            if os.environ.get("RWC_STORE_TABLES") == "1":
                file, key = place(*inputs, **options)
                _write(file, _read(file) | {key: {name: table[name].tolist() for name in table}})
        return table

    read_or_compute.known = known
    return read_or_compute


def _text(value: object) -> str:
    """What tells inputs apart: of arrays and tables the numbers to nine digits, which every processor computes alike."""
    if isinstance(value, pd.DataFrame):
        return ", ".join(f"{name}: {_text(value[name].to_numpy())}" for name in value)
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return f"{value.shape} {np.char.mod('%.8e', value).tolist()}"
    return repr(value.tolist() if isinstance(value, np.ndarray) else value)


def _read(file: Path) -> dict[str, dict[str, list]]:
    return _parsed(file, file.stat().st_mtime_ns) if file.is_file() else {}


@functools.lru_cache(8)
def _parsed(file: Path, changed: int) -> dict[str, dict[str, list]]:
    return json.loads(file.read_text())["tables"]


def _write(file: Path, tables: dict[str, dict[str, list]]) -> None:
    made_with = {name: metadata.version(name) for name in ("rwclib", "numpy", "pandas", "scikit-learn", "torch")}
    file.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"made_with": made_with, "tables": tables}, indent=0, default=int)
    archive.write_atomically(file, content.encode())

"""The studies, a package each: `runs`, `figures`, `claims`, and `STUDY`, which `rwclib.studies.study.Study` describes.

A new study is its package, its name in `STUDIES`, and a notebook titled `Study <its place>: ...`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rwclib.errors import ConfigError

if TYPE_CHECKING:
    from rwclib.runs.config import RunConfig
    from rwclib.studies.study import Study

STUDIES = ("layerwise", "weightscale", "dynamics", "softness", "extensions")
Choice = Sequence | None  # of models, data sets or seeds; None for the study's own


def get(name: str) -> Study:
    """The study of this name; `ConfigError` names the known ones."""
    if name not in STUDIES:
        raise ConfigError(f"unknown study {name!r}; known: {', '.join(STUDIES)}")
    return importlib.import_module(f"rwclib.studies.{name}").STUDY


def runs(name: str) -> Callable[..., list[RunConfig]]:
    """The study's `runs(profile, *, models, datasets, seeds)`, without loading what judges and draws; errors as `get`."""
    return importlib.import_module(f"rwclib.studies.{name}").runs if name in STUDIES else get(name).runs


def lazily(package: str, name: str) -> object:
    """`STUDY`, `figures` and `claims` of a study's package, loaded when used: a sweep needs its runs alone."""
    if name == "STUDY":
        return importlib.import_module(f"{package}.claims").STUDY
    if name in ("figures", "claims"):
        return importlib.import_module(f"{package}.{name}")
    raise AttributeError(f"module {package!r} has no attribute {name!r}")

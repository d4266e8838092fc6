"""The studies: one module each, with its runs, the tables behind its figures, and its claims.

A study module has `runs(profile, ...) -> [RunConfig]` and `scorecard(results, profile) -> DataFrame`.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from rwclib.errors import ConfigError

STUDIES = ("layerwise",)


def get(name: str) -> ModuleType:
    """The study's module; `ConfigError` names the known studies."""
    if name not in STUDIES:
        raise ConfigError(f"unknown study {name!r}; known: {', '.join(STUDIES)}")
    return importlib.import_module(f"rwclib.studies.{name}")

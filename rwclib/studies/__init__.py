"""The studies, two modules each: `<study>` has its runs and the tables behind its figures, `<study>_claims` its claims.

`base` and `scoring` are what they share. The first has `runs(profile, ...) -> [RunConfig]`, the second
`scorecard(results, profile) -> DataFrame`.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from rwclib.errors import ConfigError

STUDIES = ("layerwise", "weightscale", "dynamics", "softness")


def get(name: str, part: str = "") -> ModuleType:
    """The study's module, or with `part="claims"` that of its claims; `ConfigError` names the known studies."""
    if name not in STUDIES:
        raise ConfigError(f"unknown study {name!r}; known: {', '.join(STUDIES)}")
    return importlib.import_module(f"rwclib.studies.{name}{part and '_' + part}")

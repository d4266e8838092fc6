"""How neural-network weights move during training: a tracker for any PyTorch loop, and four studies reproduced.

Public are the names in `__all__`; each loads when first used. What their modules name without a leading underscore is public
too; everything else may change without notice.
"""

import importlib
import time
from typing import Any

STARTED = time.time()  # before PyTorch is imported: that too counts towards a time budget

__version__ = "0.1.0"
_HOMES = {  # the module of each public name; where it is not that module itself, the name in it
    "RWCTracker": "tracker:RWCTracker", "RwcError": "errors:RwcError", "RunConfig": "runs.config:RunConfig",
    "Freezer": "freezing:Freezer", "reset_layers": "_resetting:reset_layers", "freezing": "freezing",
    "check": "training_check:check", "compare": "_compare:compare", "errors": "errors", "metrics": "metrics",
    "claims": "analysis.claims", "clustering": "analysis.clustering", "features": "analysis.features",
    "perturbation": "analysis.perturbation", "plotting": "analysis.plotting", "scorecard": "analysis.scorecard", "softness": "analysis.softness",
    "theory": "analysis.theory",
    "archive": "runs.archive", "data": "runs.data", "models": "runs.models", "training": "runs.training",
    "recheck": "sweeps.recheck", "sweep": "sweeps.sweep", "studies": "studies",
}  # fmt: skip
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rwclib' has no attribute {name!r}")
    module, _, inside = _HOMES[name].partition(":")
    loaded = importlib.import_module(f"rwclib.{module}")
    return getattr(loaded, inside) if inside else loaded


def __dir__() -> list[str]:
    return sorted(__all__)

"""How neural-network weights move during training: a tracker for any PyTorch loop, and four studies reproduced.

Public are the names in `__all__`: the tracker, a run's settings, the base of all errors, and modules. Tracker and
modules load when first used. What these modules name without a leading underscore is public too; everything else may
change without notice.
"""

import importlib
import time
from typing import TYPE_CHECKING, Any

STARTED = time.time()  # before PyTorch is imported: that too counts towards a time budget

from rwclib.config import RunConfig
from rwclib.errors import RwcError

if TYPE_CHECKING:
    from rwclib.tracker import RWCTracker

__version__ = "0.1.0"
__all__ = [
    "RWCTracker", "RunConfig", "RwcError", "__version__", "archive", "claims", "clustering", "data", "errors",
    "features", "metrics", "models", "perturbation", "plotting", "recheck", "softness", "studies", "sweep", "training",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "RWCTracker":
        return importlib.import_module("rwclib.tracker").RWCTracker
    if name in __all__:
        return importlib.import_module(f"rwclib.{name}")
    raise AttributeError(f"module 'rwclib' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

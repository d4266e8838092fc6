"""How neural-network weights move during training: a tracker for any PyTorch loop, and four studies reproduced."""

import time

STARTED = time.time()  # before PyTorch is imported: that too counts towards a time budget

from rwclib.config import RunConfig
from rwclib.errors import RwcError
from rwclib.tracker import RWCTracker

__version__ = "0.1.0"
__all__ = ["RWCTracker", "RunConfig", "RwcError", "__version__"]

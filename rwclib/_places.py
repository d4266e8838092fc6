"""Where the repository is, seen from the package or from the working directory."""

from __future__ import annotations

import os
from pathlib import Path


def repository() -> Path | None:
    """The repository that the package lies in, else the one that the working directory lies in, else None."""
    here = Path.cwd()
    folders = Path(__file__).parents[1], here, *here.parents
    return next((folder for folder in folders if (folder / "data" / "results").is_dir()), None)


def results() -> Path:
    """`$RWC_RESULTS`, else the repository's `data/results`, else that folder of the working directory."""
    return Path(os.environ.get("RWC_RESULTS") or (repository() or Path()) / "data" / "results")


def figures() -> Path:
    """The repository's `figures`, else that folder of the working directory."""
    return (repository() or Path()) / "figures"

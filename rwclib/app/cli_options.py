"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rwclib.runs.config import ENGINES, PROFILES

PROFILE_HELP = "; ".join(f"{name}: {what}" for name, what in PROFILES.items())
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Processes at once [default: one per core, or 2 on a GPU].")]
TimeBudget = Annotated[
    float | None, typer.Option(min=0, help="Seconds, start-up included, after which to stop cleanly.")
]
Engine = Annotated[str, typer.Option(help="; ".join(f"{name}: {what}" for name, what in ENGINES.items()))]
Checkpoint = Annotated[float, typer.Option(min=0, help="Least seconds between checkpoints.")]
Results = Annotated[Path | None, typer.Option(help="Archive folder [default: data/results of the repository].")]
DataDir = Annotated[
    Path | None, typer.Option(help="Folder of image sets [default: $RWC_DATA_DIR, else a cache folder].")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

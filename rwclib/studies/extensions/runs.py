"""The runs of study 5: none of its own so far."""

from __future__ import annotations

from rwclib.runs.config import RunConfig, check_profile
from rwclib.studies import Choice


def runs(profile: str, *, models: Choice = None, datasets: Choice = None, seeds: Choice = None) -> list[RunConfig]:
    """No runs, whatever is chosen; `ConfigError` for an unknown profile."""
    check_profile(profile)
    return []

"""Study 5, our own: what theory predicts of study 1's runs and figures, on which it is judged."""

from rwclib.runs.config import check_profile
from rwclib.studies import lazily


def runs(profile: str, *, models: object = None, datasets: object = None, seeds: object = None) -> list:
    """None of its own, whatever is chosen; `ConfigError` for an unknown profile."""
    check_profile(profile)
    return []


def __getattr__(name: str) -> object:
    return lazily(__name__, name)

"""Study 5, our own: what theory predicts of study 1's runs and figures. It trains no runs; study 1's are its evidence."""

from rwclib.studies import lazily
from rwclib.studies.extensions.runs import runs


def __getattr__(name: str) -> object:
    return lazily(__name__, name)

"""Study 3, dynamics of parameters (slides)."""

from rwclib.studies import lazily
from rwclib.studies.dynamics.runs import CONTROLS, NETWORKS, PERTURBATIONS, grid, retrainings, run_config, runs


def __getattr__(name: str) -> object:
    return lazily(__name__, name)

"""Study 3, dynamics of parameters (slides)."""

from rwclib.studies import lazily
from rwclib.studies.dynamics.runs import (
    CONTROLS,
    NETWORKS,
    PERTURBATIONS,
    SIZES,
    controls,
    grid,
    retrainings,
    run_config,
    runs,
)  # fmt: skip


def __getattr__(name: str) -> object:
    return lazily(__name__, name)

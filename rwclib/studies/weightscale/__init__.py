"""Study 2, WeightScale (IJERTV11IS090108, arXiv 2107.07005)."""

from rwclib.studies import lazily
from rwclib.studies.weightscale.runs import DATASETS, NETWORKS, RESNETS, grid, resolutions, run_config, runs


def __getattr__(name: str) -> object:
    return lazily(__name__, name)

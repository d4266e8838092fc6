"""Study 1, layer-wise weight change (arXiv 2011.06735)."""

from rwclib.studies import lazily
from rwclib.studies.layerwise.runs import DATASETS, NETWORKS, SEEDS, SIZES, run_config, runs


def __getattr__(name: str) -> object:
    return lazily(__name__, name)

"""Study 4, softness of filters (Journal of Emerging Investigators, 2019)."""

from rwclib.studies import lazily
from rwclib.studies.softness.runs import DATASETS, DESIGN, NETWORKS, SIZES, run_config, runs


def __getattr__(name: str) -> object:
    return lazily(__name__, name)

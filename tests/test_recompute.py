"""Every claim's effect a second time, by `benchmarks/recompute.py`, which shares no code with the package."""

import ast
import importlib.util

import pandas as pd
import pytest

from rwclib import studies
from rwclib.studies import STUDIES
from tests.conftest import ROOT

SCRIPT = ROOT / "benchmarks" / "recompute.py"
KEYS = ["claim", "definition", "profile", "comparison"]


@pytest.fixture(scope="module")
def recomputed():
    spec = importlib.util.spec_from_file_location("recompute", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script.effects(ROOT / "data" / "results").set_index(KEYS)["effect"]


def test_the_second_computation_shares_no_code_with_the_package():
    tree = ast.parse(SCRIPT.read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    roots = {name.partition(".")[0] for name in imported}
    assert roots == {"argparse", "itertools", "json", "pathlib", "numpy", "pandas", "scipy", "sklearn"}
    assert "__import__" not in SCRIPT.read_text()


@pytest.mark.parametrize("study", STUDIES)
def test_both_computations_judge_the_same_comparisons_by_the_same_effects(study, recomputed):
    claims = studies.get(study)
    parts = claims.details(studies.get(study).tables(ROOT / "data" / "results"))
    ours = parts[parts["verdict"] != "not run"].set_index(KEYS)["effect"]
    theirs = recomputed[recomputed.index.isin({claim.id for claim in claims.claims}, level="claim")]
    assert not ours.index.has_duplicates
    assert not theirs.index.has_duplicates
    assert set(ours.index) == set(theirs.index)
    assert len(ours) > 10
    both = pd.DataFrame({"ours": ours, "theirs": theirs})
    assert both["ours"].to_numpy() == pytest.approx(both["theirs"].to_numpy(), rel=1e-9, abs=1e-12)

"""Every claim's effect a second time, by `benchmarks/recompute.py`, which shares no code with the package."""

import ast
import importlib.util
from dataclasses import replace

import pandas as pd
import pytest

from rwclib import studies
from rwclib.studies import STUDIES
from tests.conftest import ROOT

RESULTS = ROOT / "data" / "results"
SCRIPT = ROOT / "benchmarks" / "recompute.py"
KEYS = ["claim", "definition", "profile", "comparison"]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("recompute", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def recomputed(script):
    return script.effects(RESULTS).set_index(KEYS)["effect"]


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
    parts = claims.details(studies.get(study).tables(RESULTS))
    ours = parts[parts["verdict"] != "not run"].set_index(KEYS)["effect"]
    theirs = recomputed[recomputed.index.isin({claim.id for claim in claims.claims}, level="claim")]
    assert not ours.index.has_duplicates
    assert not theirs.index.has_duplicates
    assert set(ours.index) == set(theirs.index)
    assert len(ours) > 10
    both = pd.DataFrame({"ours": ours, "theirs": theirs})
    assert both["ours"].to_numpy() == pytest.approx(both["theirs"].to_numpy(), rel=1e-9, abs=1e-12)


def test_both_compare_study_2_with_its_published_accuracies_alike(script):
    """On smaller runs, since W8 is of the published size."""
    runs = script.read_runs(RESULTS, "weightscale").query("profile == 'reduced'").assign(profile="paper")
    theirs = {label: effect for claim, _, _, label, effect in script.weightscale(runs) if claim == "W8"}
    study = studies.get("weightscale")
    tables = study.tables(RESULTS, "reduced")
    tables = replace(tables, layers=tables.layers.assign(profile="paper"), epochs=tables.epochs.assign(profile="paper"))
    ours = study.details(tables).query("claim == 'W8' and verdict != 'not run'").set_index("comparison")["effect"]
    assert len(ours) >= 24
    assert ours.to_dict() == pytest.approx(theirs, rel=1e-9)

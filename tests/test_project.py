"""The repository agrees with itself: versions, addresses, imports that only point downwards, no code-running loaders."""

import ast
import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import rwclib
from rwclib import notebooks

from .conftest import ROOT, rwc

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
)
# DESIGN: imports point down this list, never up
ORDER = [
    "errors", "sharding", "metrics", "models", "data", "config", "tracker", "clustering", "perturbation", "features", "softness", "recording", "plotting",
    "plotting_runs", "plotting_filters", "locks", "archive", "weights", "parents", "comparisons", "claims", "scorecards", "checkpoint", "steps", "measurement", "training", "progress", "sweep", "recheck", "planning", "executors", "studies", "notebooks", "cli_stores", "cli",
]  # fmt: skip


def test_the_tested_versions_satisfy_the_requirements():
    requirements = [Requirement(r) for r in PROJECT["dependencies"]]
    for extra in ("notebooks", "cluster", "dev"):
        requirements += [Requirement(r) for r in PROJECT["optional-dependencies"][extra] if not r.startswith("rwclib")]
    for requirement in requirements:
        assert requirement.name in PINS, f"{requirement.name} is not pinned in constraints.txt"
        assert requirement.specifier.contains(PINS[requirement.name]), requirement


def test_conda_users_get_the_same_packages():
    yaml = pytest.importorskip("yaml")
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, _, pip = environment["dependencies"]
    assert SpecifierSet(python.removeprefix("python")) == SpecifierSet(PROJECT["requires-python"])
    assert pip["pip"] == ["--constraint constraints.txt", "--editable .[dev]"]


def test_the_version_is_the_same_everywhere():
    assert PROJECT["version"] == rwclib.__version__
    assert f"version: {rwclib.__version__}" in (ROOT / "CITATION.cff").read_text()


def test_one_address_of_the_repository():
    files = [ROOT / "README.md", *(ROOT / "notebooks").glob("*.ipynb")]
    owner = notebooks.REPOSITORY.removeprefix("https://github.com/")
    for file in files:
        for found in re.findall(r"github\.com/(?:github/)?([\w.-]+/rwclib\b)", file.read_text()):
            assert found == owner, f"{file.name} has another address than rwclib/notebooks.py"
    for book in files[1:]:
        assert f"colab.research.google.com/github/{owner}/blob/main/notebooks/{book.name}" in book.read_text()


def test_the_readme_shows_the_current_scorecard(tmp_path):
    copy = tmp_path / "README.md"
    copy.write_text((ROOT / "README.md").read_text())
    assert rwc("claims", "--into", copy).returncode == 0
    assert copy.read_text() == (ROOT / "README.md").read_text(), "run `rwc claims --into README.md`"
    assert copy.read_text().count("| L1 |") == 1


def imports(path):
    """rwclib modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("rwclib."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.ImportFrom) and node.module == "rwclib":
            yield from (alias.name for alias in node.names if alias.name in ORDER)


@pytest.mark.parametrize("path", sorted((ROOT / "rwclib").rglob("*.py")), ids=lambda path: path.stem)
def test_imports_point_downwards(path):
    name = "studies" if path.parent.name == "studies" else path.stem
    if name in ("__init__", "__main__"):
        return
    lower = ORDER[: ORDER.index(name)] + (["studies"] if name == "studies" else [])
    allowed = lower + (["plotting"] if name == "tracker" else [])  # loaded by plot() alone
    assert set(imports(path)) <= set(allowed)


def test_nothing_loads_code_from_files():
    forbidden = re.compile(
        r"pickle\.load|allow_pickle=True|weights_only=False|torch\.load|\beval\(|\bexec\(|os\.system|shell=True"
    )
    for path in [*(ROOT / "rwclib").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        text = path.read_text().replace(".eval()", "")
        assert not forbidden.search(text), path.name


def test_modules_stay_readable_in_one_sitting():
    for path in (ROOT / "rwclib").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, f"{path.name} is over 400 lines"

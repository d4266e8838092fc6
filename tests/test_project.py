"""The repository agrees with itself: versions, addresses, imports that only point downwards, no code-running loaders."""

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import rwclib
from rwclib import data, models
from rwclib.app import notebooks
from rwclib.studies.weightscale import release as weightscale_release
from tests.conftest import ROOT, rwc

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
)


def test_the_tested_versions_satisfy_the_requirements():
    requirements = [Requirement(r) for r in PROJECT["dependencies"]]
    for extra in ("notebooks", "callbacks", "cluster", "dev"):
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
        for address in re.findall(r"github\.com/(?:github/)?([\w.-]+/rwclib\b)", file.read_text()):
            assert address == owner, f"{file.name} has another address than rwclib/app/notebooks.py"
    for book in files[1:]:
        assert f"colab.research.google.com/github/{owner}/blob/main/notebooks/{book.name}" in book.read_text()


def test_readme_and_docs_show_the_current_scorecard(tmp_path):
    pages = [ROOT / "README.md", ROOT / "docs" / "claims.md"]
    copies = [Path(shutil.copy(page, tmp_path)) for page in pages]
    assert rwc("claims", "--into", copies[0], "--into", copies[1]).returncode == 0
    for page, copy in zip(pages, copies, strict=True):
        assert copy.read_text() == page.read_text(), f"run `rwc claims --into {page.name}`"


def test_readme_is_short_and_links_lead_somewhere():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "data" / "README.md"]
    for page in pages:
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_imports_point_downwards():
    """The six rooms; pyproject.toml has the contract."""
    done = subprocess.run([Path(sys.executable).with_name("lint-imports")], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout


def programs():
    """Every program of the repository but its tests: name and source; of a notebook, each cell's."""
    for path in [*(ROOT / "rwclib").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "data").glob("*.py")]:
        yield path.relative_to(ROOT).as_posix(), path.read_text()
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        for number, cell in enumerate(cells):
            yield f"{path.name}:{number}", "".join(cell["source"])


def test_notebooks_run_shell_commands_on_colab_alone():
    for name, source in programs():
        if ".ipynb" not in name:
            continue
        lines = source.splitlines()
        shell = [line for line in lines if re.match(r"\s*(!|%)", line)]
        if not name.endswith(":0"):
            assert not shell, f"{name} has {shell}"
            continue
        (guard,) = (number for number, line in enumerate(lines) if line.startswith('if "google.colab" in sys.modules'))
        assert lines[guard + 1 :] == shell, name
        assert all(line.startswith("    ") for line in shell), name


def test_no_address_without_tls_and_no_secrets():
    secret = re.compile(
        r"AKIA[0-9A-Z]{16}|\bgh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{22}|glpat-[\w-]{20}|hf_[A-Za-z]{34}|sk-[\w-]{20}|xox[abps]-[\w-]{10}|AIza[\w-]{35}"
        r"|-----BEGIN [A-Z ]*PRIVATE KEY|(?i:password|passwd|secret|api_?key|access_?token)\s*[=:]\s*[\"'][^\"']{6,}|https?://[^/\s\"']+:[^/\s\"'@]+@"
    )
    assert secret.search("api_key = '0123456789'")
    assert secret.search("-----BEGIN RSA PRIVATE" + " KEY-----")
    for name, source in programs():
        assert "http://" not in source, name
    texts = [file for kind in ("py", "ipynb", "md", "toml", "txt", "yml", "cff") for file in ROOT.glob(f"*.{kind}")]
    for folder in ("rwclib", "tests", "benchmarks", "notebooks", "data"):
        texts += [file for kind in ("py", "ipynb", "md", "json") for file in (ROOT / folder).rglob(f"*.{kind}")]
    for file in texts:
        if file != Path(__file__):
            assert not secret.search(file.read_text()), file.name


def test_every_download_is_checked_by_a_digest_and_comes_over_https():
    """SVHN alone comes over plain HTTP, its server having nothing else; torchvision's MD5 checks it as it does the others."""
    from torchvision import datasets
    from torchvision.models import get_model_weights

    network = re.compile(
        r"urlopen\(|urlretrieve|get_state_dict\(|download=True\b.*\bsplit|requests\.|httpx|aiohttp|hf_hub|pretrained=True"
    )
    places = {name: network.findall(source) for name, source in programs() if network.search(source)}
    assert sorted(places) == [
        "rwclib/runs/data.py",
        "rwclib/runs/initial_weights.py",
        "rwclib/studies/weightscale/release.py",
    ]
    assert {name: len(calls) for name, calls in places.items()} == dict.fromkeys(places, 1)

    for name, known in data.DATASETS.items():
        if known.torchvision is None:
            continue
        made = getattr(datasets, known.torchvision)
        if hasattr(made, "resources"):  # MNIST and its like
            files = [(mirror + file, digest) for mirror in known.mirrors for file, digest in made.resources]
        elif hasattr(made, "split_list"):
            files = [(made.split_list[split][0], made.split_list[split][2]) for split in ("train", "test")]
        else:
            files = [(made.url, made.tgz_md5)]
            assert all(re.fullmatch("[0-9a-f]{32}", digest) for _, digest in [*made.train_list, *made.test_list])
        for address, digest in files:
            assert re.fullmatch("[0-9a-f]{32}", digest), name
            assert address.startswith("http://" if name == "svhn" else "https://"), address

    assert (
        "get_state_dict(progress=False, check_hash=True, weights_only=True)"
        in (ROOT / "rwclib/runs/initial_weights.py").read_text()
    )
    for known in models.MODELS.values():
        if known.imagenet:
            assert re.fullmatch(r"https://\S+-[0-9a-f]{8}\.pth", get_model_weights(known.imagenet).DEFAULT.url)

    assert re.fullmatch(r"https://raw\.githubusercontent\.com/\S+/[0-9a-f]{40}/clustering/", weightscale_release._URL)
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for _, digest in weightscale_release.FILES.values())


def test_functions_and_modules_stay_readable_in_one_sitting():
    for path in (ROOT / "rwclib").rglob("*.py"):
        source = path.read_text()
        assert len(source.splitlines()) <= 320, f"{path.name} is over 320 lines"
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                length = node.end_lineno - node.lineno + 1
                assert length <= 60, f"{path.name}: {node.name} is over 60 lines"

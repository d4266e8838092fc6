"""The repository agrees with itself: versions, addresses, imports that only point downwards, no code-running loaders."""

import ast
import json
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import rwclib
from rwclib import data, models, notebooks
from rwclib.studies import weightscale_release

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
    "plotting_runs", "plotting_filters", "locks", "archive", "exchange", "weights", "parents", "claims", "scorecards", "checkpoint", "steps", "measurement", "training", "progress", "sweep", "recheck", "planning", "executors", "studies", "notebooks", "report", "cli_stores", "cli",
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


FORBIDDEN = re.compile(  # full names of what is called, mentioned or imported
    r"(builtins\.)?(eval|exec|compile|__import__)|(c?[pP]ickle|pickletools|_pickle|marshal|shelve|dill|cloudpickle|joblib)(\..*)?"
    r"|os\.(system|popen|exec\w*|spawn\w*)|commands\..*|pty\..*|torch\.(load|save|jit\.load|hub\..*)|yaml\.(?!safe_load)\w+"
    r"|.*\.(extractall|extract|to_pickle|read_pickle)|shutil\.unpack_archive|tempfile\.mktemp|get_ipython|.*\.run_line_magic"
    r"|ssl\._create_unverified_context"
)
BAD_OPTIONS = {"shell": True, "allow_pickle": True, "weights_only": False, "verify": False, "check_hash": False}


def forbidden(source):
    """What a program has of `FORBIDDEN` and `BAD_OPTIONS`, under whatever name it was imported."""
    tree, known, found = ast.parse(source), {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {
                alias.asname or alias.name.split(".")[0]: alias.name if alias.asname else alias.name.split(".")[0]
                for alias in node.names
            }
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            known |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            parts = []
            while isinstance(node, ast.Attribute):
                parts, node = [node.attr, *parts], node.value
            first = known.get(node.id, node.id) if isinstance(node, ast.Name) else ""
            found.append(".".join([first, *parts]))
        elif isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant) and node.arg in BAD_OPTIONS:
            found += [f"{node.arg}={node.value.value}"] * (node.value.value is BAD_OPTIONS[node.arg])
    return sorted({name for name in found if FORBIDDEN.fullmatch(name) or "=" in name})


def programs():
    """Every program of the repository but its tests: name and source; of a notebook, each cell's."""
    for path in [*(ROOT / "rwclib").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "data").glob("*.py")]:
        yield path.relative_to(ROOT).as_posix(), path.read_text()
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        for number, cell in enumerate(cells):
            yield f"{path.name}:{number}", "".join(cell["source"])


def test_nothing_loads_code_from_files():
    """The one exception reads the arrays that were released as pickles, by an unpickler that makes nothing but arrays."""
    for name, source in programs():
        found = forbidden(re.sub(r"(?m)^(\s*)[!%].*", r"\1pass", source))
        if name == "rwclib/studies/weightscale_release.py":
            assert found == [
                "pickle",
                "pickle.Unpickler",
                "pickle.UnpicklingError",
                "pickletools",
                "pickletools.genops",
            ]
            assert source.count("class _ArraysOnly(pickle.Unpickler):") == 1
        else:
            assert not found, f"{name} has {', '.join(found)}"


@pytest.mark.parametrize("source", [
    "import pickle", "from pickle import loads as read", "import os as o\no.system('x')", "from os import popen", "eval('1')",
    "import torch as t\nt.load('x')", "run('x', shell=True)", "np.load('x', allow_pickle=True)", "tar.extractall()", "a().b.extract(m)",
    "import yaml\nyaml.load(x)", "from tempfile import mktemp", "get_state_dict(weights_only=False)", "f = exec", "import joblib.numpy_pickle",
])  # fmt: skip
def test_forbidden_calls_are_seen_under_other_names(source):
    assert forbidden(source)
    assert not forbidden("model.eval()\nimport re\nre.compile('a')\nnp.load('x', allow_pickle=False)\nyaml = 1")


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
    assert sorted(places) == ["rwclib/data.py", "rwclib/models.py", "rwclib/studies/weightscale_release.py"]
    assert {name: len(found) for name, found in places.items()} == dict.fromkeys(places, 1)

    for name, known in data.DATASETS.items():
        if known.torchvision is None:
            continue
        of = getattr(datasets, known.torchvision)
        if hasattr(of, "resources"):  # MNIST and its like
            files = [(mirror + file, digest) for mirror in data._MIRRORS[name] for file, digest in of.resources]
        elif hasattr(of, "split_list"):
            files = [(of.split_list[split][0], of.split_list[split][2]) for split in ("train", "test")]
        else:
            files = [(of.url, of.tgz_md5)]
            assert all(re.fullmatch("[0-9a-f]{32}", digest) for _, digest in [*of.train_list, *of.test_list])
        for address, digest in files:
            assert re.fullmatch("[0-9a-f]{32}", digest), name
            assert address.startswith("http://" if name == "svhn" else "https://"), address

    assert (
        "get_state_dict(progress=False, check_hash=True, weights_only=True)" in (ROOT / "rwclib/models.py").read_text()
    )
    for known in models.MODELS.values():
        if known.imagenet:
            assert re.fullmatch(r"https://\S+-[0-9a-f]{8}\.pth", get_model_weights(known.imagenet).DEFAULT.url)

    assert re.fullmatch(r"https://raw\.githubusercontent\.com/\S+/[0-9a-f]{40}/clustering/", weightscale_release._URL)
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for _, digest in weightscale_release.FILES.values())


def test_modules_stay_readable_in_one_sitting():
    for path in (ROOT / "rwclib").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, f"{path.name} is over 400 lines"

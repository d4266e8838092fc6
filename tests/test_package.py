"""The package as others get it: its public names, and the wheel, built here and used away from the repository."""

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from importlib.util import find_spec

import pytest

import rwclib
from tests.conftest import ROOT

HEAVY = {"torchvision", "timm", "sklearn", "matplotlib", "seaborn", "scipy"}
BUNDLED = (
    "rwclib/fashion_mnist_sample.npz",
    "rwclib/studies/softness/birds.npy",
    "rwclib/studies/layerwise/published.csv",
)


def python(code, *arguments, executable=sys.executable, **options):
    """A script in a process of its own: what it prints."""
    done = subprocess.run([executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_public_name_is_there_documented_and_listed():
    assert dir(rwclib) == sorted(rwclib.__all__)
    assert len(set(rwclib.__all__)) == len(rwclib.__all__)
    for name in rwclib.__all__:
        public = getattr(rwclib, name)
        assert isinstance(public, str) or len(public.__doc__) > 20, name
    with pytest.raises(AttributeError, match="module 'rwclib' has no attribute 'clusterings'"):
        rwclib.clusterings  # noqa: B018


def test_public_names_load_when_used_and_nothing_heavy_before():
    out = python(
        "import sys, rwclib\n"
        "print('torch' in sys.modules)\n"
        "rwclib.RWCTracker\n"
        f"print({HEAVY} & set(sys.modules), {{'torch', 'pandas'}} <= set(sys.modules))\n"
        "print(rwclib.plotting.layer_lines.__name__, 'matplotlib' in sys.modules)\n"
        "from rwclib import *\n"
        "print(clustering.cluster.__name__, RWCTracker.__name__)\n",
        cwd=ROOT,
    )
    assert out.splitlines() == ["False", "set() True", "layer_lines True", "cluster RWCTracker"]


def test_the_changelog_has_this_version():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## \[{re.escape(rwclib.__version__)}\] - \d{{4}}-\d\d-\d\d$", text, re.MULTILINE)
    assert f"[{rwclib.__version__}]: https://github.com/rwclib/rwclib/" in text


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the source distribution, which is built from here."""
    folder = tmp_path_factory.mktemp("dist")
    here = ["--no-isolation"] if find_spec("hatchling") else []  # else it is fetched
    done = subprocess.run(
        [sys.executable, "-m", "build", "--outdir", folder, *here, ROOT], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / f"rwclib-{rwclib.__version__}.tar.gz").stat().st_size < 8e6
    return folder / f"rwclib-{rwclib.__version__}-py3-none-any.whl"


@pytest.mark.long
def test_the_wheel_has_every_module_and_data_file_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as opened:
        names = {name for name in opened.namelist() if ".dist-info/" not in name}
        entry = opened.read(f"rwclib-{rwclib.__version__}.dist-info/entry_points.txt").decode()
    tracked = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "rwclib").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == tracked | {"rwclib/fashion_mnist_sample.npz"}
    assert names >= set(BUNDLED)
    assert "rwc = rwclib.app.cli:main" in entry


@pytest.fixture(scope="module")
def elsewhere(wheel, tmp_path_factory):
    """A new environment with the wheel; its dependencies are those of this one, but not the rwclib installed here."""
    folder = tmp_path_factory.mktemp("elsewhere")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")  # its own .pth files are not followed
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(site)
    return folder


def clean():
    """The environment without what would show the repository."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "RWC_DATA_DIR")}


USE = """
import sys
from pathlib import Path
import torch
import rwclib
from rwclib import RWCTracker, RunConfig, archive, clustering, models, studies, training

assert Path(rwclib.__file__).is_relative_to(sys.prefix), rwclib.__file__
assert not any("sklearn" in name for name in sys.modules)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4), torch.nn.Linear(4, 2))
tracker, optimizer = RWCTracker(model), torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(6):
    model(torch.randn(32, 8)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    tracker.step()
table = tracker.table()
assert len(table) == 18 and (table["rwc"] > 0).all()
history = table.pivot(index="layer", columns="step", values="rwc").loc[tracker.layers]
assert sorted(clustering.cluster(clustering.clean(history.to_numpy()), k=2).sizes) == [1, 2]
for name in models.MODELS:
    assert len(RWCTracker(models.build(name, num_classes=10, width=8)).layers) > 2
config = RunConfig(model="lenet5", dataset="fashion_mnist_sample", n_train=64, n_test=32)
run = archive.read_dir(training.run(config, results="results"))
assert len(run.layers) == 5 and run.record["provenance"]["rwclib"] == rwclib.__version__
from rwclib.studies import softness
assert softness.figures.birds().shape[0] == 17
print("ok")
"""


@pytest.mark.long
def test_the_wheel_works_away_from_the_repository(elsewhere):
    assert python(USE, executable=elsewhere / "venv" / "bin" / "python", cwd=elsewhere, env=clean()) == "ok\n"


@pytest.mark.long
def test_the_command_works_away_from_the_repository(elsewhere):
    def rwc(*words):
        code = "import sys, rwclib.app.cli; assert rwclib.__file__.startswith(sys.prefix); rwclib.app.cli.main()"
        return subprocess.run(
            [elsewhere / "venv" / "bin" / "python", "-c", code, *map(str, words)],
            capture_output=True, text=True, cwd=elsewhere, env=clean(),
        )  # fmt: skip

    done = rwc("train", "--model", "lenet5", "--dataset", "fashion_mnist_sample", "--epochs", 1, "--n-train", 64,
               "--n-test", 32, "--results", "mine")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("mine/custom/lenet5-fashion_mnist_sample-")
    assert rwc("results", "verify", "--results", "mine").stdout == "runs ok: 1, damaged: 0\n"
    assert rwc("bench", "gpu").stderr.startswith("rwc: the benchmarks come with the repository")

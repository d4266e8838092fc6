"""The command as a user meets it: outputs, exit codes, and one sentence for everything that goes wrong."""

import json
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from rwclib import archive, models
from rwclib.app import cli, notebooks
from rwclib.errors import ConfigError, NotebookError
from rwclib.studies import layerwise
from rwclib.sweeps import pools
from tests.conftest import ROOT, contents, rwc

TRAIN = [
    "train",
    "--model",
    "resnet18",
    "--dataset",
    "fashion_mnist_sample",
    "--width",
    8,
    "--n-train",
    64,
    "--n-test",
    50,
]


def run(capsys, *arguments):
    """The command in this process (a second instead of five): exit code, stdout, stderr."""
    argv, sys.argv = sys.argv, ["rwc", *map(str, arguments)]
    try:
        cli.main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.argv = argv
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "results"
    done = rwc(*TRAIN, "--epochs", 1, "--results", folder)
    assert done.returncode == 0, done.stderr
    assert archive.read_dir(archive.Path(done.stdout.strip().splitlines()[-1])).record["status"] == "done"
    return folder


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["sweep", "--help"], ["reproduce", "--help"],
                                   ["claims", "--help"], ["results", "--help"], ["results", "verify", "--help"],
                                   ["data", "--help"]])  # fmt: skip
def test_every_command_has_help(capsys, words):
    code, out, _ = run(capsys, *words)
    assert code == 0
    assert "Usage:" in out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (
            [*TRAIN, "--model", "resnet19"],
            2,
            f"unknown model 'resnet19'; known: {', '.join(sorted(models.MODELS))}",
        ),
        ([*TRAIN, "--dataset", "imagenet"], 2, "unknown data set 'imagenet'; known:"),
        ([*TRAIN, "--epochs", "-1"], 2, "epochs must be at least 0, not -1"),
        ([*TRAIN, "--width", "0"], 2, "width must be at least 1, not 0"),
        ([*TRAIN, "--width", "12"], 2, "width must be a multiple of 8, not 12"),
        ([*TRAIN, "--n-train", "6001"], 2, "n_train is 6001, but fashion_mnist_sample has 6000"),
        ([*TRAIN, "--optimizer", "lion"], 2, "unknown optimizer 'lion'; known: sgd, adam"),
        ([*TRAIN, "--device", "tpu"], 2, "device 'tpu' is not on this machine"),
        ([*TRAIN, "--dataset", "cifar10", "--data-dir", "{tmp}/none"], 1, "cifar10 could not be fetched"),
        (["sweep", "nonsense"], 2, "unknown study 'nonsense'; known: layerwise"),
        (
            ["sweep", "layerwise", "--profile", "huge"],
            2,
            "unknown profile 'huge'; known: smoke, quick, reduced, narrow, paper",
        ),
        (["sweep", "layerwise", "--only", "resnet19"], 2, "unknown model 'resnet19'"),
        (
            ["claims", "--profile", "huge"],
            2,
            "unknown profile 'huge'; known: best, smoke, quick, reduced, narrow, paper",
        ),
        (["claims", "--format", "xml"], 2, "unknown format 'xml'"),
        (["claims", "--results", "{tmp}/none"], 2, "does not exist"),
        (["results", "ls", "--results", "{tmp}/none"], 2, "does not exist"),
        (["results", "verify", "--results", "{tmp}"], 1, "no finished runs in"),
        (["data", "fetch", "imagenet"], 2, "unknown data set 'imagenet'"),
        (["reproduce", "--only", "77"], 2, "no notebook begins with '77'"),
        (["reproduce", "-p", "no_such_parameter", "1"], 2, "no notebook has a parameter 'no_such_parameter'; known:"),
        (["reproduce", "--only", "01", "-p", "seeds", "many"], 2, "parameter seeds must be list"),
        (["reproduce", "--only", "01", "-p", "seeds", "--jobs", "1"], 2, "-p 'seeds=' lacks a name or a value"),
        (["reproduce", "--only", "01", "-p", "retrain", "True"], 2, "parameter retrain is an option of this command"),
        (["reproduce", "--results", "{tmp}/none"], 2, "does not exist"),
        (["reproduce", "--profile", "huge"], 2, "unknown profile 'huge'"),
        (["frobnicate"], 2, "No such command 'frobnicate'"),
        (["train"], 2, "Missing option"),
    ],
)
def test_bad_usage_is_one_sentence_and_changes_nothing(capsys, tmp_path, monkeypatch, words, code, message):
    def no_network(*arguments, **options):
        raise OSError("network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    monkeypatch.chdir(tmp_path)
    words = [str(word).format(tmp=tmp_path) for word in words]
    if words[0] in ("train", "sweep"):
        words += ["--results", str(tmp_path / "results")]
    got, out, err = run(capsys, *words)
    assert got == code, err
    assert message in err
    assert "Traceback" not in err
    assert out == ""
    if err.startswith("rwc: "):
        assert len(err.strip().splitlines()) == 1
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("instructions", ["amx_bf16", "avx512_f"])
def test_a_plan_prints_what_is_left_warns_of_emulation_and_starts_nothing(capsys, tmp_path, monkeypatch, instructions):
    monkeypatch.setattr(pools, "local_pool", lambda: ThreadPoolExecutor(1))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {instructions: True})
    words = ["sweep", "layerwise", "--profile", "narrow", "--only", "alexnet", "--seed", 0, "--seed", 42, "--plan"]
    words += ["--device", "cpu", "--jobs", 2, "--results", tmp_path / "results"]
    runs = len(layerwise.runs("narrow", models=["alexnet"], seeds=[0, 42]))
    code, out, err = run(capsys, *words)
    assert code == 0
    first, last = out.splitlines()
    assert re.fullmatch(rf"alexnet, width 16, bf16: {runs} runs, about \d+ (min|hours) each", first)
    assert re.fullmatch(rf"runs left: {runs}, about \d+ (min|hours) with 2 at once", last)
    assert ("bf16 is emulated" in err) == (instructions == "avx512_f")
    found = json.loads(run(capsys, *words, "--json")[1])
    assert (found["runs"], found["jobs"], found["networks"][0]["runs"]) == (runs, 2, runs)
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback():
    done = rwc("--debug", *TRAIN, "--model", "resnet19")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "unknown model 'resnet19'" in done.stderr


def test_a_damaged_image_file_is_one_sentence(capsys, tmp_path):
    np.savez(tmp_path / "mnist.npz", x_train=np.zeros(3))
    before = contents(tmp_path)
    code, _, err = run(
        capsys,
        "train",
        "--model",
        "resnet18",
        "--dataset",
        "mnist",
        "--data-dir",
        tmp_path,
        "--results",
        tmp_path / "r",
    )
    assert (code, len(err.splitlines())) == (1, 1)
    assert "lacks the arrays" in err
    assert contents(tmp_path) == before


def test_results_are_listed_and_verified_also_after_they_were_copied(capsys, results, tmp_path):
    code, out, _ = run(capsys, "results", "ls", "--results", results, "--json")
    assert code == 0
    assert [row["status"] for row in json.loads(out)] == ["done"]
    assert run(capsys, "results", "ls", "--results", results)[1].endswith("runs: 1\n")
    assert run(capsys, "results", "verify", "--results", results)[:2] == (0, "runs ok: 1, damaged: 0\n")
    shutil.copytree(results, tmp_path / "other")  # moving results is copying folders
    assert run(capsys, "results", "verify", "--results", tmp_path / "other")[:2] == (0, "runs ok: 1, damaged: 0\n")
    file = next((tmp_path / "other").rglob("layers.parquet"))
    file.write_bytes(file.read_bytes()[:100])
    code, out, err = run(capsys, "results", "verify", "--results", tmp_path / "other")
    assert (code, out) == (1, "runs ok: 0, damaged: 1\n")
    assert "layers.parquet was truncated or edited" in err


def test_claims_come_as_table_json_and_markdown(capsys):
    code, out, _ = run(capsys, "claims", "--format", "json")
    rows = json.loads(out)
    assert code == 0
    assert {row["claim"] for row in rows} == {
        *(f"L{i}" for i in range(1, 18)), *(f"W{i}" for i in range(1, 9)), *(f"S{i}" for i in range(1, 7)),
        "D1", "D2a", "D2b", *(f"D{i}" for i in range(3, 7)), *(f"T{i}" for i in range(1, 7)),
        *(f"N{i}" for i in range(1, 5)), *(f"F{i}" for i in range(1, 4)),
    }  # fmt: skip
    assert {row["definition"] for row in rows} == {
        "Eq. 1", "elementwise", "at all", "by 0.1%", "by 1%", "mean of positive r", "mean r", "through layer 1", "on the image", "-",
    }  # fmt: skip
    keys = [(row["claim"], row["definition"], row["profile"]) for row in rows]
    assert len(set(keys)) == len(keys)
    assert {row["verdict"] for row in rows} <= {"holds", "fails", "unclear", "not run"}
    one = ("claims", "--study", "weightscale")
    assert run(capsys, *one)[1].splitlines()[0].startswith("W1  ResNet, CIFAR-10: ")
    assert run(capsys, *one, "--format", "md")[1].startswith("By definition or reading")


def test_claims_of_an_empty_archive_are_not_run(capsys, tmp_path):
    rows = json.loads(run(capsys, "claims", "--results", tmp_path, "--format", "json")[1])
    assert {row["verdict"] for row in rows} == {"not run"}


def test_data_status_says_what_is_here_and_what_is_not(capsys, tmp_path):
    rows = json.loads(run(capsys, "data", "status", "--json", "--data-dir", tmp_path)[1])
    assert {row["name"]: row["here"] for row in rows} == {
        "mnist": False, "fashion_mnist": False, "cifar10": False, "cifar100": False, "svhn": False,
        "fashion_mnist_sample": True,
    }  # fmt: skip
    assert "not here: expected" in run(capsys, "data", "status", "--data-dir", tmp_path)[1]


def test_the_module_is_the_command():
    assert (ROOT / "rwclib" / "__main__.py").exists()
    assert rwc("results", "verify").returncode == 0


def test_a_file_that_is_no_text_is_one_sentence(capsys, tmp_path):
    (tmp_path / "page.md").write_bytes(b"\xff\xfe")
    code, _, err = run(capsys, "claims", "--results", tmp_path, "--into", tmp_path / "page.md")
    assert code == 1
    assert err.startswith("rwc: UnicodeDecodeError: ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("text", ["(" * 300, "{[]: 1}", "-" * 100_000 + "1", "1 is 1", "'\\d'", "\0", "9" * 5000])
def test_a_parameter_that_is_no_literal_is_a_config_error(text):
    with pytest.raises(ConfigError, match="parameter seeds must be list"):
        notebooks.parse_value("seeds", text, [])


@pytest.mark.parametrize("book", [{}, [], {"cells": [None]}, {"cells": [{"cell_type": "code", "metadata": None}]}])
def test_a_file_that_is_no_notebook_is_a_notebook_error(tmp_path, book):
    settings = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}}
    (tmp_path / "01_book.ipynb").write_text(json.dumps(settings | book if isinstance(book, dict) else book))
    with pytest.raises(NotebookError, match="01_book.ipynb"):
        notebooks.parameters(tmp_path / "01_book.ipynb")


def test_a_set_with_odd_characters_is_listed(tmp_path):
    images, labels = np.zeros((2, 28, 28, 1), np.uint8), np.zeros(2, np.uint8)
    kinds = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    np.savez(tmp_path / "mnist.npz", **kinds, source="\ud800", note="é")
    done = rwc(
        "data", "status", "--data-dir", tmp_path, env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    )
    assert done.returncode == 0, done.stderr
    assert "2 + 2 images; \\xe9 (\\ud800)" in done.stdout

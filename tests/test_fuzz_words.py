"""Bad words by the thousand: notebook parameters, notebooks and the command line, each answered in one sentence."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import strategies as st

from rwclib import cli, notebooks
from rwclib.errors import ConfigError, NotebookError, RwcError

from .conftest import contents, rwc
from .fuzzing import ODD, answer, edited, explore, regrown

PIECES = [
    "1", "-1", "0.5", "1e999", "True", "false", "None", "'a'", '"b"', "[", "]", "(", ")", "{", "}", ",", ":", "=", "\n", " ", "#",
    "__import__('os')", "lambda: 1", "1 is 1", "'\\d'", "\\", "f'{1}'", "9" * 5000, "(" * 300, "\0", "b'a'", "1j", "...", "[]",
    "{[]: 1}", "-" * 3000 + "1", "*", "x", "x = 1\n", "x: int = 1\n", "x += 1\n", "x = y = 1\n", "(a, b) = 1, 2\n", "\ud800", "é",
]  # fmt: skip


def test_notebook_parameters_are_literals_of_their_type_or_a_config_error():
    from papermill.translators import PythonTranslator

    defaults = st.sampled_from(["text", 1, 0.5, True, [], {}, None, ("a",)])
    texts = (
        st.lists(st.sampled_from(PIECES), max_size=4).map("".join) | st.sampled_from(ODD).map(str) | st.text(max_size=6)
    )

    def check(case):
        text, default = case
        value = answer(lambda: notebooks.parse_value("seeds", text, default), ConfigError)
        if value is None:
            return
        assert type(value) is type(default) or (type(default), type(value)) == (float, int)
        cell = ast.parse(PythonTranslator.codify({"seeds": value})).body  # what papermill puts into the notebook
        assert len(cell) == 1
        assert {node.func.id for node in ast.walk(cell[0]) if isinstance(node, ast.Call)} <= {"float"}  # of infinity

    explore("parameters", st.tuples(texts, defaults), check)


@pytest.mark.filterwarnings("ignore")
def test_a_notebook_without_a_plain_parameters_cell_is_never_run(tmp_path, monkeypatch):
    def load(name):
        assert name != "papermill", "a notebook would be run"
        return installed(name)

    installed = notebooks.installed
    monkeypatch.setattr(notebooks, "installed", load)
    cell = {
        "cell_type": "code",
        "metadata": {"tags": ["parameters"]},
        "execution_count": None,
        "outputs": [],
        "id": "a",
    }
    path = tmp_path / "01_book.ipynb"

    def book(source):
        return {"cells": [cell | {"source": source}], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}

    def case(r):
        source = r.choice(["seeds = []", "".join(r.choices(PIECES, k=r.randrange(4)))])
        text = json.dumps(regrown(r, book(source))).encode()
        return edited(r, text) if r.random() < 0.3 else text

    def check(content):
        path.write_bytes(content)
        known = answer(lambda: notebooks.parameters(path), NotebookError)
        assert known is None or all(name.isidentifier() for name in known)
        with pytest.raises((ConfigError, NotebookError)):
            notebooks.execute(path, tmp_path / "out", {"no such name": 1})
        assert os.listdir(tmp_path) == ["01_book.ipynb"]

    path.write_text(json.dumps(book("seeds = []")))
    assert notebooks.parameters(path) == {"seeds": []}
    explore("notebooks", case, check)


# The command line

COMMANDS = [
    ["train"], ["sweep"], ["reproduce"], ["claims"], ["bench"], ["results"], ["results", "ls"], ["results", "verify"],
    ["results", "export"], ["results", "import"], ["data"], ["data", "status"], ["data", "fetch"], [],
    ["train", "--model", "resnet18", "--dataset", "mnist"], ["sweep", "layerwise"], ["reproduce", "--only", "01"],
]  # fmt: skip
OPTIONS = [
    "--model", "--dataset", "--width", "--epochs", "--seed", "--lr", "--n-train", "--optimizer", "--flip", "--profile", "--only", "--results",
    "--data-dir", "--device", "--engine", "--threads", "--time-budget", "--jobs", "--executor", "--scheduler", "--slurm", "--priority",
    "--json", "--format", "--into", "-p", "--parameter", "--retrain", "--study", "--debug=", "--help", "--", "-", "--quick", "--shuffle",
    "--checkpoint-seconds", "--output",
]  # fmt: skip
VALUES = [
    "resnet18", "mnist", "cifar10", "layerwise", "softness", "smoke", "paper", "best", "0", "-1", "1e999", "nan", "9" * 30, "cpu", "cuda:x",
    "a=b", "=", "seeds", "seeds=[", "json", "md", "file", "results", "missing", "file/below", "../results", "01", "x" * 300, "tracker",
    "tcp://x:99999999", "", " ", "\udcff", "é", "\n", "*", "$(touch x)", ";", "local", "dask", "slurm", "out.tar",
]  # fmt: skip


def test_the_command_line_answers_in_one_sentence(tmp_path, monkeypatch, capsys):
    """Whatever the words. What would train, download, run a notebook or start a process is stopped there."""

    def stop(*_, **__):
        raise RwcError("far enough")

    for target in (
        "training.run",
        "sweep.run_all",
        "data.fetch",
        "notebooks.execute",
        "executors._dask",
        "executors._submitit",
    ):
        monkeypatch.setattr(f"rwclib.{target}", stop)
    monkeypatch.setattr(subprocess, "run", stop)
    (tmp_path / "file").write_bytes(b"\xff\xfe no text")
    (tmp_path / "results" / "custom" / "run").mkdir(parents=True)
    (tmp_path / "results" / "custom" / "run" / "run.json").write_text("{}")
    (tmp_path / "here").mkdir()
    before = contents(tmp_path)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("rwclib.archive.default_results", lambda: tmp_path / "results")
    monkeypatch.setenv("RWC_DATA_DIR", str(tmp_path / "none"))
    reached = set()

    def check(case):
        start, words = case
        monkeypatch.setattr(sys, "argv", ["rwc", *start, *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        code = end.value.code or 0
        reached.add(code if "far enough" not in err else "the end")
        assert code in (0, 1, 2)
        assert "Traceback" not in out + err
        if code and not (start == ["results", "verify"] and "damaged" in out):
            is_help = err.startswith("Usage: ") and "Commands:" in err  # of a group without a command
            assert is_help or err.splitlines()[-1].startswith(("rwc: ", "Error: ")), err
        for file in set(contents(tmp_path)) - set(before):  # an export's
            assert "export" in start
            assert Path(file).name in words, f"{file} was written unasked"
            (tmp_path / file).unlink()
        assert contents(tmp_path) == before

    words = st.lists(st.sampled_from(OPTIONS) | st.sampled_from(VALUES), max_size=5)
    explore("command lines", st.tuples(st.sampled_from(COMMANDS), words), check)
    assert reached == {0, 1, 2, "the end"}


@pytest.mark.parametrize(
    "words", [["results", "import", b"\xff\n.tar"], ["train", "--model", b"\xff", "--dataset", "é"]]
)
def test_a_process_answers_in_one_sentence_where_text_is_ascii(words):
    done = rwc(*map(os.fsdecode, words), env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    assert done.stderr.startswith("rwc: ")
    assert len(done.stderr.splitlines()) == 1

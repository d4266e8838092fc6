"""Bad words by the thousand: notebook parameters, notebooks and the command line, each answered in one sentence."""

from __future__ import annotations

import ast
import os
import subprocess
import sys

import pytest
from hypothesis import strategies as st

from rwclib.app import cli, notebooks
from rwclib.errors import ConfigError, RwcError
from tests.app.fuzzing import ODD, answer, explore, often
from tests.conftest import contents, rwc

PIECES = [
    "1", "-1", "0.5", "1e999", "True", "false", "None", "'a'", '"b"', "[", "]", "(", ")", "{", "}", ",", ":", "=", "\n", " ", "#",
    "__import__('os')", "lambda: 1", "1 is 1", "'\\d'", "\\", "f'{1}'", "9" * 5000, "(" * 300, "\0", "b'a'", "1j", "...", "[]",
    "{[]: 1}", "-" * 3000 + "1", "*", "x", "x = 1\n", "x: int = 1\n", "x += 1\n", "x = y = 1\n", "(a, b) = 1, 2\n", "\ud800", "é",
]  # fmt: skip


@often(400, 1500)
def test_notebook_parameters_are_literals_of_their_type_or_a_config_error(count):
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

    explore(count, st.tuples(texts, defaults), check)


# The command line

COMMANDS = [
    ["train"], ["sweep"], ["reproduce"], ["claims"], ["bench"], ["results"], ["results", "ls"], ["results", "verify"],
    ["data"], ["data", "status"], ["data", "fetch"], [],
    ["train", "--model", "resnet18", "--dataset", "mnist"], ["sweep", "layerwise"], ["reproduce", "--only", "01"],
]  # fmt: skip
OPTIONS = [
    "--model", "--dataset", "--width", "--epochs", "--seed", "--lr", "--n-train", "--optimizer", "--flip", "--profile", "--only", "--results",
    "--data-dir", "--device", "--engine", "--threads", "--time-budget", "--jobs", "--executor", "--scheduler", "--slurm", "--priority", "--plan",
    "--json", "--format", "--into", "-p", "--parameter", "--retrain", "--study", "--debug=", "--help", "--", "-", "--quick", "--shuffle",
    "--checkpoint-seconds", "--output",
]  # fmt: skip
VALUES = [
    "resnet18", "mnist", "cifar10", "layerwise", "softness", "smoke", "paper", "best", "0", "-1", "1e999", "nan", "9" * 30, "cpu", "cuda:x",
    "a=b", "=", "seeds", "seeds=[", "json", "md", "file", "results", "missing", "file/below", "../results", "01", "x" * 300, "tracker",
    "tcp://x:99999999", "", " ", "\udcff", "é", "\n", "*", "$(touch x)", ";", "local", "dask", "slurm", "out.tar",
]  # fmt: skip


@often(200, 300)
def test_the_command_line_answers_in_one_sentence(count, tmp_path, monkeypatch, capsys):
    """Whatever the words. What would train, download, run a notebook or start a process is stopped there."""

    def stop(*_, **__):
        raise RwcError("far enough")

    for target in (
        "runs.training.run", "sweeps.sweep.run_all", "runs.data.fetch", "app.notebooks.execute",
        "sweeps.executors._dask", "sweeps.executors._submitit", "sweeps.pools.local_pool",
    ):  # fmt: skip
        monkeypatch.setattr(f"rwclib.{target}", stop)
    monkeypatch.setattr(subprocess, "run", stop)
    (tmp_path / "file").write_bytes(b"\xff\xfe no text")
    (tmp_path / "results" / "custom" / "run").mkdir(parents=True)
    (tmp_path / "results" / "custom" / "run" / "run.json").write_text("{}")
    (tmp_path / "here").mkdir()
    before = contents(tmp_path)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("rwclib.runs.archive.default_results", lambda: tmp_path / "results")
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
        assert contents(tmp_path) == before

    words = st.lists(st.sampled_from(OPTIONS) | st.sampled_from(VALUES), max_size=5)
    explore(count, st.tuples(st.sampled_from(COMMANDS), words), check)
    assert reached == {0, 1, 2, "the end"}


@pytest.mark.parametrize(
    "words", [["results", "verify", "--results", b"\xff\n"], ["train", "--model", b"\xff", "--dataset", "é"]]
)
def test_a_process_answers_in_one_sentence_where_text_is_ascii(words):
    done = rwc(*map(os.fsdecode, words), env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    assert done.stderr.startswith("rwc: ")
    assert len(done.stderr.splitlines()) == 1

"""The notebooks: executed and clean as committed, and alive under papermill with retraining at `smoke`."""

import json
import re
import subprocess
import sys

import nbformat
import pytest

from rwclib import data
from rwclib.app import notebooks
from rwclib.errors import ConfigError, NotebookError
from rwclib.studies import STUDIES

from ..conftest import ROOT, rwc

BOOKS = notebooks.find()


@pytest.fixture(params=BOOKS, ids=lambda path: path.stem)
def book(request):
    return nbformat.read(request.param, as_version=4)


def code(book):
    return [cell for cell in book.cells if cell.cell_type == "code"]


def printed(cell):
    return "".join(o.get("text", "") + str(o.get("data", {}).get("text/plain", "")) for o in cell.outputs)


PARAMETERS = nbformat.v4.new_code_cell("x = 1", metadata={"tags": ["parameters"]})


def written(folder, *cells):
    """A notebook of these cells."""
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells), metadata=metadata), folder / "00_x.ipynb")
    return folder / "00_x.ipynb"


def test_every_code_cell_is_executed_in_order(book):
    assert [cell.execution_count for cell in code(book)] == list(range(1, len(code(book)) + 1))


def test_the_first_cell_installs_on_colab_only_and_the_second_holds_literal_parameters(book):
    first, second = code(book)[:2]
    assert 'if "google.colab" in sys.modules' in first.source
    assert notebooks.REPOSITORY in first.source
    assert not first.outputs
    assert second.metadata.tags == ["parameters"]
    lines = [line.lstrip() for cell in code(book)[1:] for line in cell.source.splitlines()]
    assert not [line for line in lines if line.startswith(("!", "%"))]


def test_outputs_hold_no_bare_tables_paths_timings_warnings_or_errors(book):
    for cell in code(book):
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.get("text")
            assert "text/html" not in output.get("data", {})
        text = printed(cell)
        assert not re.search(r"/(home|root|tmp|work|Users)/", text)
        assert not re.search(r"\b(Warning|Traceback)\b", text)
        assert "images/s" not in text


def test_every_shown_figure_has_an_alternative_text(book):
    for cell in code(book):
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                assert len(output.metadata["image/png"]["alt"]) > 20


def test_the_notebook_has_a_title_a_badge_and_links_that_exist(book):
    text = book.cells[0].source
    assert text.startswith("# ")
    assert "colab-badge.svg" in text
    for cell in book.cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\((?!http)([^)#]+)\)", cell.source):
                assert (ROOT / "notebooks" / target).exists(), target


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_it_fits_in_a_repository(path):
    assert path.stat().st_size < 3_000_000


def test_a_misspelt_parameter_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(ConfigError, match="01_resnet18_blocks.ipynb has no parameter 'profil'; known: profile, device"):
        notebooks.execute(BOOKS[1], tmp_path / "out", {"profil": "smoke"})
    assert not (tmp_path / "out").exists()


def test_a_notebook_without_a_parameters_cell_is_refused(tmp_path):
    with pytest.raises(NotebookError, match="00_x.ipynb has no cell tagged `parameters`"):
        notebooks.execute(written(tmp_path, nbformat.v4.new_code_cell("x = 1")), tmp_path / "out")


def test_a_failing_cell_is_one_sentence_that_names_it(tmp_path):
    with pytest.raises(NotebookError, match="00_x.ipynb: cell 2 failed: ZeroDivisionError"):
        notebooks.execute(written(tmp_path, PARAMETERS, nbformat.v4.new_code_cell("1 / 0")), tmp_path / "out")


def test_a_kernel_that_dies_is_one_sentence_that_names_notebook_and_cell(tmp_path):
    dying = nbformat.v4.new_code_cell("import os; os._exit(1)")
    with pytest.raises(NotebookError, match="00_x.ipynb: the kernel died in cell 2"):
        notebooks.execute(written(tmp_path, PARAMETERS, dying), tmp_path / "out")


def test_a_kernel_that_cannot_start_is_one_sentence_that_says_why(tmp_path, monkeypatch):
    book, spec = written(tmp_path, PARAMETERS), tmp_path / "kernels" / "python3"
    spec.mkdir(parents=True)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    argv = ["/gone/bin/python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}))
    with pytest.raises(NotebookError, match="the Jupyter kernel python3 starts /gone/bin/python, which is not there"):
        notebooks.execute(book, tmp_path / "out")
    monkeypatch.setattr(notebooks, "KERNEL", "none")
    with pytest.raises(NotebookError, match="notebooks need a Jupyter kernel named none; install one with"):
        notebooks.execute(book, tmp_path / "out")


def test_plain_papermill_is_refused_a_misspelt_parameter_and_a_missing_archive(tmp_path):
    for name, value, sentence in [
        ("profil", "smoke", "ConfigError: this notebook has no parameter 'profil'; known: profile, device, results"),
        ("results", str(tmp_path / "none"), f"ConfigError: results folder {tmp_path / 'none'} does not exist"),
    ]:
        words = ["papermill", BOOKS[2], tmp_path / "out.ipynb", "-p", name, value, "-k", "python3"]
        done = subprocess.run([sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode != 0
        assert sentence in done.stderr


@pytest.mark.long
def test_plain_papermill_gives_the_same_notebook_from_every_folder(tmp_path):
    texts = []
    for place in (ROOT, ROOT / "notebooks", tmp_path):
        words = ["papermill", BOOKS[2], tmp_path / "out.ipynb", "-p", "figures", tmp_path / "figures"]
        subprocess.run([sys.executable, "-m", *words], cwd=place, check=True, capture_output=True)
        texts.append([printed(cell) for cell in code(nbformat.read(tmp_path / "out.ipynb", as_version=4))])
    assert texts[0] == texts[1] == texts[2]
    assert len(list((tmp_path / "figures").glob("02_vgg19_*.png"))) == 5


@pytest.mark.long
def test_reproduce_retrains_study_1_at_smoke(tmp_path):
    """With the real data sets where they are; without any, notebook 01 trains on the bundled sample and says so."""
    sets, books = ("cifar10", "cifar100", "mnist", "fashion_mnist"), ("01", "02", "03", "04", "13")
    retrain(tmp_path, books, "-p", "datasets", str(list(sets)))
    book = nbformat.read(tmp_path / "01_resnet18_blocks.ipynb", as_version=4)
    text = "".join(printed(cell) for cell in code(book))
    runs = list((tmp_path / "results-smoke" / "layerwise").iterdir())
    here = [name for name in sets if data.path(name).exists()]
    assert len(runs) == 3 * max(1, len(here))  # networks
    for book, figures in (("01_resnet18_blocks", 3), ("02_vgg19", 1), ("03_alexnet", 1)):
        assert len(list((tmp_path / "figures").glob(f"{book}_fig*.png"))) == figures * max(1, len(here))
    if not here:
        assert "training on the bundled Fashion-MNIST sample" in text
    assert json.loads((runs[0] / "run.json").read_text())["config"]["epochs"] == 2


@pytest.mark.long
def test_reproduce_retrains_study_2_at_smoke(tmp_path):
    retrain(tmp_path, ("05", "06", "07"), "-p", "datasets", "['cifar10']")
    pair = 2  # notebook 07 trains it; its 32-pixel run has fewer epochs than that of the grid
    assert len(list((tmp_path / "results-smoke" / "weightscale").iterdir())) == 3 + pair


@pytest.mark.long
def test_reproduce_retrains_study_3_at_smoke(tmp_path):
    """One data set, and so nothing pretrained: 12 trainings, as many retrainings of each kind, and the controls of three."""
    retrain(tmp_path, ("08", "09", "10"), "-p", "datasets", "['mnist']")
    here = data.path("mnist").exists()
    assert len(list((tmp_path / "results-smoke" / "dynamics").iterdir())) == 12 * 3 + 5 * 3 * here


@pytest.mark.long
def test_reproduce_retrains_study_4_at_smoke(tmp_path):
    """On CIFAR-10 where it is, else on the bundled sample, whose images are grey."""
    retrain(tmp_path, ("11",))
    assert len(list((tmp_path / "results-smoke" / "softness").iterdir())) == 6
    assert {path.stem[:17] for path in (tmp_path / "figures").glob("*_fig*.png")} == {
        f"11_softness_fig{number:02d}" for number in range(1, 9)
    }


@pytest.mark.long
def test_reproduce_runs_the_notebooks_that_train_no_studys_runs(tmp_path):
    retrain(tmp_path, ("00", "12"))


@pytest.mark.parametrize("number", ["01", "02", "03", "05", "06", "08", "09", "10", "11", "13"])
def test_a_notebook_says_what_is_not_run_where_the_archive_is_empty(number, tmp_path, capsys):
    """Its cells one after another in this process, which is much faster than a kernel of its own."""
    _, parameters, *rest = code(nbformat.read(notebooks.find([number])[0], as_version=4))
    names = {}
    exec(parameters.source, names)
    names |= {"profile": "paper", "results": str(tmp_path), "figures": str(tmp_path / "figures")}
    for cell in rest:
        exec(compile(cell.source, number, "exec"), names)
    assert "not run" in capsys.readouterr().out


def retrain(folder, numbers, *words):
    """`rwc reproduce --retrain` at smoke: these notebooks executed, a page of each, the claims of their studies."""
    only = [word for number in numbers for word in ("--only", number)]
    words += ("--jobs", 1)  # every process takes seconds to start, and another test runs beside this one
    done = rwc("reproduce", "--profile", "smoke", "--retrain", "--output", folder, "--device", "cpu", *only, *words)
    assert done.returncode == 0, done.stderr
    names = {path.stem for path in BOOKS if path.name.startswith(numbers)}
    assert {path.stem for path in folder.glob("*.html")} == names
    assert {path.stem for path in folder.glob("*.ipynb")} == names
    for path in folder.glob("*.html"):
        page = path.read_text()
        assert "No description has been provided" not in page
        assert "Content-Security-Policy" in page
        assert "<script" not in page
        assert "$" not in re.sub(r"(?s)<(pre|script|style|code)\b.*?</\1>", "", page), (
            "a formula that a script would draw"
        )
    judged = {STUDIES[number - 1] for number in map(notebooks.study_number, notebooks.find(list(numbers))) if number}
    assert {path.stem for path in folder.glob("claims_*.md")} == {f"claims_{study}" for study in judged}
    for path in folder.glob("claims_*.md"):
        assert "claim" in path.read_text()

"""Checked papermill execution of the numbered notebooks, and an HTML page of each."""

from __future__ import annotations

import ast
import html
import importlib
import re
import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from rwclib import _places
from rwclib.errors import ConfigError, NotebookError, one_line

KERNEL = "python3"
REPOSITORY = "https://github.com/rwclib/rwclib"  # the one place that knows the address


def folder() -> Path:
    """The repository's `notebooks` folder; `NotebookError` where the package is installed without it."""
    repository = _places.repository()
    if not repository:
        raise NotebookError(f"the notebooks are not installed with the package; clone {REPOSITORY} and run there")
    return repository / "notebooks"


def find(only: list[str] | None = None) -> list[Path]:
    """The numbered notebooks in order, or those whose names begin with one of `only`; `ConfigError` if one fits none."""
    known = sorted(folder().glob("[0-9][0-9]_*.ipynb"))
    for prefix in only or []:
        if not any(path.name.startswith(prefix) for path in known):
            raise ConfigError(f"no notebook begins with {prefix!r}; known: {', '.join(path.stem for path in known)}")
    return [path for path in known if not only or any(path.name.startswith(prefix) for prefix in only)]


def study_number(path: Path) -> int:
    """The number in the notebook's title, `Study 1: ...`; 0 without one."""
    title = re.search(r'"# Study (\d+)', path.read_text(encoding="utf-8"))
    return int(title[1]) if title else 0


def parameters(path: Path) -> dict[str, object]:
    """Names and default values of the notebook's cell tagged `parameters`; `NotebookError` without one, of literals."""
    papermill = installed("papermill")
    try:
        known = papermill.inspect_notebook(str(path))
        defaults = {name: ast.literal_eval(parameter["default"]) for name, parameter in known.items()}
    except Exception as error:  # nbformat checks little of what it reads
        raise NotebookError(
            f"{path.name} is not a notebook with a cell tagged `parameters`, of literals alone ({one_line(error)})"
        ) from error
    if not defaults:
        raise NotebookError(f"{path.name} has no cell tagged `parameters`; tag the cell of settings")
    return defaults


def check_parameters() -> None:
    """Called in the first cell after the parameters: `ConfigError` if papermill was given one that the notebook lacks."""
    from IPython import get_ipython

    shell = get_ipython()
    history = shell.user_ns["In"] if shell else []
    if len(history) > 2 and history[-2].startswith(
        "# Parameters\n"
    ):  # papermill's own cell, after that of the defaults
        check_names(_assigned(history[-2]), _assigned(history[-3]), "this notebook")


def check_names(given: Iterable[str], known: Iterable[str], notebook: str) -> None:
    """`ConfigError` that names the parameters `given` that are not `known`."""
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ConfigError(f"{notebook} has no parameter {', '.join(map(repr, unknown))}; known: {', '.join(known)}")


def _assigned(code: str) -> list[str]:
    return [statement.targets[0].id for statement in ast.parse(code).body if isinstance(statement, ast.Assign)]


def installed(name: str) -> ModuleType:
    """A module that the package needs for notebooks alone; `NotebookError` without it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise NotebookError(f"notebooks need {name}; install it with `pip install {name.partition('.')[0]}`") from error


def parse_value(name: str, text: str, default: object) -> object:
    """The literal `text` as a value of the default's type; text itself where the default is text."""
    if isinstance(default, str):
        return text
    try:
        with warnings.catch_warnings(action="ignore"):  # of text that is no code
            value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        value = text
    if type(value) is not type(default) and not (type(default) is float and type(value) is int):
        raise ConfigError(f"parameter {name} must be {type(default).__name__} like {default!r}, not {text!r}")
    return value


def execute(path: Path, output: Path, values: dict[str, object] | None = None) -> Path:
    """Run a notebook in its own folder with some parameters changed; write it and its HTML page into `output`.

    Args:
        path: the notebook.
        output: folder of `<name>.ipynb` and `<name>.html`, made if absent.
        values: new values of parameters.

    Returns:
        The HTML page.

    Raises:
        ConfigError: a parameter that the notebook does not have; nothing is run then.
        NotebookError: the notebook has no parameters cell, a cell failed, the kernel died, or something is not installed.
    """
    values = values or {}
    check_names(sorted(values), parameters(path), path.name)
    nbformat, papermill, nbclient = map(installed, ("nbformat", "papermill", "nbclient"))
    _check_kernel()
    output = Path(output).absolute()
    result, page = output / path.name, output / f"{path.stem}.html"
    try:
        output.mkdir(parents=True, exist_ok=True)
        papermill.execute_notebook(
            path,
            result,
            parameters=values,
            cwd=path.parent,
            kernel_name=KERNEL,
            progress_bar=False,
            log_output=False,
            # The kernel's own chatter (of its local connection, of being stopped); a cell's error comes as an exception.
            extra_arguments=["--log-level=CRITICAL"],
        )
        page.write_text(html_page(nbformat.read(result, as_version=4)), encoding="utf-8")
    except papermill.PapermillExecutionError as error:
        raise NotebookError(
            f"{path.name}: cell {error.exec_count} failed: {error.ename}: {error.evalue}; see {result}"
        ) from error
    except nbclient.exceptions.DeadKernelError as error:
        cells = [cell for cell in nbformat.read(result, as_version=4).cells if cell.cell_type == "code"]
        number = sum(cell.metadata.papermill.start_time is not None for cell in cells)
        raise NotebookError(f"{path.name}: the kernel died in cell {number}, perhaps for lack of memory") from error
    except OSError as error:
        raise NotebookError(
            f"cannot write to {output}: {error.strerror}; choose another folder with --output"
        ) from error
    return page


def _check_kernel() -> None:
    """`NotebookError` unless the kernel that executes notebooks can be started."""
    specs = installed("jupyter_client.kernelspec")
    remedy = "install one with `pip install ipykernel` and `python -m ipykernel install --sys-prefix`"
    try:
        interpreter = specs.get_kernel_spec(KERNEL).argv[0]
    except specs.NoSuchKernel as error:
        raise NotebookError(f"notebooks need a Jupyter kernel named {KERNEL}; {remedy}") from error
    if not shutil.which(interpreter):
        raise NotebookError(f"the Jupyter kernel {KERNEL} starts {interpreter}, which is not there; {remedy}")


def mathml(tex: str) -> str:
    """A TeX formula as MathML, which browsers draw by themselves; as code what is not plain (the converter lets markup through)."""
    plain = re.fullmatch(r"[\w\s\\^{}|/+=.,()%-]*", tex) and not re.search(r"\\(href|style|class|unicode)", tex)
    convert = installed("latex2mathml.converter").convert
    try:
        return convert(tex) if plain else f"<code>{html.escape(tex)}</code>"
    except Exception:  # it raises anything at what it does not know
        return f"<code>{html.escape(tex)}</code>"


_POLICY = """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">"""
_TABLES = "<style>.jp-OutputArea-output pre {white-space: pre !important; overflow-x: auto !important}</style>"


def html_page(notebook: Any, title: str = "", **options: object) -> str:
    """The notebook as HTML, with its figures' alternative texts, which nbconvert leaves out, tables that do not wrap, and formulas
    without nbconvert's scripts, which come from elsewhere; a policy forbids every other.

    `options` are nbconvert's, as `exclude_input=True`.
    """
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"(`[^`]*`)|\$([^$\n]+)\$", lambda m: m[1] or mathml(m[2]), cell.source)
            cell.source = re.sub(r"!\[([^\]]*)\]\(https:[^)]*\)", r"\1", cell.source)  # a badge: its words
    exporter = installed("nbconvert").HTMLExporter(**options)
    body, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": title}} if title else None)
    outputs = [
        output for cell in notebook.cells for output in cell.get("outputs", ()) if "image/png" in output.get("data", {})
    ]
    texts = iter(html.escape(output.metadata.get("image/png", {}).get("alt", "")) for output in outputs)
    body = re.sub(r"(?s)<script\b.*?</script>", "", body)
    body = re.sub('alt="No description has been provided for this image"', lambda _: f'alt="{next(texts, "")}"', body)
    return body.replace("<head>", f"<head>{_POLICY}", 1).replace("</head>", f"{_TABLES}</head>", 1)


def read(path: Path) -> Any:
    """The notebook in a file; `NotebookError` if it is none."""
    try:
        return installed("nbformat").read(path, as_version=4)
    except Exception as error:  # nbformat raises anything at a damaged file
        raise NotebookError(f"{path.name} is not a readable notebook ({one_line(error)})") from error

"""`rwc report`: one self-contained HTML page of verdicts, accuracies, figures and provenance.

nbconvert makes it from one long notebook: `templates/report.md`, the scorecards, and out of each executed notebook its figures, with
the prose before them and the numbers printed with them.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

import pandas as pd

import rwclib
from rwclib import studies
from rwclib.analysis import scorecard as scorecards
from rwclib.app import notebooks
from rwclib.errors import ConfigError, NotebookError
from rwclib.runs import data
from rwclib.runs.config import PROFILES
from rwclib.studies.study import load

MACHINE = ["rwclib", "torch", "numpy", "python", "platform", "device", "engine", "threads"]
SIZE = ["model", "dataset", "profile", "width", "images", "epochs", "iterations", "image_size"]


def page(results: Path, profile: str = "best", figures: Path | None = None) -> str:
    """The whole page.

    Args:
        results: archive folder.
        profile: a name in `rwclib.runs.config.PROFILES`, or `best`.
        figures: folder of executed notebooks; default: the repository's.

    Raises:
        ConfigError: unknown profile, or no notebooks there.
        NotebookError: a notebook that cannot be read.
        ArchiveError: a run directory is damaged.
    """
    v4 = notebooks.installed("nbformat").v4
    books = _books(figures)
    sizes = ", ".join(f"`{name}` ({what})" for name, what in PROFILES.items())
    chapters, parts, runs = [], [], []
    for number, name in enumerate(studies.STUDIES, 1):
        study = studies.get(name)
        runs.append(load(study.runs, results, profile).runs)
        title = f"Study {number}: {study.title}"
        text = [f"## {title}", f"[The paper]({study.link})" if study.link else "", "### Verdicts"]
        text += [scorecards.to_markdown(study.scorecard(results, profile)).replace("<details>", "<details open>")]
        if study.accuracies:
            accuracies = study.accuracies(study.tables(results, profile).epochs)
            text += [
                "### Accuracies",
                "Percent, beside the published ones, which only the profile `paper` is meant to reach.",
                _table(accuracies),
            ]
        text += ["### Runs", _table(_by(runs[-1], SIZE)) if len(runs[-1]) else "No runs yet."]
        parts.append(v4.new_markdown_cell("\n\n".join(text)))
        chapters.append(title)
        for path, book in books.items():
            if notebooks.study_number(path) == number:
                parts += _figures(path.name, book, profile)
    tracker = [
        cell
        for path, book in books.items()
        if not notebooks.study_number(path)
        for cell in _figures(path.name, book, profile)
    ]
    contents = "\n".join(f"- [{title}](#{title.replace(' ', '-')})" for title in [*chapters, "Provenance"])
    everything = pd.concat([table for table in runs if len(table)] or runs[:1])
    before = [
        (Path(__file__).parent / "templates" / "report.md").read_text(),
        f"Profiles: {sizes}. This page: `{profile}`.",
        "## Contents",
        contents,
    ]
    cells = [v4.new_markdown_cell("\n\n".join(before)), *parts, *tracker, v4.new_markdown_cell(_provenance(everything))]
    for number, cell in enumerate(cells):
        cell["id"] = str(number)  # else random
    return notebooks.html_page(
        v4.new_notebook(cells=cells), title="How neural-network weights move: four papers re-run", exclude_input=True
    )


def _books(folder: Path | None) -> dict[Path, Any]:
    """The numbered notebooks of a folder, by default the repository's; `ConfigError` where there are none."""
    try:
        folder = Path(folder) if folder else notebooks.folder()
    except NotebookError as error:
        raise ConfigError(f"{error}, or name a folder of executed notebooks with --figures") from error
    paths = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise ConfigError(f"no notebooks in {folder}; name a folder that `rwc reproduce` has written with --figures")
    return {path: notebooks.read(path) for path in paths}


def _figures(name: str, book: Any, profile: str) -> list[Any]:
    """The cells of a notebook that show figures, and the prose that leads to each; headings are two levels down."""
    v4 = notebooks.installed("nbformat").v4
    drawn = re.findall(
        r'^profile = "(\w+)"', "\n".join(cell.source for cell in book.cells if cell.cell_type == "code"), re.M
    )
    note = _moved(f"Notebook [{name}]({name})") + (
        f", drawn at profile `{drawn[-1]}`" if drawn else ""
    )  # papermill's comes last
    if drawn and drawn[-1] != profile:
        note += f". **The verdicts above are at profile `{profile}`.**"
    title, *rest = book.cells
    cells, prose = [v4.new_markdown_cell(f"{_moved(title.source)}\n\n{note}")], []
    for cell in rest:
        if cell.cell_type == "markdown":
            prose.append(v4.new_markdown_cell(_moved(cell.source)))
        elif any("image/png" in output.get("data", {}) for output in cell.outputs):
            cells += [*prose, cell]
            prose = []
    if len(cells) == 1:
        cells.append(
            v4.new_markdown_cell("No figures: the notebook has not been executed yet, or found no runs to draw.")
        )
    return cells


def _moved(markdown: str) -> str:
    """Prose of a notebook for this page: headings two levels down, links to files on the web."""
    web = f"{notebooks.REPOSITORY}/blob/main/"
    text = re.sub(
        r"\]\((?!https:|#)([^)]+)\)", lambda m: f"]({web}{posixpath.normpath('notebooks/' + m[1])})", markdown
    )
    return re.sub(r"^#", "###", text, flags=re.M)


def _provenance(runs: pd.DataFrame) -> str:
    if runs.empty:
        return "## Provenance\n\nNo runs yet."
    runs = runs.drop_duplicates("hash")
    hours = runs["train_and_test_seconds"].sum() / 3600
    return "\n\n".join([
        "## Provenance",
        f"{len(runs)} runs, {hours:.1f} hours of training and testing in all (each run's own clock; several ran side by side). Each run's settings, versions "
        f"and data digests are in its `run.json`, whose checksums were verified for this page, made by rwclib {rwclib.__version__}.",
        "### Software and machines", _table(_by(runs, MACHINE)),
        "### Data sets, and how each copy differs from the official files", _table(_by(runs, ["dataset", "data_note", "data_source"])),
    ])  # fmt: skip


def _by(runs: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Runs, training time and data behind every combination of some columns."""

    def words(values: pd.Series) -> str:
        return ", ".join(sorted(set(map(str, values))))

    runs = runs.assign(
        minutes=runs["train_and_test_seconds"] / 60, first=runs["started"].str[:10], last=runs["finished"].str[:10]
    )
    known = runs[columns].astype(object).fillna("not recorded")
    groups = runs.assign(**known).groupby(columns, sort=False)
    each = {
        "runs": ("hash", "size"),
        "seeds": ("seed", words),
        "minutes": ("minutes", "sum"),
        "devices": ("device", words),
    }
    each |= {"data_digest": ("data_digest", words), "first": ("first", "min"), "last": ("last", "max")}
    return groups.agg(**each).reset_index()


def _table(table: pd.DataFrame) -> str:
    if "dataset" in table:
        table = table.assign(dataset=[data.get(name).title for name in table["dataset"]])
    renamed = table.rename(
        columns=lambda name: name.replace("_top", " top-").replace("_", " ").replace("dataset", "data set")
    )
    html = renamed.to_html(index=False, border=0, float_format="{:.1f}".format, na_rep="-")
    return f'<div style="overflow-x: auto">\n{html}\n</div>'

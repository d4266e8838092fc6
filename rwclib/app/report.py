"""`rwc report`: one self-contained HTML page of scorecard, accuracies, figures and provenance.

Figures come out of executed notebooks: there each lies beside its alternative text, the prose that leads to it and the
numbers behind it, which the files in `figures/` lack. `templates/report.html` is the page.
"""

from __future__ import annotations

import base64
import binascii
import html
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import pandas as pd

import rwclib
from rwclib import studies
from rwclib.analysis import scorecard as scorecards
from rwclib.app import notebooks
from rwclib.errors import ConfigError, NotebookError
from rwclib.runs import data
from rwclib.runs.config import PROFILES, RunConfig
from rwclib.studies.study import load

VERDICTS = {"holds": "✓", "unclear": "?", "fails": "✗", "not run": "–"}


@dataclass
class Figure:
    """A figure as a notebook holds it: a PNG in base64, its size in pixels, and the text printed after it."""

    png: str
    width: int
    height: int
    alt: str
    numbers: str = ""


@dataclass
class Section:
    """What a notebook shows below one piece of prose."""

    heading: str
    prose: str
    figures: list[Figure] = field(default_factory=list)


@dataclass
class Book:
    """A notebook: title, number of its study (0 for none), profile it drew, its findings in short, sections with figures."""

    name: str
    title: str
    study: int
    profile: str
    short: str
    sections: list[Section]


def prose(markdown: str) -> str:
    """Markdown as HTML without any markup of its own: formulas within lines in MathML, links to other notebooks on the web."""
    text = notebooks.installed("mistune").create_markdown(escape=True, plugins=["math"])(markdown)
    text = re.sub(
        r'<span class="math">\\\((.*?)\\\)</span>', lambda m: notebooks.mathml(html.unescape(m[1])), text, flags=re.S
    )
    return re.sub(r'href="(?!https://|#)', f'href="{notebooks.REPOSITORY}/blob/main/notebooks/', text)


def _inline(markdown: str) -> str:
    return prose(markdown).strip().removeprefix("<p>").removesuffix("</p>")


def books(folder: Path | None = None) -> list[Book]:
    """The numbered notebooks of a folder, by default the repository's; `ConfigError` where there are none."""
    try:
        folder = Path(folder) if folder else notebooks.folder()
    except NotebookError as error:
        raise ConfigError(f"{error}, or name a folder of executed notebooks with --figures") from error
    paths = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise ConfigError(f"no notebooks in {folder}; name a folder that `rwc reproduce` has written with --figures")
    return [_book(path) for path in paths]


def _book(path: Path) -> Book:
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        book = Book(path.stem, path.stem, 0, "", "", [Section("", "")])
        for cell in cells:
            source = "".join(cell["source"])
            if cell["cell_type"] == "markdown":
                _read_prose(book, source)
            elif cell["cell_type"] == "code":
                if found := re.search(r'^profile = "(\w+)"', source, re.M):
                    book.profile = found[1]  # papermill puts its own below the default
                _read_outputs(book.sections[-1], cell["outputs"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotebookError(f"{path.name} is not a readable notebook ({error})") from error
    book.sections = [section for section in book.sections if section.figures]
    return book


def _read_prose(book: Book, source: str) -> None:
    if source.startswith("# "):
        book.title, _, _ = source[2:].partition("\n")
        found = re.match(r"Study (\d+)", book.title)
        book.study = int(found[1]) if found else 0
        found = re.search(r"^\*\*In short\*\*.*?(?=\n\n|\Z)", source, re.M | re.S)
        book.short = prose(found[0]) if found else ""
        return
    heading = book.sections[-1].heading
    parts = re.split(r"^##+ (.+)$", source, flags=re.M)  # text, heading, text, heading, text, ...
    if len(parts) > 1:
        heading = parts[-2].strip()
    book.sections.append(Section(heading, prose(parts[-1])))


def _read_outputs(section: Section, outputs: list[dict]) -> None:
    inside = []
    for output in outputs:
        if png := "".join(output.get("data", {}).get("image/png", [])):
            content = base64.b64decode("".join(png.split()), validate=True)
            if content[:8] != b"\x89PNG\r\n\x1a\n" or len(content) < 24:
                raise binascii.Error("an image that is no PNG")
            width, height = (int.from_bytes(content[at : at + 4]) for at in (16, 20))
            alt = output.get("metadata", {}).get("image/png", {}).get("alt", "")
            inside.append(Figure(base64.b64encode(content).decode(), width, height, alt or "Figure"))
        elif output.get("name") == "stdout" and inside:
            inside[-1].numbers += "".join(output["text"])
    section.figures += inside


def _accuracies(study: str, epochs: pd.DataFrame) -> pd.DataFrame | None:
    """The study's own table of accuracies beside the published, where it has one, as text."""
    accuracies = studies.get(study).accuracies
    if not accuracies:
        return None
    table = accuracies(epochs)
    table["dataset"] = [data.get(name).title for name in table["dataset"]]
    for name in table.columns[5:]:
        if pd.api.types.is_numeric_dtype(table[name]):
            table[name] = ["-" if pd.isna(v) else f"{v:+.1f}" if name == "miss" else f"{v:.1f}" for v in table[name]]
    names = {"dataset": "data set", "published": "published test top-1", "miss": "difference"}
    return table.rename(columns=names).rename(columns=lambda name: name.replace("_top", " top-"))


def _some(values: pd.Series) -> str:
    """The different values, in order; of more than three whole numbers in a row the first and the last."""
    if pd.api.types.is_integer_dtype(values):
        found = sorted(set(values))
        if len(found) > 3 and found[-1] - found[0] == len(found) - 1:
            return f"{found[0]} to {found[-1]}"
        return ", ".join(map(str, found))
    return ", ".join(sorted({"not recorded" if pd.isna(value) else str(value) for value in values}))


def _days(group: pd.DataFrame) -> str:
    first, last = group["started"].min()[:10], group["finished"].max()[:10]
    return first if first == last else f"{first} to {last}"


def _behind(planned: Callable[..., list[RunConfig]], judged: pd.DataFrame, results: Path, profile: str) -> pd.DataFrame:
    """All of a study's runs: those that its claims are judged on, and those that only a figure shows."""
    known = set(judged.get("hash", ()))
    rest = load(lambda name, **_: [run for run in planned(name) if run.hash not in known], results, profile).runs
    runs = pd.concat([table for table in (judged, rest) if len(table)] or [judged], ignore_index=True)
    if runs.empty:
        return runs
    return runs.assign(dataset=[data.get(name).title for name in runs["dataset"]]).drop_duplicates("hash")


def _runs(runs: pd.DataFrame) -> pd.DataFrame:
    """The study's runs by network, data set, profile and size."""
    rows = []
    keys = ["model", "dataset", "profile", "width", "images", "epochs", "iterations", "image_size"]
    for key, of in runs.groupby(keys, sort=False):
        model, dataset, profile, width, images, epochs, iterations, pixels = key
        length = f"{iterations:,} batches" if iterations else f"{epochs} epochs"
        size = f"width {width}, {images:,} images{f' of {pixels} px' if pixels != 32 else ''}, {length}"
        rows.append({
            "model": model, "data set": dataset, "profile": profile, "size": size, "runs": str(len(of)),
            "seeds": _some(of["seed"]), "minutes": f"{of['train_and_test_seconds'].sum() / 60:.1f}",
            "device": _some(of["device"]), "precision": _some(of["precision"]),
            "data digest": _some(of["data_digest"]), "trained": _days(of),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _grouped(runs: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Runs and days of every combination of some columns."""
    filled = runs.assign(
        **{name: runs[name].astype(object).where(runs[name].notna(), "not recorded") for name in columns}
    )
    rows = [
        dict(zip(columns, map(str, key), strict=True)) | {"runs": str(len(of)), "trained": _days(of)}
        for key, of in filled.groupby(columns)
    ]
    return pd.DataFrame(rows).rename(columns=lambda name: name.replace("data_", "").replace("dataset", "data set"))


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
    shelf, parts, everything = books(figures), [], []
    for number, name in enumerate(studies.STUDIES, 1):
        study = studies.get(name)
        tables = study.tables(results, profile)
        runs = _behind(study.runs, tables.runs, results, profile)
        everything.append(runs)
        table = study.scorecard(results, profile)
        largest = table.drop_duplicates(["claim", "definition"])
        counts = pd.crosstab(largest["definition"], largest["verdict"]).reindex(columns=list(VERDICTS), fill_value=0)
        parts.append({
            "id": name, "number": number, "title": study.title, "address": study.link, "table": table,
            "counts": counts.loc[list(dict.fromkeys(table["definition"]))], "accuracies": _accuracies(name, tables.epochs),
            "runs": _runs(runs) if len(runs) else None, "books": [book for book in shelf if book.study == number],
        })  # fmt: skip
    runs = pd.concat([table for table in everything if len(table)] or everything[:1], ignore_index=True)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["inline"] = _inline
    template = environment.from_string(
        (Path(__file__).parent / "templates" / "report.html").read_text(encoding="utf-8")
    )
    versions = ["rwclib", "torch", "numpy", "python", "platform", "device", "engine", "threads"]
    return template.render(
        studies=parts, verdicts=VERDICTS, profile=profile, profiles=PROFILES, runs=runs, cards=scorecards, version=rwclib.__version__,
        repository=notebooks.REPOSITORY, others=[book for book in shelf if not 0 < book.study <= len(parts)],
        hours=runs["train_and_test_seconds"].sum() / 3600 if len(runs) else 0,
        software=_grouped(runs, versions) if len(runs) else None,
        copies=_grouped(runs, ["dataset", "data_note", "data_source"]) if len(runs) else None,
    )  # fmt: skip

"""`rwc report`: everything is on the page, nothing comes from elsewhere, and a browser shows it at any width."""

import base64
import html
import json
import re
import shutil
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import nbformat
import pandas as pd
import pytest

from rwclib import archive, studies
from rwclib.app import notebooks, report
from rwclib.errors import ConfigError, NotebookError
from rwclib.runs.config import PROFILES
from rwclib.studies import STUDIES
from tests.conftest import ROOT, rwc

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The repository's own report."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    done = rwc("report", path)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r".*report\.html: \d+\.\d MB\n", done.stdout)
    return path


def words(page):
    """A page's text in one line."""
    text = re.sub(r"(?s)<(style|script)\b.*?</\1>|<[^>]+>", " ", page)
    return " ".join(html.unescape(text).split())


@pytest.fixture
def shelf(tmp_path):
    """A folder with one notebook of study 1 that holds one figure."""

    def make(prose="## Part\n\nWords.", text="1.0\n", profile="best", outputs=True):
        png = base64.b64encode((ROOT / "figures" / "04_two_definitions_simulated.png").read_bytes()).decode()
        alt = {"image/png": {"alt": "a figure of ours"}}
        figure = nbformat.v4.new_output("display_data", {"image/png": png}, metadata=alt)
        printed = nbformat.v4.new_output("stream", text=text)
        cells = [
            nbformat.v4.new_markdown_cell("# Study 1: x\n\nmore"),
            nbformat.v4.new_code_cell(f'profile = "{profile}"'),
            nbformat.v4.new_markdown_cell(prose),
            nbformat.v4.new_code_cell("hidden = 1", outputs=[figure, printed] if outputs else []),
        ]
        (tmp_path / "books").mkdir(exist_ok=True)
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "books" / "01_x.ipynb")
        return tmp_path / "books"

    return make


def test_every_claim_has_its_sentence_and_verdicts_as_docs_claims_has_them(file):
    """Which another test compares with `rwc claims`: every size, its counts and closest call, and the runs behind it."""
    text, seen = words(file.read_text()), set()
    table = (ROOT / "docs" / "claims.md").read_text().split("<!-- claims -->")[1].split("<!-- /claims -->")[0]
    for line in table.splitlines():
        if re.match(r"\| [A-Z]\d+[ab]? \|", line):
            cells = [re.sub(r"`|<br>", " ", cell).split() for cell in line.strip("| ").split(" | ")]
            assert " ".join(word for cell in cells for word in cell) in text
            seen.add(cells[0][0])
    assert seen == {claim.id for study in STUDIES for claim in studies.get(study).claims}


def test_every_figure_of_the_notebooks_is_embedded_with_its_alternative_text(file):
    drawn = [
        ("".join(output["data"]["image/png"]), output["metadata"]["image/png"]["alt"])
        for path in notebooks.find()
        for cell in json.loads(path.read_text())["cells"]
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(drawn) > 40
    images = re.findall(r'(?s)<img alt="([^"]*)"[^>]*src="data:image/png;base64,([^"]*)"', file.read_text())
    assert {("".join(png.split()), html.unescape(alt)) for alt, png in images} == {
        ("".join(png.split()), alt) for png, alt in drawn
    }
    assert len(images) == len(drawn)


def test_nothing_runs_or_is_loaded_from_elsewhere(file):
    page = file.read_text()
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert f'<head><meta http-equiv="Content-Security-Policy" content="{policy}">' in page
    assert "<script" not in page
    assert all(source.startswith("data:") for source in re.findall(r'<img[^>]* src="([^"]*)"', page))
    assert all(link.startswith(("https://", "#")) for link in re.findall(r'<a[^>]* href="([^"]*)"', page))
    assert file.stat().st_size < 15_000_000


def test_provenance_counts_the_runs_behind_in_readable_tables(file):
    results = ROOT / "data" / "results"
    planned = {c.hash for study in STUDIES for profile in PROFILES for c in studies.get(study).runs(profile)}
    behind = [
        record["provenance"] for config, record in archive.records(results)
        if config.hash in planned and record["status"] == "done"
    ]  # fmt: skip
    page = file.read_text()
    text = words(page)
    hours = sum(record["train_and_test_seconds"] for record in behind) / 3600
    assert f"{len(behind)} runs, {hours:.1f} hours of training" in text
    for key in ("torch", "numpy", "python", "rwclib", "data_note", "data_source", "data_digest", "device"):
        for value in {record[key] for record in behind}:
            assert " ".join(value.split()) in text
    assert page.count("<tr") < 300


def test_text_of_runs_is_shown_and_never_obeyed():
    hostile = "<script>alert(1)</script>"
    table = report._table(pd.DataFrame({"data_note": [hostile]}))
    assert hostile not in table
    assert hostile in html.unescape(table)
    assert hostile not in notebooks.mathml(rf"\text{{{hostile}}}")


def test_an_empty_archive_and_a_notebook_without_outputs_are_said_to_be_so(tmp_path, shelf):
    page = report.page(tmp_path, figures=shelf(outputs=False))
    text = words(page)
    assert "No figures: the notebook has not been executed yet" in text
    assert text.count("No runs yet.") == len(STUDIES) + 1
    assert "<img" not in page
    assert not re.search(r"\b\d+ (holds?|fails?|unclear)\b", text)


def test_prose_numbers_and_profile_of_a_notebook_go_with_its_figure(tmp_path, shelf, monkeypatch):
    monkeypatch.setattr(studies, "STUDIES", ("softness",))
    prose = "## Part\n\nClaim *L1* on $\\lVert w_{t-1} \\rVert_1$, see [05](05_x.ipynb), [rules](../docs/claims.md).\n\n$\\nonsense{$"
    folder = shelf(prose=prose, text="a  b\n1  2\n", profile="smoke")
    page = report.page(tmp_path, profile="quick", figures=folder)
    assert re.search(r'<h4 id="Part">Part', page)
    assert "<pre>a  b\n1  2\n</pre>" in page
    assert "hidden" not in words(page)
    assert r"\nonsense{" in page
    assert "<mo>" in page
    for target in ("notebooks/05_x.ipynb", "docs/claims.md"):
        assert f'href="{notebooks.REPOSITORY}/blob/main/{target}"' in page
    assert "drawn at profile smoke" in words(page)
    assert "The verdicts above are at profile quick" in words(page)
    done = rwc("report", tmp_path / "a.html", "--results", tmp_path, "--figures", folder, env={"PYTHONHASHSEED": "7"})
    assert done.returncode == 0, done.stderr
    monkeypatch.undo()
    assert (tmp_path / "a.html").read_bytes() == report.page(tmp_path, figures=folder).encode()


def test_what_cannot_be_read_is_one_sentence_and_leaves_the_old_page_alone(tmp_path, shelf, monkeypatch):
    with pytest.raises(ConfigError, match=r"no notebooks in .*; name a folder that `rwc reproduce` has written"):
        report.page(tmp_path, figures=tmp_path)
    (shelf() / "01_x.ipynb").write_text("[]")
    with pytest.raises(NotebookError, match="01_x.ipynb is not a readable notebook"):
        report.page(tmp_path, figures=tmp_path / "books")
    (tmp_path / "old.html").write_text("old")
    done = rwc("report", tmp_path / "old.html", "--figures", tmp_path)
    assert (done.returncode, len(done.stderr.splitlines()), done.stdout) == (2, 1, "")
    assert {path.name for path in tmp_path.iterdir()} == {"old.html", "books"}
    assert (tmp_path / "old.html").read_text() == "old"
    monkeypatch.setattr("rwclib._places.repository", lambda: None)
    with pytest.raises(ConfigError, match=r"clone .*, or name a folder .* with --figures"):
        report.page(tmp_path)


@pytest.mark.long
@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it_without_overflow_or_requests(width, file):
    sync_api = pytest.importorskip("playwright.sync_api")
    asked = []
    handler = partial(SimpleHTTPRequestHandler, directory=file.parent)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, sync_api.sync_playwright() as playwright:
        Thread(target=server.serve_forever, daemon=True).start()
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": width, "height": 1400})
        page.on("request", lambda request: asked.append(request.url))
        address = f"http://127.0.0.1:{server.server_port}/{file.name}"
        page.goto(address)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate("document.documentElement.scrollHeight") > 5000
        assert page.evaluate("[...document.images].every(image => image.naturalWidth)")
        assert page.evaluate(f"[...document.images].every(image => image.getBoundingClientRect().right <= {width})")
        browser.close()
        server.shutdown()
    assert {url for url in asked if not url.startswith("data:")} - {address.replace(file.name, "favicon.ico")} == {
        address
    }

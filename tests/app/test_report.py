"""`rwc report`: everything is on the page, nothing comes from elsewhere, and a browser shows it at any width."""

import base64
import io
import itertools
import json
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import matplotlib.image
import pytest

from rwclib import archive, studies
from rwclib.app import notebooks, report
from rwclib.errors import ConfigError, NotebookError
from rwclib.runs.config import PROFILES
from rwclib.studies import STUDIES
from tests.conftest import ROOT, rwc

VOID = {"meta", "img", "br", "hr", "link", "input"}
LOADING = {"src", "srcset", "data", "action", "poster", "background", "ping"}
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


@dataclass
class Element:
    tag: str
    attributes: dict
    text: str = ""
    inside: list = field(default_factory=list)


class Page(HTMLParser):
    """A page's elements in order; fails where a tag is closed that is not open, or left open."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {[element.tag for element in self.open]}"

    def handle_starttag(self, tag, attributes):
        assert len({name for name, _ in attributes}) == len(attributes), attributes
        element = Element(tag, dict(attributes), inside=[outer.tag for outer in self.open])
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop().tag == tag

    def handle_data(self, text):
        for element in self.open:
            element.text += text

    def all(self, *tags):
        return [element for element in self.elements if element.tag in tags]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The repository's own report."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    done = rwc("report", path)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r".*report\.html: \d+\.\d MB\n", done.stdout)
    return path


@pytest.fixture(scope="module")
def page(file):
    return Page(file.read_text())


@pytest.fixture
def shelf(tmp_path):
    """A folder with one notebook of study 1 that holds one figure."""

    def make(
        title="Study 1: x", alt="a figure of ours", prose="## Part\n\nWords.", text="1.0\n", png=None, profile="best"
    ):
        png = png or (ROOT / "figures" / "04_two_definitions_simulated.png").read_bytes()
        shown = {
            "output_type": "display_data",
            "data": {"image/png": base64.encodebytes(png).decode().splitlines(True)},
        }
        shown["metadata"] = {"image/png": {"alt": alt}}
        cells = [
            {"cell_type": "markdown", "source": [f"# {title}\n", "more"]},
            {"cell_type": "code", "source": f'profile = "{profile}"\n', "outputs": []},
            {"cell_type": "markdown", "source": prose},
            {"cell_type": "code", "source": "", "outputs": [shown, {"output_type": "stream", "name": "stdout", "text": text}]},
        ]  # fmt: skip
        folder = tmp_path / "books"
        folder.mkdir(exist_ok=True)
        (folder / "01_x.ipynb").write_text(json.dumps({"cells": cells}))
        return folder

    return make


def one_run(results, **provenance):
    """A results folder with one run of the repository's archive, what it says of its origin changed."""
    place = next(place for place in archive.directories(ROOT / "data" / "results") if "resnet18-cifar10" in place.name)
    run = archive.read_dir(place)
    record = {key: value for key, value in run.record.items() if key not in ("config", "sha256", "checksum")}
    record["provenance"] = record["provenance"] | provenance
    archive.write(results, run.config, record, run.layers, run.epochs, run.extra)
    return results


def images_of_notebooks():
    """PNG and alternative text of every figure in the committed notebooks."""
    for path in notebooks.find():
        for cell in json.loads(path.read_text())["cells"]:
            for output in cell.get("outputs", []):
                if "image/png" in output.get("data", {}):
                    yield base64.b64decode("".join(output["data"]["image/png"])), output["metadata"]["image/png"]["alt"]


@pytest.fixture(scope="module")
def claims(page):
    """The text of each claim's row, by its id."""
    rows = [element for element in page.all("tr") if "id" in element.attributes]
    return {row.attributes["id"].removeprefix("claim-"): " ".join(row.text.split()) for row in rows}


def test_every_claim_has_its_sentence_and_a_written_verdict(claims):
    known = {claim.id: claim for study in STUDIES for claim in studies.get(study).claims}
    assert set(claims) == set(known)
    for claim_id, text in claims.items():
        assert text.startswith(f"{claim_id} {' '.join(known[claim_id].text.split())}"), text
        assert re.search(r"[✓?✗–] (holds|unclear|fails|not run)", text)


def test_the_scorecard_says_what_the_readme_says(claims):
    """Which another test compares with `rwc claims`: every size, its counts and closest call, and the runs behind it."""
    table = (ROOT / "docs" / "claims.md").read_text().split("<!-- claims -->")[1].split("<!-- /claims -->")[0]
    lines = [line for line in table.splitlines() if re.match(r"\| [A-Z]\d+[ab]? \|", line)]
    assert len(lines) == len(claims)
    seen = {"finding": 0, "not run": 0, "runs": 0}
    for line in lines:
        claim_id, statement, *cells = [" ".join(cell.split()) for cell in line.strip("| ").split(" | ")]
        text = claims[claim_id]
        assert statement in text
        for part in "<br>".join(cells).split("<br>"):
            if found := re.fullmatch(r"`(\w+)`: (holds|unclear|fails)(?: \((.*?)\))?: (.*)", part):
                profile, verdict, counts, closest = found.groups()
                part, kind = f"{verdict} {profile} {counts + ' ' if counts else ''}closest call: {closest}", "finding"
            elif found := re.fullmatch(r"not run \((.*)\)", part):
                part, kind = f"not run {found[1]}", "not run"
            else:
                part, kind = part.replace("`", ""), "runs"
            assert part in text
            seen[kind] += 1
    assert seen["finding"] > 50
    assert min(seen.values()) > 10


def test_every_figure_of_the_notebooks_is_embedded_with_its_alternative_text(page):
    drawn = list(images_of_notebooks())
    assert len(drawn) > 40
    images = page.all("img")
    embedded = {}
    for image in images:
        kind, _, content = image.attributes["src"].partition(",")
        assert kind == "data:image/png;base64"
        embedded[base64.b64decode(content, validate=True)] = image.attributes
        assert "figure" in image.inside
    assert len(images) == len(drawn)
    for png, alt in drawn:
        assert embedded[png]["alt"] == alt
        assert int(embedded[png]["width"]) == matplotlib.image.imread(io.BytesIO(png)).shape[1]


def test_nothing_is_loaded_from_elsewhere_and_nothing_runs(page, file):
    for element in page.elements:
        assert element.tag not in ("script", "link", "iframe", "object", "embed", "form", "base", "svg")
        for name, value in element.attributes.items():
            assert not name.startswith("on"), element.tag
            if name in LOADING:
                assert value.startswith("data:image/png;base64,")
            if name == "href":
                assert element.tag == "a"
                assert value.startswith(("#", "https://"))
    style = "".join(element.text for element in page.all("style"))
    assert len(style) > 1000
    assert not re.search(r"url\(|@import|@font-face", style)
    policy = next(e.attributes["content"] for e in page.all("meta") if "http-equiv" in e.attributes)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert file.stat().st_size < 15_000_000


def test_the_page_is_sound_html_that_a_screen_reader_can_follow(page):
    assert page.all("html")[0].attributes["lang"] == "en"
    assert len(page.all("title", "h1", "main")) == 3
    levels = [int(element.tag[1]) for element in page.all("h1", "h2", "h3", "h4", "h5")]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [element.attributes["id"] for element in page.elements if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    for link in page.all("a"):
        assert link.text.strip()
        if link.attributes["href"].startswith("#"):
            assert link.attributes["href"][1:] in ids
    assert all(cell.attributes.get("scope") in ("col", "row") for cell in page.all("th"))
    assert len(page.all("table")) == len(page.all("caption"))
    assert all("div" in table.inside for table in page.all("table"))


def test_the_definitions_rules_and_accuracies_are_there(page):
    text = " ".join(page.all("body")[0].text.split())
    assert sum(element.attributes["display"] == "block" for element in page.all("math")) == 2
    for words in ("a claim that fails there has failed at that size, no more and no less", "never over layers", "a quarter of the way from guessing", "Elementwise",
                  "Accuracies of study 1, ours beside the published", "Accuracies of study 2, ours (published in brackets)"):  # fmt: skip
        assert words in text
    for study in range(1, len(STUDIES) + 1):
        assert f"Claims of study {study}" in text


def test_provenance_counts_the_runs_behind_in_readable_tables(page):
    results = ROOT / "data" / "results"
    planned = {c.hash for study in STUDIES for profile in PROFILES for c in studies.get(study).runs(profile)}
    behind = [
        record["provenance"] for config, record in archive.records(results)
        if config.hash in planned and record["status"] == "done"
    ]  # fmt: skip
    text = " ".join(page.all("body")[0].text.split())
    hours = sum(record["train_and_test_seconds"] for record in behind) / 3600
    assert f"{len(behind)} runs, {hours:.1f} hours of training" in text
    for key in ("torch", "numpy", "python", "rwclib", "data_note", "data_source", "data_digest", "device"):
        for value in {record[key] for record in behind}:
            assert " ".join(value.split()) in text
    assert len(page.all("tr")) < 300


def test_hostile_text_is_shown_and_never_obeyed(tmp_path, shelf):
    results = one_run(tmp_path / "results", data_note=HOSTILE, torch=HOSTILE, device=HOSTILE)
    formulas = rf"$\text{{{HOSTILE}}}$ $\href{{javascript:alert(4)}}{{x}}$ $\href{{x}}{{x}}$ $\style{{color:red}}{{x}}$"
    prose = f"## {HOSTILE}\n\n{HOSTILE} {formulas} `{HOSTILE}` ${HOSTILE}$ **{HOSTILE}** [{HOSTILE}](javascript:alert(3)) [x]({HOSTILE})"
    page = Page(report.page(results, figures=shelf(f"Study 1: {HOSTILE}", HOSTILE, prose, f"</pre>{HOSTILE}")))
    assert not page.all("script")
    assert [image.attributes["alt"] for image in page.all("img")] == [HOSTILE]
    assert not any(name.startswith("on") for element in page.elements for name in element.attributes)
    assert all(link.attributes["href"].startswith(("#", "https://")) for link in page.all("a"))
    assert page.all("body")[0].text.count("<script>alert(1)</script>") > 10


def test_the_same_input_gives_the_same_bytes(tmp_path, shelf):
    results, folder = one_run(tmp_path / "results"), shelf()
    done = rwc("report", tmp_path / "a.html", "--results", results, "--figures", folder, env={"PYTHONHASHSEED": "7"})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.html").read_bytes() == report.page(results, figures=folder).encode()


def test_an_empty_archive_and_a_notebook_without_outputs_are_said_to_be_so(tmp_path, shelf):
    folder = shelf()
    book = json.loads((folder / "01_x.ipynb").read_text())
    for cell in book["cells"]:
        cell["outputs"] = []
    (folder / "01_x.ipynb").write_text(json.dumps(book))
    page = Page(report.page(tmp_path, figures=folder))
    text = page.all("body")[0].text
    assert "No figures: the notebook has not been executed yet" in text
    assert "No runs yet." in text
    assert not page.all("img")
    verdicts = [e.text for e in page.all("tr") if "id" in e.attributes]
    assert verdicts
    assert all("not run" in text for text in verdicts)


def test_prose_numbers_and_profile_of_a_notebook_go_with_its_figure(tmp_path, shelf, monkeypatch):
    monkeypatch.setattr(studies, "STUDIES", ("softness",))
    prose = "## Part\n\nClaim *L1* on $\\lVert w_{t-1} \\rVert_1$, see [05](05_x.ipynb).\n\n- a list\n\n$\\nonsense{$"
    page = Page(
        report.page(tmp_path, profile="quick", figures=shelf(prose=prose, text="a  b\n1  2\n", profile="smoke"))
    )
    assert [e.text for e in page.all("h5")] == ["Part"]
    assert [e.text for e in page.all("pre")] == ["a  b\n1  2\n"]
    article = page.all("article")[0].text
    assert "Claim L1 on ‖wt−1‖1, see 05." in article
    assert r"\nonsense{" in article
    assert [e.text for e in page.all("li") if "article" in e.inside] == ["a list"]
    assert f"{notebooks.REPOSITORY}/blob/main/notebooks/05_x.ipynb" in [e.attributes["href"] for e in page.all("a")]
    assert "drawn at profile smoke" in article
    assert "The verdicts above are at profile quick." in article


def test_what_cannot_be_read_is_one_sentence(tmp_path, shelf, monkeypatch):
    with pytest.raises(ConfigError, match=r"no notebooks in .*; name a folder that `rwc reproduce` has written"):
        report.books(tmp_path)
    with pytest.raises(NotebookError, match=r"01_x.ipynb is not a readable notebook \(an image that is no PNG\)"):
        report.books(shelf(png=b"GIF89a" + bytes(30)))
    (shelf() / "01_x.ipynb").write_text("[]")
    with pytest.raises(NotebookError, match="01_x.ipynb is not a readable notebook"):
        report.books(tmp_path / "books")
    monkeypatch.setattr("rwclib._places.repository", lambda: None)
    with pytest.raises(
        ConfigError, match=r"not installed with the package; clone .*, or name a folder .* with --figures"
    ):
        report.books()


def test_a_failed_report_leaves_the_old_page_alone(tmp_path):
    (tmp_path / "old.html").write_text("old")
    done = rwc("report", tmp_path / "old.html", "--figures", tmp_path)
    assert (done.returncode, len(done.stderr.splitlines()), done.stdout) == (2, 1, "")
    assert [path.name for path in tmp_path.iterdir()] == ["old.html"]
    assert (tmp_path / "old.html").read_text() == "old"


CHECK = """<!DOCTYPE html><body><iframe src="{page}" style="border:0;width:{width}px;height:900px"></iframe><script>
addEventListener("load", () => {{
  const page = document.querySelector("iframe").contentDocument, root = page.documentElement, images = [...page.images];
  page.querySelectorAll("details").forEach(part => part.open = true);
  const canvas = document.createElement("canvas").getContext("2d", {{willReadFrequently: true}});
  const drawn = image => {{
    if (!image.naturalWidth) return false;
    canvas.drawImage(image, 0, 0, 300, 150);
    return new Set(canvas.getImageData(0, 0, 300, 150).data).size > 20;
  }};
  document.body.textContent = JSON.stringify({{
    width: root.clientWidth, scroll: root.scrollWidth, height: root.scrollHeight, images: images.length,
    drawn: images.filter(drawn).length,
    wide: images.filter(image => image.getBoundingClientRect().right > root.clientWidth).length,
    boxes: [...page.querySelectorAll(".box")].filter(box => box.scrollWidth > box.clientWidth).length,
  }});
}});
</script></body>"""


def browse(tmp_path, width, *words):
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    words = [*flags, f"--window-size={max(width, 500)},1400", *map(str, words)]
    return subprocess.run([BROWSER, *words], capture_output=True, text=True, timeout=240).stdout


def measure(tmp_path, path, width):
    """What a real browser makes of the page in a frame of so many pixels, and what it asks the server for."""
    shutil.copy(path, tmp_path / "page.html")
    (tmp_path / "check.html").write_text(CHECK.format(page="page.html", width=width))
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *of):
            super().__init__(*of, directory=tmp_path)

        def log_message(self, *of):
            asked.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        text = browse(tmp_path, width, "--dump-dom", f"http://127.0.0.1:{server.server_port}/check.html")
        server.shutdown()
    return json.loads(re.search(r"<body>(\{.*\})</body>", text, re.S)[1]), set(asked) - {"/favicon.ico"}


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it_without_overflow_or_requests(width, file, page, tmp_path):
    found, asked = measure(tmp_path, file, width)
    assert found["width"] == width
    assert found["scroll"] == width
    assert found["height"] > 5000
    assert found["images"] == found["drawn"] == len(page.all("img"))
    assert found["wide"] == 0
    assert asked == {"/check.html", "/page.html"}
    if width == 390:
        assert found["boxes"] > 5  # tables scroll in their own boxes
    browse(tmp_path, width, f"--screenshot={tmp_path / 'shot.png'}", file.as_uri())
    pixels = matplotlib.image.imread(tmp_path / "shot.png")[..., :3]
    assert pixels.shape[:2] == (1400, max(width, 500))
    assert 0.01 < (pixels.min(axis=-1) < 0.5).mean() < 0.5  # dark text on a light page


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")
def test_the_browser_check_sees_overflow_broken_images_and_requests(tmp_path):
    bad = '<!DOCTYPE html><meta name="viewport" content="width=device-width"><div style="width:600px">x</div>'
    bad += '<img src="data:image/png;base64,AAAA"><img src="absent.png">'
    (tmp_path / "bad.html").write_text(bad)
    found, asked = measure(tmp_path, tmp_path / "bad.html", 390)
    assert found["scroll"] > found["width"] == 390
    assert (found["images"], found["drawn"]) == (2, 0)
    assert "/absent.png" in asked

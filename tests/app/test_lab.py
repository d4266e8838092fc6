"""What `make lab` opens, in a real browser: notebooks 00 and 01 run to their end in JupyterLab and show their figures."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from tests.conftest import ROOT

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FIGURES = {"00_track_your_own_model": 1, "01_resnet18_blocks": 13}
SECONDS = 1000  # milliseconds


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of the notebooks, which draws there."""
    folder = tmp_path_factory.mktemp("lab") / "notebooks"
    folder.mkdir()
    for name in FIGURES:
        text = (ROOT / "notebooks" / f"{name}.ipynb").read_text()
        (folder / f"{name}.ipynb").write_text(text.replace(r"figures = \"\"", rf"figures = \"{folder}\""))
    return folder


@pytest.fixture(scope="module")
def address(folder):
    """JupyterLab on the copy."""
    assert "$(BIN)/jupyter lab notebooks" in (ROOT / "Makefile").read_text()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("jupyter"), "lab", folder, "--no-browser", "--allow-root"]
    command += [f"--ServerApp.port={port}", "--IdentityProvider.token=", "--ServerApp.port_retries=0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen(command, env=environment, cwd=folder, stderr=subprocess.DEVNULL)
    for _ in range(600):
        with socket.socket() as probe:
            if not probe.connect_ex(("localhost", port)):
                break
        time.sleep(0.2)
    yield f"http://localhost:{port}/lab/tree"
    server.terminate()
    server.wait()


@pytest.mark.long
@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")
@pytest.mark.parametrize("name", FIGURES)
def test_run_all_in_jupyterlab_ends_without_an_error_and_shows_the_figures(name, folder, address, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api")
    file = folder / f"{name}.ipynb"
    committed = [cell for cell in nbformat.read(file, 4).cells if cell.cell_type == "code"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1200, "height": 1000})
        page.goto(f"{address}/{name}.ipynb?reset", timeout=120 * SECONDS)
        kernel = ".jp-NotebookPanel-toolbar .jp-Notebook-ExecutionIndicator"
        page.wait_for_selector(f"{kernel}[data-status=idle]", timeout=240 * SECONDS)
        page.wait_for_timeout(5 * SECONDS)
        for menu, item in (("Edit", "Clear Outputs of All Cells"), ("Run", "Run All Cells")):
            page.get_by_role("menuitem", name=menu, exact=True).click()
            page.get_by_text(item, exact=True).click()
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:  # saved again and again: what is not in view is not on the page
            page.keyboard.press("Control+s")
            page.wait_for_timeout(2 * SECONDS)
            cells = [cell for cell in nbformat.read(file, 4).cells if cell.cell_type == "code"]
            if all(cell.execution_count for cell in cells):
                break
        page.wait_for_selector(f"{kernel}[data-status=idle]", timeout=240 * SECONDS)
        page.keyboard.press("Control+s")
        page.wait_for_timeout(2 * SECONDS)
        image = page.locator(".jp-OutputArea-output img").first
        for top in 3 * [*range(0, 20_000, 500)]:  # what is out of view is not on the page
            page.locator(".jp-WindowedPanel-outer").evaluate(f"panel => panel.scrollTop = {top}")
            page.wait_for_timeout(200)
            if image.is_visible():
                break
        assert image.evaluate("image => image.complete && image.naturalWidth") > 300
        page.screenshot(path=Path(os.environ.get("RWC_SCREENSHOTS", tmp_path)) / f"{name}.png")
        browser.close()
    cells = [cell for cell in nbformat.read(file, 4).cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert [cell.source for cell in cells] == [cell.source for cell in committed]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == FIGURES[name]

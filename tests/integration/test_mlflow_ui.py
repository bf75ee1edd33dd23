"""The real MLflow UI in a real browser: a person finds metrics, tags, tables and figures of a run."""

import importlib.util
import re
import shutil
import struct
from pathlib import Path

import pytest

pytest.importorskip("selenium", reason="selenium is not installed (make setup)")

from runs import REPOSITORY
from selenium.common.exceptions import TimeoutException


def load_program(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


screenshot = load_program(Path(__file__).parents[2] / "docs" / "screenshot.py")

MISSING = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not on the PATH: {MISSING}")

LIMIT_S = 60.0


@pytest.fixture(scope="module")
def ui(tracked_run):
    with screenshot.mlflow_ui(tracked_run.database) as base:
        yield base


@pytest.fixture(scope="module")
def browser():
    with screenshot.open_browser() as opened:
        yield opened


@pytest.fixture
def page(ui, tracked_run, browser):
    """Opens a tab of the run's page."""
    found = screenshot.find_run(tracked_run.database, "small")
    assert found[1] == tracked_run.result.run_id
    with pytest.raises(LookupError, match="has no run nothing"):
        screenshot.find_run(tracked_run.database, "nothing")

    def open_tab(tab=""):
        screenshot.open_run(browser, ui, found, tab)
        return browser

    return open_tab


def wait_for_text(browser, text, limit_s=LIMIT_S):
    screenshot.wait_for(browser, "document.body.innerText.includes(arguments[0])", text, limit_s=limit_s)


def png_size(path):
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", content[16:24])


def test_overview(page, tracked_run):
    """Metrics with their values, tags, and the table of results in the description."""
    browser = page()
    accuracy = f"{100 * tracked_run.result.test_accuracy[0]:.2f}"
    for text in ("operations/exit_3", str(tracked_run.result.operations[2]), "Finished", "software.torch"):
        wait_for_text(browser, text)
    for text in ("raygf results: ", "Exit-1", accuracy, tracked_run.result.run_id):
        wait_for_text(browser, text)
    for tag, value in (("method", "metagf"), ("model", "msdnet"), ("data", "digits")):
        shown = f"/{tag}\\s*:\\s*{value}/.test(document.body.innerText)"
        screenshot.wait_for(browser, shown, limit_s=LIMIT_S)
    with pytest.raises(TimeoutException, match="no such text here"):
        wait_for_text(browser, "no such text here", 0.5)


def test_the_link_that_make_ui_prints_shows_the_runs(ui, browser):
    (link,) = re.findall(r"/#/experiments/\S+=machine_learning", (REPOSITORY / "Makefile").read_text())
    browser.get("about:blank")
    browser.get(f"{ui}{link}")
    wait_for_text(browser, "small")


def test_charts_and_a_picture_of_them(page, tmp_path):
    """A curve for every exit over the rounds, and the picture that README shows."""
    browser = page("model-metrics")
    screenshot.show_charts(browser, "val_accuracy")
    for exit in (1, 2, 3):
        wait_for_text(browser, f"val_accuracy/exit_{exit}")
    picture = tmp_path / "metrics.png"
    browser.save_screenshot(picture)
    assert png_size(picture) == screenshot.SIZE
    assert picture.stat().st_size > 20_000  # an empty page has a tenth of that


@pytest.mark.parametrize("figure", ["accuracy", "fusion_weights"])
def test_figures_under_artifacts(page, figure):
    """The figure is listed, and drawn."""
    browser = page(f"artifacts/figures/{figure}.png")
    for name in ("results.csv", "results.md", "config.yaml", f"figures/{figure}.png"):
        wait_for_text(browser, name)
    drawn = "[...document.images].some(i => i.complete && i.naturalWidth > 600 && i.naturalHeight > 200)"
    screenshot.wait_for(browser, drawn, limit_s=LIMIT_S)

"""Take a picture of a run in the MLflow UI, as README shows it.

    python docs/screenshot.py mlflow.db docs/images/mlflow.png --tab ""
    python docs/screenshot.py mlflow.db figure.png --run my-run --tab artifacts/figures/accuracy.png

Needs selenium and, on the PATH, Chromium and its driver: Debian's packages chromium and chromium-driver.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tyro
from mlflow import MlflowClient
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.utils import free_port, is_connectable
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-quic", "--hide-scrollbars")
CHARTS = "accuracy_by_passes|fusion_weight"
SIZE = (1500, 950)
VIEW = {"width": SIZE[0], "height": SIZE[1], "deviceScaleFactor": 1, "mobile": False}
# The UI opens its chat panel on the first visit. Without a mouse, charts show their toolbars all the time.
NO_CHAT = """try { localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
    localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true"); } catch {}"""
NO_TOOLBARS = "document.head.insertAdjacentHTML('beforeend', '<style>.modebar { display: none; }</style>')"
QUICK = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
Given = tyro.conf.Positional[Path]


@contextmanager
def open_browser() -> Iterator[Chrome]:
    """A headless Chromium with an empty profile; leaves no files behind."""
    options = ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in FLAGS:
        options.add_argument(flag)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        service = ChromeService(shutil.which("chromedriver"), env={**os.environ, "TMPDIR": scratch})
        with Chrome(options, service) as browser:
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", VIEW)
            browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": NO_CHAT})
            yield browser


def wait_for(browser: Chrome, condition: str, *arguments: object, limit_s: float = 30.0) -> None:
    """Wait until a JavaScript expression of ``arguments`` is true, else raise selenium's TimeoutException."""
    waiting, script = WebDriverWait(browser, limit_s), f"return {condition}"
    waiting.until(lambda page: page.execute_script(script, *arguments), f"{condition} for {arguments}")


@contextmanager
def mlflow_ui(database: Path) -> Iterator[str]:
    """The MLflow UI on ``database`` inside; its address."""
    port, store = free_port(), f"sqlite:///{database.absolute()}"
    options = ("--backend-store-uri", store, "--port", str(port), "--uvicorn-opts", "--log-level=warning")
    command = [sys.executable, "-m", "mlflow", "ui", "--workers", "1", *options]
    with subprocess.Popen(command, env=os.environ | QUICK, start_new_session=True) as server:
        try:
            WebDriverWait(port, 60).until(is_connectable, "mlflow ui does not start")
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(server.pid, signal.SIGKILL)


def find_run(database: Path, name: str = "") -> tuple[str, str]:
    """Experiment and id of the newest run, or of the newest one of this name or id."""
    client = MlflowClient(f"sqlite:///{database.absolute()}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    for run in client.search_runs(experiments, order_by=["attributes.start_time DESC"]):
        if name in ("", run.info.run_name, run.info.run_id):
            return run.info.experiment_id, run.info.run_id
    raise LookupError(f"{database} has no run {name}".rstrip())


def open_run(browser: Chrome, base: str, run: tuple[str, str], tab: str) -> None:
    """Go to a tab of a run's page."""
    browser.get("about:blank")
    browser.get(f"{base}/#/experiments/{run[0]}/runs/{run[1]}/{tab}?workflowType=machine_learning")


def show_charts(browser: Chrome, search: str) -> None:
    """On the tab "model-metrics": show the charts of metrics named like ``search``, and let them draw."""
    field = 'input[placeholder="Search metric charts"]'
    wait_for(browser, "document.querySelector(arguments[0])", field)
    browser.find_element("css selector", field).send_keys(search)
    wait_for(browser, "document.querySelectorAll('.js-plotly-plot .main-svg').length > 1")
    browser.execute_script(NO_TOOLBARS)
    time.sleep(2)  # charts grow to their places after they are there


def main(
    database: Given, out: Given, run: str = "", tab: str = "model-metrics", search: str = CHARTS
) -> None:
    """Take a picture of a run in the MLflow UI.

    Args:
        database: MLflow's sqlite file.
        out: PNG to write.
        run: Name or id; by default the newest run.
        tab: "model-metrics", "" (overview) or "artifacts/<path>".
        search: Charts to show on the tab model-metrics.
    """
    found = find_run(database, run)
    out.parent.mkdir(parents=True, exist_ok=True)
    with mlflow_ui(database) as base, open_browser() as browser:
        open_run(browser, base, found, tab)
        if tab == "model-metrics":
            show_charts(browser, search)
        else:
            wait_for(browser, "document.body.innerText.includes('Artifacts')")
            time.sleep(3)  # figures and tables are fetched one by one
            for button in browser.find_elements("xpath", "//*[text()='Show more']"):
                button.click()  # the whole description
        browser.save_screenshot(out)


if __name__ == "__main__":
    tyro.cli(main)

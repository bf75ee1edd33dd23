"""Take a picture of a run in the MLflow UI, as README shows it.

    python docs/screenshot.py mlflow.db docs/images/mlflow.png
    python docs/screenshot.py mlflow.db figure.png --run my-run --tab artifacts/figures/accuracy.png

Starts the UI on the database and drives headless Chromium, which must be on the PATH, through its debugging
pipe.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--remote-debugging-pipe",
)
SIZE = (1500, 950)
START_S = 60.0
# The UI opens its chat panel on the first visit; a picture of a run has no use for it.
SETTINGS = {"mlflow.assistant.panelOpen_v1": "false", "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true"}
# Without a mouse, charts show their toolbars all the time.
HIDE_TOOLBARS = """{
    const style = document.createElement("style");
    style.textContent = ".modebar { display: none !important; }";
    document.head.append(style);
}"""


class Browser:
    """One tab of a headless Chromium with an empty profile.

    Raises:
        FileNotFoundError: there is no Chromium on the PATH.
    """

    def __init__(self) -> None:
        program = find_chromium()
        if program is None:
            raise FileNotFoundError("no chromium on the PATH")
        self._profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        theirs_in, self._commands = os.pipe()
        self._answers, theirs_out = os.pipe()
        # Chromium takes commands on file 3 and answers on file 4.
        files = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        command = ["bash", "-c", files, program, *FLAGS, f"--user-data-dir={self._profile.name}"]
        self._process = subprocess.Popen(
            command,
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._waiting = b""
        self._number = 0
        self._session = ""
        try:
            target = self._call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            stored = "".join(f"localStorage.setItem({k!r}, {v!r});" for k, v in SETTINGS.items())
            view = {"width": SIZE[0], "height": SIZE[1], "deviceScaleFactor": 1, "mobile": False}
            self._call("Emulation.setDeviceMetricsOverride", **view)
            self._call("Page.enable")
            self._call("Page.addScriptToEvaluateOnNewDocument", source=f"try {{ {stored} }} catch {{}}")
        except BaseException:
            self.close()
            raise

    def open(self, url: str) -> None:
        """Go to ``url``."""
        self._call("Page.navigate", url="about:blank")
        self._call("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        return self._call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get(
            "value"
        )

    def wait_for(self, expression: str, limit_s: float = 30.0) -> None:
        """Wait until a JavaScript expression is true.

        Raises:
            TimeoutError: it is not, within ``limit_s``; says what the page shows instead.
        """
        end = time.monotonic() + limit_s
        while not self.evaluate(expression):
            if time.monotonic() > end:
                shown = str(self.evaluate("document.body.innerText"))[:500]
                raise TimeoutError(f"{expression} is not true after {limit_s:.0f} s; the page says: {shown}")
            time.sleep(0.2)

    def wait_for_text(self, text: str, limit_s: float = 30.0) -> None:
        """Wait until ``text`` can be read in the page."""
        self.wait_for(f"document.body.innerText.includes({json.dumps(text)})", limit_s)

    def type_into(self, placeholder: str, text: str) -> None:
        """Type ``text`` into the field that shows ``placeholder`` while it is empty."""
        selector = f"input[placeholder={json.dumps(placeholder)}]"
        field = f"document.querySelector({json.dumps(selector)})"
        self.wait_for(f"{field} !== null")
        self.evaluate(f"{field}.focus()")
        self._call("Input.insertText", text=text)

    def screenshot(self, path: Path) -> None:
        """Write what the tab shows as a PNG."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        """End the browser and remove its profile."""
        os.close(self._commands)
        os.close(self._answers)
        end_process(self._process)
        self._profile.cleanup()

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command of the DevTools protocol and wait for its answer."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                result: dict[str, Any] = answer["result"]
                return result

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._waiting:
            ready, _, _ = select.select([self._answers], [], [], START_S)
            part = os.read(self._answers, 1 << 16) if ready else b""
            if not part:
                raise RuntimeError("chromium does not answer")
            self._waiting += part
        text, _, self._waiting = self._waiting.partition(b"\0")
        answer: dict[str, Any] = json.loads(text)
        return answer


def find_chromium() -> str | None:
    """The browser on the PATH; None: there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


@contextlib.contextmanager
def mlflow_ui(database: Path) -> Iterator[str]:
    """The MLflow UI on ``database`` inside; its address.

    Raises:
        RuntimeError: it does not start.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    store = f"sqlite:///{database.absolute()}"
    options = ("--backend-store-uri", store, "--host", "127.0.0.1", "--port", str(port), "--workers", "1")
    quick = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment = {**os.environ, **quick}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "ui", *options], env=environment, stdout=log, stderr=log
        )
        try:
            if not answers(f"http://127.0.0.1:{port}/health", process, START_S):
                log.seek(0)
                raise RuntimeError(f"mlflow ui does not start: {log.read().decode()[-1000:]}")
            yield f"http://127.0.0.1:{port}"
        finally:
            end_process(process)


def answers(url: str, process: subprocess.Popen[Any], limit_s: float) -> bool:
    """Whether the server ``process`` answers at ``url`` within ``limit_s``."""
    end = time.monotonic() + limit_s
    while process.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(url, timeout=5) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    return False


def end_process(process: subprocess.Popen[Any]) -> None:
    """End exactly this process and those that it started."""
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        family = [*parent.children(recursive=True), parent]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.terminate()
    _, alive = psutil.wait_procs(family, timeout=2)
    for member in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait(10)


def find_run(database: Path, name: str = "") -> tuple[str, str]:
    """Experiment and id of the newest run, or of the newest one of this name or id.

    Raises:
        LookupError: there is none.
    """
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{database.absolute()}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    for run in client.search_runs(experiments, order_by=["attributes.start_time DESC"]):
        if name in ("", run.info.run_name, run.info.run_id):
            return run.info.experiment_id, run.info.run_id
    raise LookupError(f"{database} has no run {name}".rstrip())


def run_page(base: str, experiment: str, run: str, tab: str = "") -> str:
    """Address of a run's page; ``tab``: empty (overview), ``model-metrics``, or ``artifacts/<path>``."""
    page = f"{base}/#/experiments/{experiment}/runs/{run}"
    return f"{page}{f'/{tab}' if tab else ''}?workflowType=machine_learning"


def show_charts(browser: Browser, search: str) -> None:
    """On the tab ``model-metrics``: show the charts of metrics named like ``search``, and let them draw."""
    browser.type_into("Search metric charts", search)
    browser.wait_for("document.querySelectorAll('.js-plotly-plot .main-svg').length > 1")
    browser.evaluate(HIDE_TOOLBARS)
    time.sleep(2)  # charts grow to their places after they are there


def main(argv: Sequence[str]) -> int:
    """Parse ``argv``, take the picture; returns the exit code."""
    parser = argparse.ArgumentParser(description="Take a picture of a run in the MLflow UI.")
    parser.add_argument("database", type=Path, help="MLflow's sqlite file")
    parser.add_argument("out", type=Path, help="PNG to write")
    parser.add_argument("--run", default="", help="name or id; by default the newest run")
    parser.add_argument("--tab", default="model-metrics", help='"model-metrics", "" or "artifacts/<path>"')
    parser.add_argument(
        "--search", default="val_accuracy|fusion_weight", help="charts to show on the tab model-metrics"
    )
    options = parser.parse_args(argv)
    experiment, run = find_run(options.database, options.run)
    with mlflow_ui(options.database) as base, contextlib.closing(Browser()) as browser:
        browser.open(run_page(base, experiment, run, options.tab))
        if options.tab == "model-metrics":
            show_charts(browser, options.search)
        else:
            browser.wait_for_text("Artifacts")
            time.sleep(3)  # figures and tables are fetched one by one
        options.out.parent.mkdir(parents=True, exist_ok=True)
        browser.screenshot(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""A job through ``ray job submit``, on a cluster of its own that is started as people start one."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from raygf.checkpoint import load_checkpoint

SMALL = (
    *("--rounds", "2", "--data.train-limit", "48", "--data.val", "50", "--model.msdnet.base", "1"),
    *("--model.msdnet.step", "1", "--model.msdnet.channels", "8"),
)


@dataclass(frozen=True)
class Head:
    """A head node: where jobs go, its folder, and the environment that its programs run in."""

    dashboard: str
    folder: Path
    environment: dict[str, str]

    def processes(self) -> list[psutil.Process]:
        """Everything that belongs to it: what names its folder, and the children of that."""
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and any(str(self.folder) in word for word in process.cmdline()):
                    found |= {p.pid: p for p in (process, *process.children(recursive=True))}
            except psutil.Error:
                continue
        return list(found.values())

    def submit(self, repository: Path, *command: str) -> subprocess.CompletedProcess[str]:
        """``ray job submit``, followed to the job's end."""
        call = [program("ray"), "job", "submit", "--address", self.dashboard]
        call += ["--working-dir", str(repository), "--", *command]
        return subprocess.run(call, env=self.environment, capture_output=True, text=True, timeout=120)


def program(name: str) -> str:
    """A program of the environment that runs the tests."""
    return str(Path(sys.executable).with_name(name))


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head node with three CPUs. ``ray stop`` would end every Ray there is, so it ends by process."""
    folder = Path(tempfile.mkdtemp(prefix="rgf", dir="/tmp"))  # short: paths of sockets must be
    port, dashboard, agent, metrics = free_ports(4)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))}
    environment |= {
        "RAY_AUTH_MODE": "disabled",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "NO_COLOR": "1",
    }
    made = Head(f"http://127.0.0.1:{dashboard}", folder, environment)
    try:
        start = subprocess.run(
            [
                *(program("ray"), "start", "--head", "--port", str(port), "--temp-dir", str(folder)),
                *("--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard), "--num-cpus", "3"),
                *("--dashboard-agent-listen-port", str(agent), "--metrics-export-port", str(metrics)),
                *("--disable-usage-stats", "--object-store-memory", str(200 * 2**20)),
            ],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert start.returncode == 0, start.stdout + start.stderr
        yield made
    finally:
        for _ in range(3):
            processes = made.processes()
            for process in processes:
                process.kill()
            psutil.wait_procs(processes, timeout=10)
        left = made.processes()
        shutil.rmtree(folder, ignore_errors=True)
        assert left == []


@pytest.fixture
def straight_hash(run_job: Callable[..., Any]) -> str:
    outcome = run_job(
        "digits",
        *SMALL,
        "--resources.executor",
        "local",
        "--tracking.enabled",
        "False",
        "--storage.path",
        "local",
    )
    assert outcome.code == 0, outcome.err
    return str(outcome.result["weights_sha256"])


def test_submitted_job_gives_the_bits_of_a_local_one(
    head: Head, repository: Path, straight_hash: str, tracking_uri: str, tmp_path: Path
) -> None:
    started = time.monotonic()
    flags = (
        "--storage.path",
        str(tmp_path / "runs"),
        "--storage.name",
        "one",
        "--tracking.uri",
        tracking_uri,
    )
    done = head.submit(repository, "python", "jobs/digits.py", *SMALL, "--resources.actors", "2", *flags)
    logs = done.stdout + done.stderr
    assert done.returncode == 0, logs
    (line,) = [line for line in logs.splitlines() if line.startswith('{"run_id"')]
    result = json.loads(line)
    assert result["weights_sha256"] == straight_hash
    assert result["checkpoint"] == str(tmp_path / "runs" / "one" / "round-000002.npz")
    assert load_checkpoint(result["checkpoint"]).network.sha256() == straight_hash
    assert [text.split()[1] for text in logs.splitlines() if text.startswith("round ")] == ["1/2", "2/2"]
    assert "note: cluster " in logs  # joined the one it was submitted to, and started none
    assert "Traceback" not in logs
    assert "succeeded" in logs
    assert tracked_status(tracking_uri, result["run_id"]) == "FINISHED"
    assert time.monotonic() - started < 90


def tracked_status(uri: str, run_id: str) -> str:
    from mlflow import MlflowClient

    return str(MlflowClient(uri).get_run(run_id).info.status)


def test_submitted_job_with_a_bad_flag_fails(head: Head, repository: Path) -> None:
    done = head.submit(repository, "python", "jobs/digits.py", "--rounds", "0")
    logs = done.stdout + done.stderr
    assert done.returncode == 1, logs
    errors = {
        line for line in logs.splitlines() if line.startswith("error:")
    }  # Ray shows the log's end twice
    assert errors == {"error: rounds = 0: must be a whole number of at least 1"}
    assert '{"run_id"' not in logs
    assert "failed" in logs


def test_no_actor_is_left_when_jobs_have_ended(head: Head) -> None:
    def left() -> list[str]:
        titles = []
        for process in head.processes():
            try:
                titles.append((process.cmdline() or [""])[0])
            except psutil.NoSuchProcess:
                continue
        return [title for title in titles if title.startswith(("ray::DriverActor", "ray::ExitActor"))]

    limit = time.monotonic() + 10
    while left() and time.monotonic() < limit:
        time.sleep(0.1)
    assert left() == []

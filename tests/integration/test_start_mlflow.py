"""The script that the launcher's files start MLflow's server with."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from ray_head import free_ports

Start = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def start(repository: Path, tmp_path: Path) -> Iterator[Start]:
    """Calls the script; the servers that it has started end with the test."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    programs = Path(sys.executable).parent

    def call(*words: str, first_in_path: Path = programs) -> subprocess.CompletedProcess[str]:
        script = str(repository / "deploy" / "start_mlflow.sh")
        path = f"{first_in_path}:{programs}:{environment['PATH']}"
        return subprocess.run(
            ["bash", script, *words],
            env=environment | {"PATH": path},
            capture_output=True,
            text=True,
            timeout=150,
        )

    yield call
    mine = servers(tmp_path)
    for process in [*mine, *(child for each in mine for child in each.children(recursive=True))]:
        process.kill()
    psutil.wait_procs(mine, timeout=10)


def servers(folder: Path) -> list[psutil.Process]:
    """MLflow servers with their database in ``folder``."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if "server" in words and any(str(folder) in word for word in words):
            found.append(process)
    return found


def answer(port: int, host: str) -> int:
    """The status code that a client gets who knows the server as ``host``."""
    url = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get?experiment_id=0"
    try:
        request = urllib.request.Request(url, headers={"Host": f"{host}:{port}"})
        return int(urllib.request.urlopen(request, timeout=20).status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_server_is_started_once_and_serves_artifacts(
    start: Start, empty_tracking: Path, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "mlflow.db").write_bytes(empty_tracking.read_bytes())
    words = (str(tmp_path / "mlflow"), str(tmp_path / "artifacts"), str(port), "head.example.org")
    first = start(*words)
    assert first.returncode == 0, first.stderr
    assert first.stdout == f"MLflow server on port {port}, database and log in {tmp_path}/mlflow\n"
    again = start(*words)
    assert (again.returncode, again.stdout) == (0, f"an MLflow server answers on port {port} already\n")
    assert len(servers(tmp_path)) == 1

    assert [answer(port, host) for host in ("127.0.0.1", "head.example.org", "10.1.2.3")] == [200] * 3
    assert answer(port, "elsewhere.example.org") == 403

    from mlflow import MlflowClient

    client = MlflowClient(f"http://127.0.0.1:{port}")
    run = client.create_run(client.create_experiment("some"))
    assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
    client.log_text(run.info.run_id, "one", "a.txt")
    (stored,) = (tmp_path / "artifacts").rglob("a.txt")
    assert stored.read_text() == "one"


def test_a_server_that_can_not_start_says_why(start: Start, tmp_path: Path) -> None:
    broken = tmp_path / "bin" / "mlflow"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho no such backend store >&2\nexit 1\n")
    broken.chmod(0o755)
    (port,) = free_ports(1)
    done = start(str(tmp_path), str(tmp_path / "artifacts"), str(port), first_in_path=broken.parent)
    assert done.returncode == 1
    assert done.stderr == f"the MLflow server does not answer on port {port}:\nno such backend store\n"

"""A server of MLflow's, as deploy/start_mlflow.sh starts it."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from ray_head import free_ports
from runs import REPOSITORY, end_processes
from tracked_records import CONFIG, END, START, client_of, record, track

from raygf.tracking.tracker import Tracker

pytestmark = pytest.mark.usefixtures("no_mlflow_settings")


@dataclass(frozen=True)
class Server:
    """``folder`` holds its database, its log and its artifacts."""

    folder: Path
    port: int

    @property
    def uri(self):
        return f"http://127.0.0.1:{self.port}"

    @property
    def words(self):
        """What the script is called with."""
        artifacts = str(self.folder / "artifacts")
        return (str(self.folder / "mlflow"), artifacts, str(self.port), "head.example.org")

    def processes(self):
        """MLflow servers with their database in ``folder``."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if "server" in words and any(str(self.folder) in word for word in words):
                found.append(process)
        return found

    def end(self):
        mine = self.processes()
        end_processes([*mine, *(child for each in mine for child in each.children(recursive=True))])

    def answer_to(self, host):
        """The status code that a client gets who knows the server as ``host``."""
        url = f"{self.uri}/api/2.0/mlflow/experiments/get?experiment_id=0"
        try:
            request = urllib.request.Request(url, headers={"Host": f"{host}:{self.port}"})
            return int(urllib.request.urlopen(request, timeout=20).status)
        except urllib.error.HTTPError as error:
            return error.code


def start_mlflow(*words, first_in_path=None):
    """Call the script."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    path = [str(first_in_path or Path(sys.executable).parent), str(Path(sys.executable).parent), kept["PATH"]]
    return subprocess.run(
        ["bash", str(REPOSITORY / "deploy" / "start_mlflow.sh"), *words],
        env=kept | {"PATH": ":".join(path)},
        capture_output=True,
        text=True,
        timeout=150,
    )


@pytest.fixture(scope="module")
def server(empty_tracking, tmp_path_factory):
    (port,) = free_ports(1)
    server = Server(tmp_path_factory.mktemp("server"), port)
    (server.folder / "mlflow").mkdir()
    (server.folder / "mlflow" / "mlflow.db").write_bytes(empty_tracking.read_bytes())
    done = start_mlflow(*server.words)
    try:
        assert done.returncode == 0, done.stderr
        what = f"pid {server.processes()[0].pid}; database, log and pid in {server.folder}/mlflow"
        assert done.stdout == f"MLflow server on 127.0.0.1:{port}, {what}\n"
        assert {c.laddr.ip for c in psutil.net_connections() if c.laddr.port == port} == {"127.0.0.1"}
        yield server
    finally:
        server.end()


def test_the_server_is_started_once_and_serves_artifacts(server):
    again = start_mlflow(*server.words)
    assert (again.returncode, again.stdout) == (
        0,
        f"an MLflow server answers on port {server.port} already, pid {server.processes()[0].pid}\n",
    )
    assert len(server.processes()) == 1
    assert [server.answer_to(host) for host in ("127.0.0.1", "head.example.org", "10.1.2.3")] == [200] * 3
    assert server.answer_to("elsewhere.example.org") == 403
    client = client_of(server.uri)
    run = client.create_run(client.create_experiment("some"))
    assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
    client.log_text(run.info.run_id, "one", "a.txt")
    (stored,) = (server.folder / "artifacts").rglob("a.txt")
    assert stored.read_text() == "one"


def test_a_server_takes_a_run_and_its_death_does_not_end_the_training(server, said, capfd):
    run = client_of(server.uri).get_run(track(server.uri, said, record(1)))
    assert said == []
    assert run.info.status == "FINISHED"
    assert run.data.metrics["val_accuracy/exit_2"] == 0.7

    tracker = Tracker(server.uri, "trial", said.append)
    tracker.start(CONFIG, "orphan")
    tracker.log_start(START)
    server.end()
    began = time.monotonic()
    for number in (1, 2, 3):
        tracker.log_round(record(number))
    assert time.monotonic() - began < 1  # training does not wait
    tracker.finish(END)
    assert time.monotonic() - began < 30
    assert len(said) <= 2
    assert all("\n" not in line for line in said)
    assert said[-1].startswith(f"tracking: not delivered to {server.uri} (Connection refused): rounds 1-3, ")
    left = "results, tags, result table, accuracy figure, fusion weight figure, final status"
    assert said[-1].endswith(left)
    assert capfd.readouterr() == ("", "")


def test_a_server_that_can_not_start_says_why(tmp_path):
    broken = tmp_path / "bin" / "mlflow"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho no such backend store >&2\nexit 1\n")
    broken.chmod(0o755)
    (port,) = free_ports(1)
    done = start_mlflow(str(tmp_path), str(tmp_path / "artifacts"), str(port), first_in_path=broken.parent)
    assert done.returncode == 1
    assert done.stderr == f"the MLflow server does not answer on port {port}:\nno such backend store\n"

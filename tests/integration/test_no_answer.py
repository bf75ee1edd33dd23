"""Storages and clusters that refuse, or never answer: an error in time, not a wait without end."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from runs import LOCAL, TINY, UNTRACKED, free_port

from raygf.config.run import ResourceConfig
from raygf.errors import ResourceError

RunJob = Callable[..., Any]
HERE = (*LOCAL, *UNTRACKED, "--storage.name", "one")
SMALL = ("--rounds", "2", *TINY, "--storage.path", "runs")


def the_line(outcome: Any) -> str:
    """All that was said."""
    (line,) = [line for line in outcome.err.splitlines() if not line.startswith("note:")]
    assert line.startswith("error: ") and outcome.out == ""
    assert outcome.code == 2
    return str(line)


class Refuses(BaseHTTPRequestHandler):
    """A storage that knows nobody."""

    def answer(self) -> None:
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD = do_PUT = do_POST = answer

    def log_message(self, *args: Any) -> None:
        """Nothing."""


def test_s3_without_credentials(run_job: RunJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        where = f"s3://bucket/runs?endpoint_override=127.0.0.1:{server.server_port}&scheme=http&region=here"
        line = the_line(run_job("digits", *HERE, "--storage.path", where))
        server.shutdown()
    assert "storage.path: can't write to s3://bucket/runs/one?" in line
    assert "ACCESS_DENIED" in line and "set another --storage.path" in line


@pytest.mark.parametrize(
    "where", ["s3://me:geheim@bucket/runs?scheme=http&region=here", "gs://anonymous@bucket/runs?scheme=http"]
)
def test_a_storage_that_never_answers(where: str, run_job: RunJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left to itself Google's client tries for a quarter of an hour."""
    monkeypatch.setattr("raygf.storage.checkpoint.ANSWER_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        there = f"{where}&endpoint_override=127.0.0.1:{mute.getsockname()[1]}"
        outcome = run_job("digits", *HERE, "--storage.path", there)
    assert "no answer within 0.5 s" in the_line(outcome)
    assert "geheim" not in outcome.err


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("127.0.0.1:{port}", "no Ray cluster answers at 127.0.0.1:{port}: Connection refused; start it"),
        ("ray://127.0.0.1:{port}", "no Ray cluster answers at ray://127.0.0.1:{port}: Connection refused"),
        ("http://127.0.0.1:8265", "is where jobs are submitted: give it to ray job submit --address"),
        ("127.0.0.1:99999", "no Ray cluster answers at 127.0.0.1:99999"),
        ("head:port", "resources.address (or RAY_ADDRESS) = 'head:port': must be HOST:PORT of a cluster"),
        ("head", "must be HOST:PORT of a cluster, or local"),
    ],
)
def test_clusters_that_are_not_there(address: str, says: str) -> None:
    port = free_port()
    from raygf.on_ray.cluster import connect

    with pytest.raises(ResourceError) as caught:
        connect(ResourceConfig(address=address.format(port=port)))
    assert says.format(port=port) in str(caught.value)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "flag, says",
    [
        ("--resources.cpus-per-exit", "no node of the cluster can hold an exit actor (64 CPUs, 0 GPUs)"),
        ("--resources.driver-cpus", "no node of the cluster can hold the driver (64 CPUs, 0 GPUs)"),
    ],
    ids=["exit", "driver"],
)
def test_more_than_the_machine_has(cluster: str, run_job: RunJob, flag: str, says: str) -> None:
    started = time.monotonic()
    line = the_line(run_job("digits", *SMALL, flag, "64", "--tracking.enabled", "False"))
    assert says in line
    assert flag.removeprefix("--").replace("-", "_") in line
    assert time.monotonic() - started < 30


def test_program_on_a_cluster_that_is_not_there(call_job: RunJob) -> None:
    address = f"127.0.0.1:{free_port()}"
    flags = ("--tracking.enabled", "False", "--resources.address", address)
    outcome = call_job("digits", *SMALL, *flags, seconds=30)  # left to itself, Ray tries for many minutes
    assert f"no Ray cluster answers at {address}" in the_line(outcome)

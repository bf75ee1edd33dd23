"""Storages and clusters that refuse, or never answer: an error in time, not a wait without end."""

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from runs import LOCAL, SMALL, UNTRACKED, one_error

from raygf.config.run import ResourceConfig
from raygf.errors import ResourceError

FLAGS = (*SMALL, *LOCAL, *UNTRACKED, "--storage.name", "one")


class Refuses(BaseHTTPRequestHandler):
    """A storage that knows nobody."""

    def answer(self):
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD = do_PUT = do_POST = answer

    def log_message(self, *args):
        """Nothing."""


def test_s3_without_credentials(run_job, monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        where = f"s3://bucket/runs?endpoint_override=127.0.0.1:{server.server_port}&scheme=http&region=here"
        line = one_error(run_job("digits", *FLAGS, "--storage.path", where))
        server.shutdown()
    assert "storage.path: can't write to s3://bucket/runs/one?" in line
    assert "ACCESS_DENIED" in line and "set another --storage.path" in line


@pytest.mark.parametrize(
    "where", ["s3://me:geheim@bucket/runs?scheme=http&region=here", "gs://anonymous@bucket/runs?scheme=http"]
)
def test_a_storage_that_never_answers(where, run_job, monkeypatch):
    """Left to itself Google's client tries for a quarter of an hour."""
    monkeypatch.setattr("raygf.storage.checkpoint.ANSWER_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        there = f"{where}&endpoint_override=127.0.0.1:{mute.getsockname()[1]}"
        outcome = run_job("digits", *FLAGS, "--storage.path", there)
    one_error(outcome, "no answer within 0.5 s")
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
def test_clusters_that_are_not_there(address, says, closed_port):
    from raygf.on_ray.cluster import connect

    with pytest.raises(ResourceError) as caught:
        connect(ResourceConfig(address=address.format(port=closed_port)))
    assert says.format(port=closed_port) in str(caught.value)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            ("--resources.cpus-per-exit", "64"),
            "no node of the cluster can hold an exit actor (64 CPUs, 0 GPUs) … resources.cpus_per_exit",
        ),
        (
            ("--resources.driver-cpus", "64"),
            "can't hold the driver (64 CPUs, 0 GPUs each) … resources.driver_cpus",
        ),
        (
            ("--method", "sgd", "--resources.workers", "5"),
            "the nodes of the cluster can't hold 5 workers (1 CPUs, 0 GPUs each): lower resources.workers",
        ),
    ],
    ids=["exit", "driver", "workers"],
)
def test_more_than_the_machine_has(cluster, run_job, flags, says):
    one_error(run_job("digits", *SMALL, *UNTRACKED, "--storage.path", "runs", *flags), says)


def test_program_on_a_cluster_that_is_not_there(call_job, closed_port):
    address = f"127.0.0.1:{closed_port}"
    flags = (*SMALL, *UNTRACKED, "--resources.address", address)
    outcome = call_job("digits", *flags, seconds=30)  # left to itself, Ray tries for many minutes
    one_error(outcome, f"no Ray cluster answers at {address}")

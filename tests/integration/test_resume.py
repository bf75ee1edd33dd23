"""A run that was stopped, interrupted or terminated goes on to the bits of one that was not."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from runs import LOCAL, RESUME, TINY, raygf_actors, rounds_shown

from raygf.storage.checkpoint import CheckpointStore

RunJob = Callable[..., Any]

SMALL = ("--rounds", "4", *TINY)
LONGER = ("--rounds", "9", "--data.train-limit", "96", *TINY[2:])
RAY = ("--resources.actors", "2")


@pytest.mark.parametrize(
    "flags",
    [
        (),
        (
            *("--optim.carry-momentum", "True", "--fusion.batchnorm", "weighted"),
            *("--fusion.segments", "channel"),
        ),
    ],
    ids=["as it is", "with all that is carried"],
)
def test_stopped_run_goes_on_to_the_same_bits(
    run_job: RunJob, tracking_uri: str, straight_hash: Callable[..., str], flags: tuple[str, ...]
) -> None:
    """Under Ray: tests of interrupting, and of submitted jobs."""
    expected = straight_hash(*SMALL, *flags)
    mine = (
        *SMALL,
        *flags,
        *LOCAL,
        "--storage.path",
        "runs",
        "--tracking.uri",
        tracking_uri,
        "--storage.name",
        "one",
    )
    stopped = run_job("digits", *mine, "--stop-after", "2")
    assert stopped.code == 0, stopped.err
    assert stopped.result["rounds"] == 2
    assert rounds_shown(stopped.err) == ["1/4", "2/4"]
    resumed = run_job("digits", *mine, *RESUME)
    assert resumed.code == 0, resumed.err
    assert rounds_shown(resumed.err) == ["3/4", "4/4"]
    assert resumed.result["weights_sha256"] == expected != stopped.result["weights_sha256"]
    assert (resumed.result["rounds"], resumed.result["training_passes"]) == (4, 16)
    assert resumed.result["run_id"] == stopped.result["run_id"] != ""
    assert_one_run(tracking_uri, resumed.result)


def assert_one_run(uri: str, result: dict[str, Any]) -> None:
    """MLflow has a single run, finished, with every round once."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("raygf")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.status) == (result["run_id"], "FINISHED")
    assert run.data.tags["weights_sha256"] == result["weights_sha256"]
    steps = [point.step for point in client.get_metric_history(result["run_id"], "train_loss/exit_1")]
    assert sorted(steps) == [1, 2, 3, 4]


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_interrupted_run_stops_at_once_and_can_be_resumed(
    start_job: Callable[..., Any],
    run_job: RunJob,
    tracking_uri: str,
    straight_hash: Callable[..., str],
    tmp_path: Path,
) -> None:
    """Ctrl-C goes to the whole process group, with a Ray of its own; SIGTERM is a submitted job's."""
    expected = straight_hash(*LONGER)
    mine = (*LONGER, *RAY, "--storage.path", "runs", "--tracking.uri", tracking_uri, "--storage.name", "one")
    job = start_job("digits", *mine, "--resources.address", "local")
    before = []
    for line in job.stderr:
        before.append(line)
        if line.startswith("round 1/9"):
            break
    actors = raygf_actors(psutil.Process(job.pid))
    processes = psutil.Process(job.pid).children(recursive=True)
    assert len(actors) >= 2, before  # the driver and what it has of exit actors
    started = time.monotonic()
    os.killpg(job.pid, signal.SIGINT)
    out, err = job.communicate(timeout=60)
    seconds = time.monotonic() - started

    assert job.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == "interrupted; resume with --storage.resume True"
    assert "Traceback" not in err and "error:" not in err
    psutil.wait_procs([*processes, *actors], timeout=5)
    assert alive([*processes, *actors]) == []

    run_id, status = only_run(tracking_uri)
    assert status == "KILLED"
    store = CheckpointStore(str(tmp_path / "runs"), "one", 2)
    checkpoint, notes = store.newest()
    assert checkpoint is not None and notes == ()
    assert checkpoint.meta["run_id"] == run_id

    resumed = run_job("digits", *mine, *LOCAL, *RESUME)
    assert resumed.code == 0, resumed.err
    assert resumed.result["weights_sha256"] == expected
    assert resumed.result["run_id"] == run_id
    assert only_run(tracking_uri) == (run_id, "FINISHED")

    # Asked last, so that a failure here says that all of the above held.
    assert checkpoint.round < 9, f"training went on to its end after the signal, for {seconds:.1f} s"
    assert seconds < 15
    assert rounds_tracked(tracking_uri, run_id) == set(range(1, 10))  # also one stored but not yet logged


def only_run(uri: str) -> tuple[str, str]:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("raygf")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return run.info.run_id, run.info.status


def rounds_tracked(uri: str, run_id: str) -> set[int]:
    from mlflow import MlflowClient

    return {point.step for point in MlflowClient(uri).get_metric_history(run_id, "train_loss/exit_1")}

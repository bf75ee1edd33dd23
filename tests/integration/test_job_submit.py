"""Jobs through ``ray job submit``, on a head node of their own whose Python does not have raygf."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray_head import Head

from raygf.checkpoint import CheckpointStore, load_checkpoint

RunJob = Callable[..., Any]

SMALL = (
    *("--data.train-limit", "48", "--data.val", "50", "--model.msdnet.base", "1"),
    *("--model.msdnet.step", "1", "--model.msdnet.channels", "8"),
)
LOCAL = ("--resources.executor", "local", "--tracking.enabled", "False", "--storage.path", "local")


@pytest.fixture
def straight_hash(run_job: RunJob) -> Callable[[str], str]:
    """The weights after so many rounds, undisturbed, in one process."""

    def straight(rounds: str) -> str:
        outcome = run_job("digits", "--rounds", rounds, *SMALL, *LOCAL)
        assert outcome.code == 0, outcome.err
        return str(outcome.result["weights_sha256"])

    return straight


def only_result(logs: str) -> dict[str, Any]:
    """The job's one line of JSON among what ``ray job`` shows."""
    (line,) = [line for line in logs.splitlines() if line.startswith('{"run_id"')]
    result: dict[str, Any] = json.loads(line)
    return result


def rounds_shown(logs: str) -> list[str]:
    return [line.split()[1] for line in logs.splitlines() if line.startswith("round ")]


def tracked_status(uri: str, run_id: str) -> str:
    from mlflow import MlflowClient

    return str(MlflowClient(uri).get_run(run_id).info.status)


def tracked_by_environment(uri: str) -> tuple[str, ...]:
    """Options of ``ray job submit`` that say where to track without a flag of the job's."""
    return ("--runtime-env-json", json.dumps({"env_vars": {"MLFLOW_TRACKING_URI": uri}}))


def test_submitted_job_gives_the_bits_of_a_local_one(
    head: Head, repository: Path, straight_hash: Callable[[str], str], tracking_uri: str, tmp_path: Path
) -> None:
    storage = ("--storage.path", str(tmp_path / "runs"), "--storage.name", "one")
    flags = ("--rounds", "2", *SMALL, "--resources.actors", "2", *storage, "--tracking.uri", tracking_uri)
    done = head.submit(repository, "python", "jobs/digits.py", *flags)
    logs = done.stdout + done.stderr
    assert done.returncode == 0, logs
    result = only_result(logs)
    assert result["weights_sha256"] == straight_hash("2")
    assert result["checkpoint"] == str(tmp_path / "runs" / "one" / "round-000002.npz")
    assert load_checkpoint(result["checkpoint"]).network.sha256() == result["weights_sha256"]
    assert rounds_shown(logs) == ["1/2", "2/2"]
    assert "note: cluster " in logs  # joined the one it was submitted to, and started none
    assert "Traceback" not in logs
    assert "succeeded" in logs
    assert tracked_status(tracking_uri, result["run_id"]) == "FINISHED"


def test_submitted_job_with_a_bad_flag_fails(head: Head, repository: Path) -> None:
    done = head.submit(repository, "python", "jobs/digits.py", "--rounds", "0")
    logs = done.stdout + done.stderr
    assert done.returncode == 1, logs
    errors = {
        line for line in logs.splitlines() if line.startswith("error:")
    }  # Ray shows the log's end twice
    assert errors == {"error: rounds = 0: must be a whole number of at least 1"}
    assert '{"run_id"' not in logs
    assert "failed with exit code 2" in logs


def test_stopped_job_can_be_resumed_to_the_same_bits(
    head: Head, repository: Path, straight_hash: Callable[[str], str], tracking_uri: str, tmp_path: Path
) -> None:
    storage = ("--storage.path", str(tmp_path / "runs"), "--storage.name", "one")
    command = ("python", "jobs/digits.py", "--rounds", "30", *SMALL, "--resources.actors", "2", *storage)
    tracked = tracked_by_environment(tracking_uri)
    started = head.submit(
        repository, *command, options=(*tracked, "--no-wait", "--submission-id", "to-be-stopped")
    )
    assert started.returncode == 0, started.stdout + started.stderr
    store = CheckpointStore(str(tmp_path / "runs"), "one", 2)
    wait_until(lambda: store.rounds() != [], 90)
    stopped = head.job("stop", "to-be-stopped")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert head.actors_left() == []

    logs = head.job("logs", "to-be-stopped").stdout
    assert "interrupted; go on with --storage.resume True" in logs.splitlines()
    assert '{"run_id"' not in logs and "Traceback" not in logs
    checkpoint, notes = store.newest()
    assert checkpoint is not None and notes == ()
    assert 1 <= checkpoint.round < 30
    assert tracked_status(tracking_uri, checkpoint.meta["run_id"]) == "KILLED"

    done = head.submit(repository, *command, "--storage.resume", "True", options=tracked)
    logs = done.stdout + done.stderr
    assert done.returncode == 0, logs
    assert rounds_shown(logs)[0] == f"{checkpoint.round + 1}/30"
    result = only_result(logs)
    assert result["weights_sha256"] == straight_hash("30")
    assert result["run_id"] == checkpoint.meta["run_id"]
    assert tracked_status(tracking_uri, result["run_id"]) == "FINISHED"


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, f"not within {seconds:.0f} s"
        time.sleep(0.05)


def test_no_actor_is_left_when_jobs_have_ended(head: Head) -> None:
    assert head.actors_left() == []

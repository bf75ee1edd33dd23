"""Jobs and sweeps through ``ray job submit``, on a head node whose Python does not have raygf."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray_head import Head
from runs import TINY, rounds_shown, wait_until
from sweep_runs import table, tracked_sweep

from raygf.storage.checkpoint import CheckpointStore, load_checkpoint

RunJob = Callable[..., Any]


def only_result(logs: str) -> dict[str, Any]:
    """The job's one line of JSON among what ``ray job`` shows."""
    (line,) = [line for line in logs.splitlines() if line.startswith('{"run_id"')]
    result: dict[str, Any] = json.loads(line)
    return result


def tracked_status(uri: str, run_id: str) -> str:
    from mlflow import MlflowClient

    return str(MlflowClient(uri).get_run(run_id).info.status)


def tracked_by_environment(uri: str) -> tuple[str, ...]:
    """Options of ``ray job submit`` that say where to track without a flag of the job's."""
    return ("--runtime-env-json", json.dumps({"env_vars": {"MLFLOW_TRACKING_URI": uri}}))


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
    head: Head, repository: Path, straight_hash: Callable[..., str], tracking_uri: str, tmp_path: Path
) -> None:
    storage = ("--storage.path", str(tmp_path / "runs"), "--storage.name", "one")
    command = ("python", "jobs/digits.py", "--rounds", "16", *TINY, "--resources.actors", "2", *storage)
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
    assert "interrupted; resume with --storage.resume True" in logs.splitlines()
    assert '{"run_id"' not in logs and "Traceback" not in logs
    checkpoint, notes = store.newest()
    assert checkpoint is not None and notes == ()
    assert 1 <= checkpoint.round < 16
    assert tracked_status(tracking_uri, checkpoint.meta["run_id"]) == "KILLED"

    done = head.submit(repository, *command, "--storage.resume", "True", options=tracked)
    logs = done.stdout + done.stderr
    assert done.returncode == 0, logs
    assert rounds_shown(logs)[0] == f"{checkpoint.round + 1}/16"
    result = only_result(logs)
    assert result["weights_sha256"] == straight_hash("--rounds", "16", *TINY)
    assert result["run_id"] == checkpoint.meta["run_id"]
    assert result["checkpoint"] == str(tmp_path / "runs" / "one" / "round-000016.npz")
    assert load_checkpoint(result["checkpoint"]).network.sha256() == result["weights_sha256"]
    assert "note: cluster " in logs  # joined the one it was submitted to, and started none
    assert "succeeded" in logs and "Traceback" not in logs
    assert tracked_status(tracking_uri, result["run_id"]) == "FINISHED"


def test_submitted_sweep_tracks_every_trial(
    head: Head, repository: Path, tracking_uri: str, tmp_path: Path
) -> None:
    storage = ("--storage.path", str(tmp_path / "runs"), "--storage.name", "sweep")
    started = head.submit(
        *(repository, "python", "jobs/sweep.py", "--space", "method", "--trials", "2"),
        *("--concurrent", "2", "--cpus-per-exit", "0.5", "--resources.driver-cpus", "0.5"),
        *("--resources.actors", "1", "--rounds", "4", "--grace", "4"),
        *(*TINY, *storage, "--tracking.uri", tracking_uri),
        options=("--no-wait", "--submission-id", "sweep"),
    )
    assert started.returncode == 0, started.stdout + started.stderr
    results = tmp_path / "runs" / "sweep" / "raygf" / "results.csv"
    wait_until(lambda: results.exists() and tracked_sweep(tracking_uri)[0].status != "RUNNING", 240)
    wait_until(lambda: "succeeded" in head.job("status", "sweep").stdout, 30)
    logs = head.job("logs", "sweep").stdout
    assert "Traceback" not in logs
    assert "note: cluster " in logs  # joined the one it was submitted to, and started none
    (line,) = [line for line in logs.splitlines() if line.startswith('{"best_trial"')]
    result = json.loads(line)
    assert (result["trials"], result["failed"], result["results"]) == (2, 0, str(results))
    parent, trials = tracked_sweep(tracking_uri)
    assert (parent.id, parent.status) == (result["mlflow_run_id"], "FINISHED")
    assert [run.status for run in trials.values()] == ["FINISHED"] * 2
    lines = table(results)
    assert lines.keys() == trials.keys()
    assert len({row["method"] for row in lines.values()}) == 2
    for name, row in lines.items():
        assert row["rounds"] == str(max(trials[name].rounds))
        assert (row["status"] == "stopped early") is ("raygf.stopped_at_round" in trials[name].tags)
        assert float(row["val_accuracy/average"]) <= result["best_score"]
        assert any(name in text and row["status"] in text for text in logs.splitlines())
    best = lines[result["best_trial"]]
    assert f"--method {best['method']} --optim.lr {best['optim.lr']}" in logs
    assert head.actors_left() == []

"""A sweep through ``ray job submit``, on a head node whose Python does not have raygf."""

from __future__ import annotations

import json
from pathlib import Path

from ray_head import Head
from sweep_runs import TINY, table, tracked_sweep, wait_until


def test_submitted_sweep_tracks_every_trial(
    head: Head, repository: Path, tracking_uri: str, tmp_path: Path
) -> None:
    storage = ("--storage.path", str(tmp_path / "runs"), "--storage.name", "sweep")
    started = head.submit(
        *(repository, "python", "jobs/sweep.py", "--space", "method", "--trials", "4"),
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
    assert (result["trials"], result["failed"], result["results"]) == (4, 0, str(results))
    parent, trials = tracked_sweep(tracking_uri)
    assert (parent.id, parent.status) == (result["mlflow_run_id"], "FINISHED")
    assert [run.status for run in trials.values()] == ["FINISHED"] * 4
    lines = table(results)
    assert lines.keys() == trials.keys()
    assert len({row["method"] for row in lines.values()}) == 4
    for name, row in lines.items():
        assert row["rounds"] == str(max(trials[name].rounds))
        assert (row["status"] == "stopped early") is ("raygf.stopped_at_round" in trials[name].tags)
        assert float(row["val_accuracy/average"]) <= result["best_score"]
        assert any(name in text and row["status"] in text for text in logs.splitlines())
    best = lines[result["best_trial"]]
    assert f"--method {best['method']} --optim.lr {best['optim.lr']}" in logs
    assert head.actors_left() == []

"""Jobs and sweeps through ``ray job submit``, on a head node whose Python does not have raygf."""

import json
import shlex

import pytest
from runs import LOCAL, REPOSITORY, RESUME, SMALL, table, tracked_runs, tracked_sweep, wait_until

from raygf.storage.checkpoint import CheckpointStore, load_checkpoint


def start(head, name, *command, variables=()):
    """Submit the command as the job ``name``, as ``ray job submit`` does, and don't wait for it."""
    environment = {"working_dir": str(REPOSITORY), "env_vars": dict(variables)}
    head.client().submit_job(
        entrypoint=shlex.join(["python", *command]), submission_id=name, runtime_env=environment
    )


def only_result(logs, first):
    """The job's one line of JSON among what ``ray job`` shows."""
    (line,) = [line for line in logs.splitlines() if line.startswith(f'{{"{first}"')]
    return dict(json.loads(line))


@pytest.fixture(scope="module")
def refused(head):
    """A job with a bad flag, which comes to its end while others run."""
    start(head, "refused", "jobs/digits.py", "--rounds", "0")
    return "refused"


def test_stopped_job_can_be_resumed_to_the_bits_of_a_local_run(
    head, refused, run_job, straight_hash, tracking_uri, tmp_path
):
    """Resumed here, without Ray."""
    storage = ("--storage.path", str(tmp_path / "runs"), "--storage.name", "one")
    command = ("jobs/digits.py", "--rounds", "16", *SMALL, "--resources.actors", "1", *storage)
    variables = {"MLFLOW_TRACKING_URI": tracking_uri, "RAYGF_COMMIT": "0123abc"}  # without a flag of the job
    start(head, "to-be-stopped", *command, variables=variables)
    store = CheckpointStore(str(tmp_path / "runs"), "one", 2)
    wait_until(lambda: store.rounds() != [])
    assert head.client().stop_job("to-be-stopped")
    status, _, logs = head.ended("to-be-stopped")
    assert head.actors_left() == []
    assert status == "STOPPED"
    (line,) = {line for line in logs.splitlines() if line.startswith("interrupted; ")}
    assert line.endswith(" --storage.resume True")
    assert '{"run_id"' not in logs and "Traceback" not in logs
    checkpoint, notes = store.newest()
    assert checkpoint is not None and notes == ()
    assert 1 <= checkpoint.round < 16
    (killed,) = tracked_runs(tracking_uri)
    assert (killed.id, killed.status) == (checkpoint.meta["run_id"], "KILLED")
    assert killed.tags["ray.submission_id"] == "to-be-stopped"
    assert killed.tags["mlflow.source.git.commit"] == "0123abc"

    where = (*command[1:], *LOCAL, *RESUME, "--tracking.uri", tracking_uri)
    resumed = run_job("digits", *where)
    assert resumed.rounds[0] == f"{checkpoint.round + 1}/16"
    result = resumed.result
    assert result["weights_sha256"] == straight_hash("--rounds", "16", *SMALL)
    assert result["checkpoint"] == str(tmp_path / "runs" / "one" / "round-000016.npz")
    assert load_checkpoint(result["checkpoint"]).network.sha256() == result["weights_sha256"]
    assert result["run_id"] == checkpoint.meta["run_id"]
    assert [(run.id, run.status) for run in tracked_runs(tracking_uri)] == [(result["run_id"], "FINISHED")]


SPACE = '''"""Two methods without exit actors: three processes less to wait for."""
from raygf.sweeps import Space


def two(run):
    return Space(variants=[{"method": "sgd"}, {"method": "ge"}])
'''


def test_submitted_sweep_tracks_every_trial(head, tracking_uri, tmp_path):
    """As people submit it: by ``ray job submit``, followed to its end."""
    (tmp_path / "two.py").write_text(SPACE)
    done = head.submit(
        *(REPOSITORY, "python", "jobs/sweep.py", "--space", str(tmp_path / "two.py"), "--rounds", "2"),
        *("--trials", "2", "--concurrent", "2", *SMALL, "--tracking.uri", tracking_uri),
        *("--storage.path", str(tmp_path / "runs"), "--storage.name", "sweep"),
    )
    results = tmp_path / "runs" / "sweep" / "raygf" / "results.csv"
    logs = done.stdout + done.stderr
    assert done.returncode == 0, logs
    assert "succeeded" in logs and "Traceback" not in logs
    assert "note: cluster " in logs  # joined the one it was submitted to, and started none
    result = only_result(logs, "best_trial")
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
        assert any(row["name"] in text and row["status"] in text for text in logs.splitlines())
    best = lines[result["best_trial"]]
    assert f"--method {best['method']}" in logs
    assert head.actors_left() == []


def test_submitted_job_with_a_bad_flag_fails(head, refused):
    status, message, logs = head.ended(refused)
    assert (status, "failed with exit code 2" in message) == ("FAILED", True)
    (error,) = [line for line in logs.splitlines() if line.startswith("error:")]
    assert error.startswith("error: rounds = 0: must be a whole number of at least 1")
    assert '{"run_id"' not in logs and "Traceback" not in logs

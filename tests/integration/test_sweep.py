"""Sweeps from start to end: interrupted, killed and resumed; with trials that crash, fail and are cloned."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import TINY, ray_processes, raygf_actors, wait_until
from sweep_runs import checkpoints, table, tracked_sweep

from raygf.config.run import StorageConfig
from raygf.records import read_history
from raygf.storage.checkpoint import load_checkpoint
from raygf.sweep.plan import SweepFolder

RunJob = Callable[..., Any]
StartJob = Callable[..., "subprocess.Popen[str]"]

KEYS = ("best_trial", "best_config", "best_score", "trials", "failed", "mlflow_run_id", "results")


def sweep_flags(tmp_path: Path, uri: str, *flags: str) -> tuple[str, ...]:
    storage = ("--storage.path", str(tmp_path / "runs"), "--storage.name", "sweep")
    return (*storage, "--tracking.uri", uri, *TINY, *flags)


def test_interrupted_and_killed_sweep_is_resumed_to_its_end(
    cluster: str,
    start_job: StartJob,
    run_job: RunJob,
    straight_hash: Callable[..., str],
    tracking_uri: str,
    tmp_path: Path,
) -> None:
    flags = sweep_flags(tmp_path, tracking_uri, "--rounds", "14", "--resources.address", cluster)
    search = ("--trials", "2", "--search", "optuna", "--scheduler", "none")
    search += ("--concurrent", "1", "--resources.actors", "1")
    sweep = tmp_path / "runs" / "sweep"
    first = start_job("sweep", *flags, *search)
    wait_until(lambda: checkpoints(sweep), 90)
    first.send_signal(signal.SIGTERM)
    out, err = first.communicate(timeout=60)
    assert (first.returncode, out) == (130, ""), err
    where = f"--storage.path {tmp_path / 'runs'} --storage.name sweep"
    assert err.splitlines()[-1] == f"interrupted; resume with --resume {where}"
    parent, trials = tracked_sweep(tracking_uri)
    assert {run.status for run in (parent, *trials.values())} == {"KILLED"}

    second = start_job("sweep", *flags, "--resume")  # nothing else need be said again
    before = checkpoints(sweep)
    wait_until(lambda: sum(checkpoints(sweep).values()) >= sum(before.values()) + 4, 90)
    second.kill()
    second.communicate(timeout=60)
    statuses = {run.status for run in tracked_sweep(tracking_uri)[1].values()}
    assert statuses <= {"RUNNING", "FINISHED", "KILLED"}

    outcome = run_job("sweep", *flags, *search, "--resume")  # but it may be
    assert outcome.code == 0, outcome.err
    result = outcome.result
    assert tuple(result) == KEYS
    assert (result["trials"], result["failed"]) == (2, 0)
    assert_all_is_told(result, tracking_uri)
    values = [word for name, value in result["best_config"].items() for word in (f"--{name}", str(value))]
    best = tracked_sweep(tracking_uri)[1][result["best_trial"]]
    assert best.tags["weights_sha256"] == straight_hash("--rounds", "14", *TINY, *values)

    again = run_job("sweep", *flags, "--resume")
    assert (again.code, again.result) == (0, result), again.err
    assert not [line for line in again.err.splitlines() if line.startswith("note: trial ")]
    taken = run_job("sweep", *flags, *search)
    assert taken.code == 2
    assert "holds a sweep already: resume it with --resume" in taken.err.splitlines()[-1]
    wait_until(lambda: not [*raygf_actors(), *ray_processes("run_trial"), *ray_processes("ImplicitFunc")], 20)


def assert_all_is_told(result: dict[str, Any], uri: str) -> None:
    """MLflow, the table, the checkpoints and the last line say the same of two trials that are through."""
    from mlflow import MlflowClient

    parent, trials = tracked_sweep(uri)
    assert (parent.id, parent.status) == (result["mlflow_run_id"], "FINISHED")
    assert "raygf.failure" not in parent.tags
    lines = table(result["results"])
    assert lines.keys() == trials.keys() and len(lines) == 2
    for name, line in lines.items():
        run, checkpoint = trials[name], load_checkpoint(line["checkpoint"])
        assert (run.status, run.rounds) == ("FINISHED", list(range(1, 15))), name
        assert (line["status"], line["rounds"], line["training_passes"]) == ("finished", "14", "56")
        assert line["mlflow_run_id"] == run.id == checkpoint.meta["run_id"]
        assert float(line["test_accuracy/average"]) == pytest.approx(run.metrics["test_accuracy/average"])
        assert checkpoint.network.sha256() == run.tags["weights_sha256"]
        assert run.tags["checkpoint"] == line["checkpoint"]
    best = lines[result["best_trial"]]
    assert result["best_score"] == max(float(line["val_accuracy/average"]) for line in lines.values())
    assert float(best["val_accuracy/average"]) == result["best_score"]
    assert {name: float(best[name]) for name in result["best_config"]} == result["best_config"]
    assert parent.tags["best.fusion.lr"] == best["fusion.lr"]
    assert parent.params["sweep.budget"] == "56" and parent.params["fusion.lr"] == "swept"
    assert "### raygf sweep" in parent.tags["mlflow.note.content"]
    client = MlflowClient(uri)
    names = {file.path for file in client.list_artifacts(parent.id)}
    assert names == {"best_config.yaml", "config.yaml", "results.csv", "figures"}
    assert [file.path for file in client.list_artifacts(parent.id, "figures")] == ["figures/objective.png"]
    stored = yaml.safe_load((Path(result["results"]).parent / "best_config.yaml").read_text())
    assert stored["fusion"]["lr"] == result["best_config"]["fusion.lr"]


UNEQUAL = '''"""Two trials that are well, one whose weights become infinite, and one that hardly learns."""
from raygf.sweep import Space


def unequal(run):
    return Space(variants=[{"optim.lr": lr} for lr in (0.1, 0.05, 1e9, 1e-6)])
'''


class Killer(threading.Thread):
    """Kills the first trial's driver once, when it has a checkpoint, and the second's whenever it starts."""

    def __init__(self, sweep: Path) -> None:
        super().__init__(daemon=True)
        self.sweep = sweep
        self.folder = SweepFolder(StorageConfig(str(sweep.parent), sweep.name))
        self.killed: list[int] = []
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.02):
            started = len(self.folder.read_trials()) if self.sweep.is_dir() else 0
            once = started == 1 and not self.killed and max(checkpoints(self.sweep).values(), default=0) >= 3
            if once or started == 2:
                for driver in ray_processes("ray::DriverActor"):
                    if driver.pid not in self.killed:
                        self.killed.append(driver.pid)
                        driver.kill()


def test_trials_that_crash_fail_or_lag_behind_do_not_disturb_the_others(
    cluster: str, run_job: RunJob, straight_hash: Callable[..., str], tracking_uri: str, tmp_path: Path
) -> None:
    (tmp_path / "unequal.py").write_text(UNEQUAL)
    flags = sweep_flags(tmp_path, tracking_uri, "--method", "sgd", "--rounds", "16", "--grace", "6")
    retries = ("--max-failures", "1", "--resources.max-driver-restarts", "0")
    killer = Killer(tmp_path / "runs" / "sweep")
    killer.start()
    outcome = run_job(
        "sweep", "--space", "unequal.py", "--search", "grid", "--concurrent", "1", *flags, *retries
    )
    killer.over.set()
    assert outcome.code == 0, outcome.err
    assert len(killer.killed) >= 3, outcome.err
    assert (outcome.result["trials"], outcome.result["failed"]) == (4, 2)
    lines = table(outcome.result["results"])
    crashed, lost, diverged, lagging = lines.values()
    assert outcome.result["best_trial"] == crashed["trial"]
    parent, trials = tracked_sweep(tracking_uri)
    assert parent.status == "FINISHED"
    runs = [trials[line["trial"]] for line in lines.values()]
    assert [run.status for run in runs] == ["FINISHED", "FAILED", "FAILED", "FINISHED"]
    statuses = [line["status"] for line in lines.values()]
    assert statuses == ["finished", "failed", "failed", "stopped early"]

    assert runs[0].rounds == list(range(1, 17))
    straight = straight_hash("--method", "sgd", "--rounds", "16", "--optim.lr", "0.1")
    assert runs[0].tags["weights_sha256"] == straight
    tries = [line for line in outcome.err.splitlines() if "crashed, trying again (1 of 1)" in line]
    assert [line.split()[2] for line in tries] == [crashed["trial"], lost["trial"]]

    assert "the driver was lost" in lost["cause"]
    assert "round 1" in diverged["cause"]
    for line, run in ((lost, runs[1]), (diverged, runs[2])):
        assert run.tags["raygf.failure"] == line["cause"]
        assert f"note: trial {line['trial']} failed: {line['cause']}" in outcome.err

    assert (lagging["rounds"], lagging["test_accuracy/average"]) == ("6", "")
    assert (runs[3].tags["raygf.stopped_at_round"], runs[3].tags["raygf.stopped_by"]) == ("6", "asha")
    assert runs[3].rounds == list(range(1, 7))
    assert not [name for name in runs[3].metrics if name.startswith("test_")]


def test_sweep_without_a_trial_that_succeeds_fails(
    cluster: str, run_job: RunJob, tracking_uri: str, tmp_path: Path
) -> None:
    space = 'def nothing(run):\n    return Space(variants=[{"optim.lr": 1e9}, {"optim.lr": 1e12}])\n'
    (tmp_path / "nothing.py").write_text(f"from raygf.sweep import Space\n\n{space}")
    flags = sweep_flags(tmp_path, tracking_uri, "--method", "sgd", "--rounds", "2")
    outcome = run_job("sweep", "--space", "nothing.py", "--search", "grid", "--concurrent", "2", *flags)
    assert (outcome.code, outcome.out) == (1, "")
    (error,) = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert error.startswith("error: none of 2 trials succeeded: trial ")
    parent, trials = tracked_sweep(tracking_uri)
    assert {run.status for run in (parent, *trials.values())} == {"FAILED"}
    assert parent.tags["raygf.failure"] == error.removeprefix("error: ")
    for name, run in trials.items():
        assert f"trial {name} failed: {run.tags['raygf.failure']}" in error
    assert table(tmp_path / "runs" / "sweep" / "raygf" / "results.csv").keys() == trials.keys()


def test_population_goes_on_from_the_checkpoints_of_its_best(
    cluster: str, run_job: RunJob, tracking_uri: str, tmp_path: Path
) -> None:
    flags = sweep_flags(tmp_path, tracking_uri, "--rounds", "6", "--resources.actors", "1")
    outcome = run_job(
        "sweep", *flags, "--trials", "2", "--scheduler", "pbt", "--grace", "12", "--concurrent", "2"
    )
    assert outcome.code == 0, outcome.err
    told = "goes on from another's checkpoint, with"
    (clone,) = {line.split()[2] for line in outcome.err.splitlines() if told in line}
    parent, trials = tracked_sweep(tracking_uri)
    assert [run.status for run in (parent, *trials.values())] == ["FINISHED"] * 3
    assert [run.rounds for run in trials.values()] == [list(range(1, 7))] * 2
    lines = table(outcome.result["results"])
    run, values = trials[clone], lines[clone]
    changed = [name for name in run.tags if name.startswith("raygf.values_from_round_")]
    assert changed == ["raygf.values_from_round_4"]
    assert f"--fusion.lr {values['fusion.lr']} " in run.tags[changed[0]]
    assert run.params["fusion.lr"] != values["fusion.lr"]  # what it began with
    assert run.metrics["fusion_lr"] == pytest.approx(float(values["fusion.lr"]) * 0.01)  # two milestones on
    meta = load_checkpoint(values["checkpoint"]).meta
    assert meta["config"]["fusion"]["lr"] == float(values["fusion.lr"])
    assert meta["run_id"] == run.id
    (theirs,) = lines.keys() - {clone}
    histories = [
        read_history(load_checkpoint(lines[name]["checkpoint"]).meta)[:3] for name in (clone, theirs)
    ]
    assert histories[0] == histories[1]

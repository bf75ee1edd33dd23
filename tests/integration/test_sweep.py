"""Sweeps from start to end: interrupted, killed and resumed; with trials that crash and fail."""

import gc
import json
import os
import signal
import threading
from pathlib import Path

import pytest
import yaml
from runs import SMALL, UNTRACKED, one_error, raygf_actors, table, tracked_sweep, wait_until

from raygf.config.run import StorageConfig
from raygf.storage.checkpoint import load_checkpoint
from raygf.sweeps.plan import SweepFolder

KEYS = ("best_trial", "best_config", "best_score", "trials", "failed", "mlflow_run_id", "results")
SPACES = '''"""Joint SGD, whose trials are two processes each: Tune's and the driver."""
from ray import tune
from raygf.sweeps import Space


def rates(run):
    return Space({"optim.lr": tune.loguniform(0.05, 0.2)})


def unequal(run):
    """One trial that is well, one whose weights become infinite, and one that hardly learns."""
    return Space(variants=[{"optim.lr": lr} for lr in (0.1, 1e3, 1e-6)])
'''


@pytest.fixture
def sweep_of(tmp_path, tracking_uri):
    """Flags of a sweep of the space with this name, tracked, in ``runs/sweep``."""
    (tmp_path / "spaces.py").write_text(SPACES)
    storage = ("--storage.path", str(tmp_path / "runs"), "--storage.name", "sweep")

    def flags(space, *more):
        return ("--space", f"spaces:{space}", *storage, "--tracking.uri", tracking_uri, *SMALL, *more)

    return flags


def checkpoints(sweep):
    """The number of the newest checkpoint of every trial that has one."""
    found: dict[str, int] = {}
    for file in sweep.glob("*/checkpoint_*/checkpoint.npz"):
        trial, number = file.parts[-3], int(file.parts[-2].rpartition("_")[2])
        found[trial] = max(number, found.get(trial, 0))
    return found


ROUNDS = 16


def test_interrupted_and_killed_sweep_is_resumed_to_its_end(
    cluster, start_job, run_job, straight_hash, sweep_of, tracking_uri, tmp_path
):
    rounds = ("--method", "sgd", "--rounds", str(ROUNDS))
    flags = sweep_of("rates", *rounds, "--trials", "2", "--scheduler", "none")
    flags += ("--concurrent", "1", "--resources.address", cluster)
    sweep = tmp_path / "runs" / "sweep"
    first = interrupted(run_job, sweep, flags)
    assert (first.code, first.out) == (130, ""), first.err
    assert first.err.splitlines()[-1].startswith("interrupted; ")
    where = ("--storage.path", str(tmp_path / "runs"), "--storage.name", "sweep")
    assert first.err.splitlines()[-1].endswith(f" {' '.join(where)} --resume True")
    parent, trials = tracked_sweep(tracking_uri)
    assert {run.status for run in (parent, *trials.values())} == {"KILLED"}

    tracked = ("--tracking.uri", tracking_uri, "--resources.address", cluster)
    second = start_job("sweep", *where, *tracked, "--resume")  # nothing else need be said again
    before = checkpoints(sweep)
    wait_until(lambda: sum(checkpoints(sweep).values()) >= sum(before.values()) + 4)
    second.kill()
    second.communicate(timeout=60)
    statuses = {run.status for run in tracked_sweep(tracking_uri)[1].values()}
    assert statuses <= {"RUNNING", "FINISHED", "KILLED"}

    outcome = run_job("sweep", *flags, "--resume")  # but it may be
    result = outcome.result
    assert tuple(result) == KEYS
    assert (result["trials"], result["failed"]) == (2, 0)
    assert_all_agree(result, tracking_uri)
    values = [word for name, value in result["best_config"].items() for word in (f"--{name}", str(value))]
    best = tracked_sweep(tracking_uri)[1][result["best_trial"]]
    assert best.tags["weights_sha256"] == straight_hash(*SMALL, *rounds, *values)

    one_error(run_job("sweep", *flags), "holds a sweep already: … --resume")
    wait_until(lambda: not raygf_actors(), 20)


def interrupted(run_job, sweep, flags):
    """The sweep in this process, which gets SIGTERM once a trial has a checkpoint."""
    over = threading.Event()

    def terminate():
        wait_until(lambda: checkpoints(sweep) or over.is_set())
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # should the sweep end before
    thread = threading.Thread(target=terminate)
    thread.start()
    try:
        return run_job("sweep", *flags)
    finally:
        over.set()
        thread.join()
        signal.signal(signal.SIGTERM, before)
        gc.collect()  # Ray ends the actors of what is forgotten; a program's end with it


def assert_all_agree(result, uri):
    """MLflow, the table, the checkpoints and the last line have the same of two trials that are through."""
    from mlflow import MlflowClient

    parent, trials = tracked_sweep(uri)
    assert (parent.id, parent.status) == (result["mlflow_run_id"], "FINISHED")
    assert "raygf.failure" not in parent.tags
    lines = table(result["results"])
    assert lines.keys() == trials.keys() and len(lines) == 2
    for name, line in lines.items():
        run, checkpoint = trials[name], load_checkpoint(line["checkpoint"])
        assert (run.status, run.rounds) == ("FINISHED", list(range(1, ROUNDS + 1))), name
        assert (line["status"], line["rounds"]) == ("finished", str(ROUNDS))
        assert float(line["training_passes"]) == ROUNDS
        assert line["mlflow_run_id"] == run.id == checkpoint.meta["run_id"]
        assert float(line["test_accuracy/average"]) == pytest.approx(run.metrics["test_accuracy/average"])
        assert checkpoint.network.sha256() == run.tags["weights_sha256"]
        assert run.tags["checkpoint"] == line["checkpoint"]
    best = lines[result["best_trial"]]
    assert result["best_score"] == max(float(line["val_accuracy/average"]) for line in lines.values())
    assert float(best["val_accuracy/average"]) == result["best_score"]
    assert {name: float(best[name]) for name in result["best_config"]} == result["best_config"]
    assert parent.tags["best.optim.lr"] == best["optim.lr"]
    assert float(parent.params["sweep.budget"]) == ROUNDS
    assert parent.params["optim.lr"] == "swept: log-uniform, 0.05 to 0.2"
    assert "### raygf sweep" in parent.tags["mlflow.note.content"]
    client = MlflowClient(uri)
    names = {file.path for file in client.list_artifacts(parent.id)}
    assert names == {"best_config.yaml", "config.yaml", "results.csv", "figures"}
    assert [file.path for file in client.list_artifacts(parent.id, "figures")] == ["figures/objective.png"]
    assert {run.name for run in trials.values()} == {line["name"] for line in lines.values()}
    summary = json.loads(Path(best["checkpoint"]).with_name("summary.json").read_text())
    assert summary["weights_sha256"] == trials[result["best_trial"]].tags["weights_sha256"]
    sweep = Path(result["results"]).parents[1]
    assert {len(list(sweep.glob(f"{name}/checkpoint_*"))) for name in lines} == {5}
    stored = yaml.safe_load((sweep / "raygf" / "best_config.yaml").read_text())
    assert stored["optim"]["lr"] == result["best_config"]["optim.lr"]


class Killer(threading.Thread):
    """Kills the first trial's driver once, when it has a checkpoint."""

    def __init__(self, sweep):
        super().__init__(daemon=True)
        self.sweep = sweep
        self.folder = SweepFolder(StorageConfig(str(sweep.parent), sweep.name))
        self.over = threading.Event()
        self.killed = 0

    def run(self):
        while not self.killed and not self.over.wait(0.02):
            started = len(self.folder.read_trials()) if self.sweep.is_dir() else 0
            if started == 1 and max(checkpoints(self.sweep).values(), default=0) >= 3:
                for driver in raygf_actors("DriverActor"):
                    driver.kill()
                    self.killed += 1


def test_trials_that_crash_fail_or_lag_behind_do_not_disturb_the_others(
    cluster, run_job, straight_hash, sweep_of, tracking_uri, tmp_path
):
    """Trials that crash more often than they may: unit tests of the callback."""
    rounds = ("--method", "sgd", "--rounds", "16")
    retries = ("--max-failures", "1", "--resources.max-driver-restarts", "0")
    asha = ("--scheduler", "asha", "--grace", "10")  # before, all are as good as chance
    flags = sweep_of("unequal", *rounds, *asha, "--search", "grid", "--concurrent", "1", *retries)
    killer = Killer(tmp_path / "runs" / "sweep")
    killer.start()
    outcome = run_job("sweep", *flags)
    killer.over.set()
    result = outcome.result
    assert killer.killed == 1, outcome.err
    assert (result["trials"], result["failed"]) == (3, 1)
    lines = table(result["results"])
    crashed, diverged, lagging = lines.values()
    assert result["best_trial"] == crashed["trial"]
    parent, trials = tracked_sweep(tracking_uri)
    assert parent.status == "FINISHED"
    runs = [trials[name] for name in lines]
    assert [run.status for run in runs] == ["FINISHED", "FAILED", "FINISHED"]
    assert [line["status"] for line in lines.values()] == ["finished", "failed", "stopped early"]

    assert runs[0].rounds == list(range(1, 17))
    straight = straight_hash(*SMALL, *rounds, "--optim.lr", "0.1")
    assert runs[0].tags["weights_sha256"] == straight
    tries = [line for line in outcome.err.splitlines() if "crashed, trying again (1 of 1)" in line]
    assert [line.split()[2] for line in tries] == [crashed["name"]]

    assert "round 2" in diverged["cause"]
    assert runs[1].tags["raygf.failure"] == diverged["cause"]
    assert f"note: trial {diverged['name']} failed: {diverged['cause']}" in outcome.err

    assert (lagging["rounds"], lagging["test_accuracy/average"]) == ("10", "")
    assert (runs[2].tags["raygf.stopped_at_round"], runs[2].tags["raygf.stopped_by"]) == ("10", "asha")
    assert runs[2].rounds == list(range(1, 11))
    assert not [name for name in runs[2].metrics if name.startswith("test_")]


def test_what_can_not_be_swept_is_refused_before_the_cluster_is_asked(run_job, tmp_path, monkeypatch):
    """What else: unit tests of commands, spaces and runs of sweeps."""
    monkeypatch.setattr("raygf.on_ray.cluster.connect", lambda resources: pytest.fail("went to the cluster"))
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    flags = (*UNTRACKED, "--storage.path", "runs", *SMALL, "--space", "nope")
    says = "space = 'nope': there is none; choose from fusion, fusion_lr, joint, method, outer, rules"
    one_error(run_job("sweep", *flags), says)
    assert not (tmp_path / "runs").exists()

"""A sweep from start to end: trials crash, fail and lag behind, it is interrupted, killed and resumed."""

import gc
import json
import os
import signal
import threading
from pathlib import Path

import pytest
import yaml
from runs import SMALL, UNTRACKED, one_error, raygf_actors, table, tracked_sweep, wait_until

from raygf.storage.checkpoint import load_checkpoint

KEYS = ("best_trial", "best_config", "best_score", "trials", "failed", "mlflow_run_id", "results")
SPACES = '''"""Joint SGD, whose trials are two processes each: Tune's and the driver."""
from raygf.sweeps import Space


def unequal(run):
    """One trial that is well, one whose weights become infinite, and one that hardly learns."""
    return Space(variants=[{"optim.lr": lr} for lr in (0.1, 1e3, 1e-6)])
'''
ROUNDS, GRACE = 16, 10


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


class Saboteur(threading.Thread):
    """Kills the first trial's driver once it has checkpoints; later sends this process SIGTERM."""

    def __init__(self, sweep):
        super().__init__()
        self.sweep, self.over, self.killed = sweep, threading.Event(), 0

    def run(self):
        self.wait_for_checkpoint(3)
        for driver in raygf_actors("DriverActor"):
            driver.kill()
            self.killed += 1
        self.wait_for_checkpoint(self.newest() + 2)
        os.kill(os.getpid(), signal.SIGTERM)

    def wait_for_checkpoint(self, number):
        wait_until(lambda: self.newest() >= number or self.over.is_set())

    def newest(self):
        return max(checkpoints(self.sweep).values(), default=0)


def sabotaged(run_job, sweep, flags):
    """The sweep in this process, which gets SIGTERM in the end."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # should the sweep end before
    saboteur = Saboteur(sweep)
    saboteur.start()
    try:
        outcome = run_job("sweep", *flags)
    finally:
        saboteur.over.set()
        saboteur.join()
        signal.signal(signal.SIGTERM, before)
        gc.collect()  # Ray ends the actors of what is forgotten; a program's end with it
    assert saboteur.killed == 1, outcome.err
    return outcome


@pytest.mark.timeout(600)  # several starts of Ray, one after the other
def test_a_sweep_goes_on_to_its_end_whatever_happens_to_it_and_to_its_trials(
    cluster, start_job, run_job, straight_hash, sweep_of, tracking_uri, tmp_path
):
    """Trials that crash more often than they may: unit tests of the callback."""
    rounds = ("--method", "sgd", "--rounds", str(ROUNDS))
    retries = ("--max-failures", "1", "--resources.max-driver-restarts", "0")
    asha = ("--scheduler", "asha", "--grace", str(GRACE))  # before, all are as good as chance
    flags = sweep_of("unequal", *rounds, *asha, "--search", "grid", "--concurrent", "1", *retries)
    flags += ("--resources.address", cluster)
    sweep = tmp_path / "runs" / "sweep"
    first = sabotaged(run_job, sweep, flags)
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
    assert (result["trials"], result["failed"]) == (3, 1)
    parent, trials = tracked_sweep(tracking_uri)
    lines = table(result["results"])
    assert lines.keys() == trials.keys()
    crashed, diverged, lagging = lines.values()
    assert result["best_trial"] == crashed["trial"]
    assert_parent_is_complete(parent, result, tracking_uri)
    assert [line["status"] for line in lines.values()] == ["finished", "failed", "stopped early"]
    assert [trials[name].status for name in lines] == ["FINISHED", "FAILED", "FINISHED"]
    assert {name: line["name"] for name, line in lines.items()} == {n: run.name for n, run in trials.items()}

    assert_finished_trial_is_complete(crashed, trials[crashed["trial"]], result)
    straight = straight_hash(*SMALL, *rounds, "--optim.lr", "0.1")
    assert trials[crashed["trial"]].tags["weights_sha256"] == straight
    tries = [line for line in first.err.splitlines() if "crashed, trying again (1 of 1)" in line]
    assert [line.split()[2] for line in tries] == [crashed["name"]]

    assert "round 2" in diverged["cause"]
    assert trials[diverged["trial"]].tags["raygf.failure"] == diverged["cause"]
    assert f"note: trial {diverged['name']} failed: {diverged['cause']}" in outcome.err

    run = trials[lagging["trial"]]
    assert (lagging["rounds"], lagging["test_accuracy/average"]) == (str(GRACE), "")
    assert (run.tags["raygf.stopped_at_round"], run.tags["raygf.stopped_by"]) == (str(GRACE), "asha")
    assert run.rounds == list(range(1, GRACE + 1))
    assert not [name for name in run.metrics if name.startswith("test_")]

    one_error(run_job("sweep", *flags), "holds a sweep already: … --resume")
    wait_until(lambda: not raygf_actors(), 20)


def assert_parent_is_complete(parent, result, uri):
    """MLflow's run of the sweep has what the last line has, its table and its figure."""
    from mlflow import MlflowClient

    assert (parent.id, parent.status) == (result["mlflow_run_id"], "FINISHED")
    assert "raygf.failure" not in parent.tags
    assert parent.tags["best.optim.lr"] == "0.1" and result["best_config"] == {"optim.lr": 0.1}
    assert float(parent.params["sweep.budget"]) == ROUNDS
    assert parent.params["optim.lr"] == "swept: 0.1 | 1000 | 1e-06"
    assert "### raygf sweep" in parent.tags["mlflow.note.content"]
    client = MlflowClient(uri)
    names = {file.path for file in client.list_artifacts(parent.id)}
    assert names == {"best_config.yaml", "config.yaml", "results.csv", "figures"}
    assert [file.path for file in client.list_artifacts(parent.id, "figures")] == ["figures/objective.png"]
    stored = yaml.safe_load(Path(result["results"]).with_name("best_config.yaml").read_text())
    assert stored["optim"]["lr"] == result["best_config"]["optim.lr"]


def assert_finished_trial_is_complete(line, run, result):
    """MLflow, the table, the checkpoints and the last line have the same of the trial, which is the best."""
    checkpoint = load_checkpoint(line["checkpoint"])
    assert run.rounds == list(range(1, ROUNDS + 1)) and line["rounds"] == str(ROUNDS)
    assert float(line["training_passes"]) == ROUNDS
    assert line["mlflow_run_id"] == run.id == checkpoint.meta["run_id"]
    assert float(line["test_accuracy/average"]) == pytest.approx(run.metrics["test_accuracy/average"])
    assert float(line["val_accuracy/average"]) == result["best_score"]
    assert checkpoint.network.sha256() == run.tags["weights_sha256"]
    assert run.tags["checkpoint"] == line["checkpoint"]
    summary = json.loads(Path(line["checkpoint"]).with_name("summary.json").read_text())
    assert summary["weights_sha256"] == run.tags["weights_sha256"]
    folder = Path(result["results"]).parents[1] / line["trial"]
    assert len(list(folder.glob("checkpoint_*"))) == 5


def test_what_can_not_be_swept_is_refused_before_the_cluster_is_asked(run_job, tmp_path, monkeypatch):
    """What else: unit tests of commands, spaces and runs of sweeps."""
    monkeypatch.setattr("raygf.on_ray.cluster.connect", lambda resources: pytest.fail("went to the cluster"))
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    flags = (*UNTRACKED, "--storage.path", "runs", *SMALL, "--space", "nope")
    says = "space = 'nope': there is none; choose from fusion, fusion_lr, joint, method, outer, rules"
    one_error(run_job("sweep", *flags), says)
    assert not (tmp_path / "runs").exists()

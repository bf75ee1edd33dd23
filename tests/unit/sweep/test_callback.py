"""Tune's news passed to trackers, and what is closed when a killed sweep is resumed; without MLflow."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from ray.tune.experiment import Trial
from sweep_parts import end, plan, record

from raygf.config.run import TrackingConfig
from raygf.errors import RunFailed
from raygf.records import RunStart
from raygf.sweep import callback as module
from raygf.sweep.callback import SweepCallback
from raygf.sweep.plan import SweepFolder
from raygf.sweep.trial import END, FAILURE, RECORD, START, VALUES


@dataclass
class FakeTrial:
    """As much of Tune's trial as the callback reads."""

    trial_id: str
    status: str = Trial.RUNNING
    last_result: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=lambda: {VALUES: {"fusion.lr": 0.3}})
    num_failures: int = 1
    pickled_error_file: str = "/nowhere"
    error: object = None

    def is_finished(self) -> bool:
        return self.status in (Trial.TERMINATED, Trial.ERROR)

    def get_pickled_error(self) -> object:
        return self.error


@dataclass
class Log:
    """Calls of trackers by trial; the runs that they opened; the states of runs in the store."""

    calls: dict[str, list[str]] = field(default_factory=dict)
    opened: dict[str, str | None] = field(default_factory=dict)
    statuses: dict[str, str] = field(default_factory=dict)


@dataclass
class FakeTracker:
    log: Log
    trial: str

    def start(self, config: Any, name: str, run_id: str | None, **rest: Any) -> str:
        assert (name, config.fusion.lr, config.storage.name) == (self.trial, 0.3, self.trial)
        self.log.opened[name] = run_id
        self.log.calls.setdefault(name, [])
        return run_id or f"run-of-{name}"

    def log_round(self, made: Any) -> None:
        self.log.calls[self.trial].append(f"round {made.round} {Path(made.checkpoint).parent.name}")

    def finish(self, made: Any) -> None:
        self.log.calls[self.trial].append(f"finish {made.rounds} {made.checkpoint}")

    def stop(self, last: Any, reason: str) -> None:
        self.log.calls[self.trial].append(f"stop {last.round} {reason}")

    def __getattr__(self, call: str) -> Any:
        return lambda *args: self.log.calls[self.trial].append(" ".join([call, *map(str, args)]))


@pytest.fixture
def log(monkeypatch):
    made = Log()
    monkeypatch.setattr(
        module, "make_tracker", lambda config, folder, notify, storage: FakeTracker(made, storage.name)
    )
    monkeypatch.setattr(module, "child_statuses", lambda uri, parent: made.statuses)
    return made


@pytest.fixture
def started(tmp_path, log):
    """A callback whose sweep has started, with the given trials known from before."""

    def start(**known: str) -> SweepCallback:
        made = plan(path=str(tmp_path), parent="parent")
        made = replace(made, run=replace(made.run, tracking=TrackingConfig(uri="sqlite:///x.db")))
        folder = SweepFolder(made.run.storage)
        with folder.held():
            folder.write_plan(made)
            folder.write_trials(known)
        callback = pickle.loads(pickle.dumps(SweepCallback(made.run.storage)))
        callback.setup()
        return callback

    return start


def result(round: int, **more: Any) -> dict[str, Any]:
    metrics = {"val_accuracy/average": 0.6, "training_passes": 4.0 * round}
    return {**metrics, RECORD: record(round), "checkpoint_dir_name": f"checkpoint_{round:06d}", **more}


def report(callback: SweepCallback, trial: FakeTrial, made: dict[str, Any]) -> None:
    trial.last_result = made
    callback.on_trial_result(0, [trial], trial, made)


def test_a_trial_from_its_start_to_its_end(started, log, capsys, tmp_path):
    callback, trial = started(), FakeTrial("ab_00000")
    callback.on_trial_start(0, [trial], trial)
    assert SweepFolder(plan(path=str(tmp_path)).run.storage).read_trials() == {"ab_00000": "run-of-ab_00000"}
    start = RunStart(0, 10, 48, 50, 497, (1, 2), (1, 2), ("a",), "cpu", notes=("careful",))
    report(callback, trial, result(1, **{START: start}))
    report(callback, trial, result(2, **{END: end(2)}))
    callback.on_trial_complete(0, [trial], trial)
    callback.on_experiment_end([trial])
    first, *calls = log.calls["ab_00000"]
    checkpoint = f"{tmp_path}/sweep/ab_00000/checkpoint_000002/checkpoint.npz"
    assert first.startswith("log_start ")
    assert calls == ["round 1 checkpoint_000001", "round 2 checkpoint_000002", f"finish 2 {checkpoint}"]
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        "note: trial ab_00000: careful",
        "note: trial ab_00000 finished: val_accuracy/average 60.00 % after 8 training passes",
    ]


def test_a_trial_that_the_scheduler_stops(started, log, capsys):
    callback, trial = started(), FakeTrial("a")
    callback.on_trial_start(0, [trial], trial)
    report(callback, trial, result(3))
    callback.on_trial_complete(0, [trial], trial)
    callback.on_experiment_end([trial])
    assert log.calls["a"][-1] == "stop 3 asha"
    shown = "trial a stopped early: val_accuracy/average 60.00 % after 12 training passes"
    assert shown in capsys.readouterr().err


def test_trials_that_fail(started, log, capsys):
    """One reports itself that it can't succeed, one crashes; its error has been written down."""
    callback = started()
    doomed, crashed = FakeTrial("doomed"), FakeTrial("crashed", error=RunFailed("the driver was lost"))
    for trial in (doomed, crashed):
        callback.on_trial_start(0, [], trial)
    report(callback, doomed, {FAILURE: "round 1: the weights are NaN", "done": True})
    callback.on_trial_complete(0, [], doomed)
    callback.on_trial_recover(0, [], crashed)
    callback.on_trial_start(0, [], crashed)
    callback.on_trial_error(0, [], crashed)
    callback.on_experiment_end([])
    assert log.calls["doomed"] == ["fail FAILED round 1: the weights are NaN"]
    assert log.calls["crashed"] == ["fail FAILED the driver was lost"]
    lines = capsys.readouterr().err.splitlines()
    assert "note: trial crashed crashed, trying again (1 of 2): the driver was lost" in lines
    assert lines[-1] == "note: trial crashed failed: the driver was lost"


def test_other_values_are_noted_with_the_first_round_that_has_them(started, log, capsys):
    callback, trial = started(), FakeTrial("a")
    callback.on_trial_start(0, [trial], trial)
    report(callback, trial, result(1))
    trial.config = {VALUES: {"fusion.lr": 0.24}}
    trial.status = Trial.PAUSED  # the scheduler has just given it the values, after this round
    report(callback, trial, result(2))
    trial.status = Trial.RUNNING
    report(callback, trial, result(3))
    report(callback, trial, result(4))
    tags = [text for text in log.calls["a"] if text.startswith("log_tags")]
    assert tags == ["log_tags {'raygf.values_from_round_3': '--fusion.lr 0.24'}"]
    assert "trial a goes on from another's checkpoint, with --fusion.lr 0.24" in capsys.readouterr().err


def test_a_resumed_sweep_closes_the_runs_of_trials_that_had_ended_once(started, log):
    callback = started(done="r1", failed="r2", running="r3", closed="r4")
    log.statuses = {"r1": "RUNNING", "r2": "KILLED", "r3": "RUNNING", "r4": "FINISHED"}
    trials = [
        FakeTrial("done", Trial.TERMINATED, result(4, **{END: end(4)})),
        FakeTrial("failed", Trial.ERROR, error=RunFailed("gone")),
        FakeTrial("running", Trial.PENDING),
        FakeTrial("closed", Trial.TERMINATED, result(4, **{END: end(4)})),
    ]
    for _ in range(2):
        callback.on_step_begin(0, trials)
    callback.on_experiment_end(trials)
    assert log.opened == {"done": "r1", "failed": "r2"}
    assert [text.split()[0] for text in log.calls["done"]] == ["finish"]
    assert log.calls["failed"] == ["fail FAILED gone"]

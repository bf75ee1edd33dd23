"""Tune's news handed on to trackers, and what is put right when a killed sweep is resumed; without MLflow."""

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
from raygf.sweep import callback as news
from raygf.sweep.callback import SweepCallback
from raygf.sweep.folder import SweepFolder
from raygf.sweep.trial import END, FAILURE, RECORD, START, VALUES

VALUES_OF_ALL = {"fusion.lr": 0.3}


@dataclass
class FakeTrial:
    """As much of Tune's trial as the callback reads."""

    trial_id: str
    status: str = Trial.RUNNING
    last_result: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=lambda: {VALUES: VALUES_OF_ALL})
    num_failures: int = 1
    pickled_error_file: str = "/nowhere"
    error: object = None

    def is_finished(self) -> bool:
        return self.status in (Trial.TERMINATED, Trial.ERROR)

    def get_pickled_error(self) -> object:
        return self.error


@dataclass
class Log:
    """What trackers were told, by trial, and which runs were deleted."""

    told: dict[str, list[str]] = field(default_factory=dict)
    opened: dict[str, str | None] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    statuses: dict[str, str] = field(default_factory=dict)

    def tracker(self, config: Any, folder: Path, notify: Any, storage: Any) -> Any:
        return FakeTracker(self, storage.name)


@dataclass
class FakeTracker:
    log: Log
    trial: str

    def start(self, config: Any, name: str, run_id: str | None, **rest: Any) -> str:
        assert (name, config.fusion.lr, config.storage.name) == (self.trial, 0.3, self.trial)
        self.log.opened[name] = run_id
        self.log.told.setdefault(name, [])
        return run_id or f"run-of-{name}"

    def log_start(self, start: Any) -> None:
        self.tell("start")

    def log_round(self, made: Any) -> None:
        self.tell(f"round {made.round} {Path(made.checkpoint).parent.name}")

    def log_tags(self, tags: Any) -> None:
        self.tell(f"tags {dict(tags)}")

    def finish(self, made: Any) -> None:
        self.tell(f"finish {made.rounds} {made.checkpoint}")

    def stop(self, last: Any, reason: str) -> None:
        self.tell(f"stop {last.round} {reason}")

    def fail(self, status: str, reason: str) -> None:
        self.tell(f"fail {status} {reason}")

    def tell(self, text: str) -> None:
        self.log.told[self.trial].append(text)


@pytest.fixture
def log(monkeypatch):
    made = Log()
    monkeypatch.setattr(news, "make_tracker", made.tracker)
    monkeypatch.setattr(news, "child_statuses", lambda uri, parent: made.statuses)
    monkeypatch.setattr(news, "delete_children", lambda uri, runs: made.deleted.update(runs))
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


def news_of(callback: SweepCallback, trial: FakeTrial, made: dict[str, Any]) -> None:
    trial.last_result = made
    callback.on_trial_result(0, [trial], trial, made)


def run_start() -> Any:
    from raygf.records import RunStart

    return RunStart(0, 10, 48, 50, 497, (1, 2), (1, 2), ("a",), "cpu", notes=("careful",))


def test_a_trial_from_its_start_to_its_end(started, log, capsys, tmp_path):
    callback, trial = started(), FakeTrial("ab_00000")
    callback.on_trial_start(0, [trial], trial)
    assert SweepFolder(plan(path=str(tmp_path)).run.storage).read_trials() == {"ab_00000": "run-of-ab_00000"}
    news_of(callback, trial, result(1, **{START: run_start()}))
    news_of(callback, trial, result(2, **{END: end(2)}))
    callback.on_trial_complete(0, [trial], trial)
    callback.on_experiment_end([trial])
    checkpoint = f"{tmp_path}/sweep/ab_00000/checkpoint_000002/checkpoint.npz"
    told = ["start", "round 1 checkpoint_000001", "round 2 checkpoint_000002", f"finish 2 {checkpoint}"]
    assert log.told == {"ab_00000": told}
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "note: trial ab_00000: careful",
        "note: trial ab_00000 finished: val_accuracy/average 60.00 % after 8 training passes",
    ]


def test_a_trial_that_the_scheduler_stops(started, log, capsys):
    callback, trial = started(), FakeTrial("a")
    callback.on_trial_start(0, [trial], trial)
    news_of(callback, trial, result(3))
    callback.on_trial_complete(0, [trial], trial)
    callback.on_experiment_end([trial])
    assert log.told["a"][-1] == "stop 3 asha"
    assert (
        "trial a stopped early: val_accuracy/average 60.00 % after 12 training passes"
        in capsys.readouterr().err
    )


def test_trials_that_fail(started, log, capsys):
    """One says itself that it can't succeed, one crashes; its error has been written down."""
    callback = started()
    doomed, crashed = FakeTrial("doomed"), FakeTrial("crashed", error=RunFailed("the driver was lost"))
    for trial in (doomed, crashed):
        callback.on_trial_start(0, [], trial)
    news_of(callback, doomed, {FAILURE: "round 1: the weights are NaN", "done": True})
    callback.on_trial_complete(0, [], doomed)
    callback.on_trial_recover(0, [], crashed)
    callback.on_trial_start(0, [], crashed)
    callback.on_trial_error(0, [], crashed)
    callback.on_experiment_end([])
    assert log.told["doomed"] == ["fail FAILED round 1: the weights are NaN"]
    assert log.told["crashed"] == ["fail FAILED the driver was lost"]
    lines = capsys.readouterr().err.splitlines()
    assert "note: trial crashed crashed, trying again (1 of 2): the driver was lost" in lines
    assert lines[-1] == "note: trial crashed failed: the driver was lost"


def test_other_values_are_told_with_the_first_round_that_has_them(started, log, capsys):
    callback, trial = started(), FakeTrial("a")
    callback.on_trial_start(0, [trial], trial)
    news_of(callback, trial, result(1))
    trial.config = {VALUES: {"fusion.lr": 0.24}}
    trial.status = Trial.PAUSED  # the scheduler has just given it the values, after this round
    news_of(callback, trial, result(2))
    trial.status = Trial.RUNNING
    news_of(callback, trial, result(3))
    news_of(callback, trial, result(4))
    tags = [text for text in log.told["a"] if text.startswith("tags")]
    assert tags == ["tags {'raygf.values_from_round_3': '--fusion.lr 0.24'}"]
    assert "trial a goes on from another's checkpoint, with --fusion.lr 0.24" in capsys.readouterr().err


def test_what_a_killed_sweep_left_is_put_right_once(started, log, tmp_path):
    callback = started(done="r1", failed="r2", going="r3", lost="r4")
    log.statuses = {"r1": "RUNNING", "r2": "KILLED", "r3": "RUNNING", "r4": "RUNNING", "r5": "RUNNING"}
    trials = [
        FakeTrial("done", Trial.TERMINATED, result(4, **{END: end(4)})),
        FakeTrial("failed", Trial.ERROR, error=RunFailed("gone")),
        FakeTrial("going", Trial.PENDING),
    ]
    for _ in range(2):
        callback.on_step_begin(0, trials)
    callback.on_experiment_end(trials)
    assert log.deleted == {"r4", "r5"}
    assert log.opened == {"done": "r1", "failed": "r2"}
    assert [text.split()[0] for text in log.told["done"]] == ["finish"]
    assert log.told["failed"] == ["fail FAILED gone"]
    kept = SweepFolder(plan(path=str(tmp_path)).run.storage).read_trials()
    assert kept == {"done": "r1", "failed": "r2", "going": "r3"}


def test_trials_that_were_closed_stay_closed(started, log):
    callback = started(done="r1")
    log.statuses = {"r1": "FINISHED"}
    callback.on_experiment_end([FakeTrial("done", Trial.TERMINATED, result(4, **{END: end(4)}))])
    assert (log.opened, log.deleted) == ({}, set())

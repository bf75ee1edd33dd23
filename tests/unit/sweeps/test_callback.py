"""Tune's news passed to trackers, without MLflow."""

import pickle
from dataclasses import replace
from unittest.mock import Mock

import pytest
from ray.tune.experiment import Trial
from sweep_parts import end, plan, record

from raygf.config.run import TrackingConfig
from raygf.errors import TrackingError
from raygf.records import RunStart
from raygf.sweeps import callback as module
from raygf.sweeps.callback import SweepCallback
from raygf.sweeps.plan import SweepFolder, SweepOptions
from raygf.sweeps.trial import END, FAILURE, RECORD, START, VALUES


def trial_named(name, status=Trial.RUNNING, last_result=None, error=None):
    """As much of Tune's trial as the callback reads."""
    made = Mock(trial_id=name, status=status, last_result=last_result, config={VALUES: {"fusion.lr": 0.3}})
    made.is_finished.return_value = status in (Trial.TERMINATED, Trial.ERROR)
    made.configure_mock(num_failures=1, error_file=error)
    return made


@pytest.fixture
def trackers(monkeypatch):
    """The trackers of trials, by name; their runs are called after them."""

    made: dict[str, Mock] = {}

    def tracker(*_):
        def start(config, name, run_id, **rest):
            made[config.storage.name] = new
            return run_id or f"run-of-{config.storage.name}"

        new = Mock()
        new.start.side_effect = start
        return new

    monkeypatch.setattr(module, "make_tracker", tracker)
    return made


@pytest.fixture
def started(tmp_path, trackers):
    """A callback whose sweep has started, with the given trials known from before."""

    def start(scheduler="none", **known):
        made = plan(path=str(tmp_path), parent="parent", options=SweepOptions(scheduler=scheduler))
        made = replace(made, run=replace(made.run, tracking=TrackingConfig(uri="sqlite:///x.db")))
        folder = SweepFolder(made.run.storage)
        with folder.held():
            folder.write_plan(made)
            folder.write_trials(known)
        callback = pickle.loads(pickle.dumps(SweepCallback(made.run.storage)))
        callback.setup()
        return callback

    return start


def result(round, **more):
    """What Tune has of a round, each with a checkpoint."""
    metrics = {"val_accuracy/average": 0.6, "training_passes": 4.0 * round}
    return {**metrics, RECORD: record(round), "checkpoint_dir_name": f"checkpoint_{round:06d}", **more}


def report(callback, trial, made):
    trial.last_result = made
    callback.on_trial_result(0, [trial], trial, made)


def begun(callback, name):
    """The callback, told of the start of a trial, and that trial."""
    trial = trial_named(name)
    callback.on_trial_start(0, [trial], trial)
    return callback, trial


def calls(tracker):
    """The names of the calls after the start."""
    return [name for name, *_ in tracker.method_calls if name != "start"]


def test_a_trial_from_its_start_to_its_end(started, trackers, capsys, tmp_path):
    callback, trial = begun(started(), "ab_00000")
    assert SweepFolder(plan(path=str(tmp_path)).run.storage).read_trials() == {"ab_00000": "run-of-ab_00000"}
    start = RunStart(0, 10, 48, 50, 497, (1, 2), (1, 2), ("a",), "cpu", notes=("careful",))
    report(callback, trial, result(1, **{START: start}))
    report(callback, trial, result(2, **{END: end(2)}))
    callback.on_trial_complete(0, [trial], trial)
    callback.on_experiment_end([trial])
    tracker = trackers["ab_00000"]
    config, name, run_id = tracker.start.call_args.args
    assert (config.fusion.lr, config.storage.name, name, run_id) == (0.3, "ab_00000", "fusion.lr=0.3", None)
    assert calls(tracker) == ["log_start", "log_round", "log_round", "finish"]
    checkpoint = f"{tmp_path}/sweep/ab_00000/checkpoint_000002/checkpoint.npz"
    assert tracker.log_round.call_args.args[0] == replace(record(2), checkpoint=checkpoint)
    tracker.finish.assert_called_once_with(replace(end(2), checkpoint=checkpoint))
    told = "note: trial fusion.lr=0.3 finished: val_accuracy/average 60.00 % after 8 training passes"
    assert capsys.readouterr() == ("", f"note: trial fusion.lr=0.3: careful\n{told}\n")


def test_a_trial_that_the_scheduler_stops(started, trackers, capsys):
    callback, trial = begun(started(scheduler="asha"), "a")
    report(callback, trial, result(3))
    callback.on_trial_complete(0, [trial], trial)
    callback.on_experiment_end([trial])
    last, reason = trackers["a"].stop.call_args.args
    assert (last.round, reason) == (3, "asha")
    shown = "trial fusion.lr=0.3 stopped early: val_accuracy/average 60.00 % after 12 training passes"
    assert shown in capsys.readouterr().err


def test_trials_that_fail(started, trackers, capsys, tmp_path):
    """One reports itself that it can't succeed, one crashes; its error has been written down."""
    callback, error = started(), tmp_path / "error.txt"
    error.write_text("Failure # 1\nTraceback\nraygf.errors.RunFailed: the driver was lost\n")
    doomed, crashed = trial_named("doomed"), trial_named("crashed", error=str(error))
    for trial in (doomed, crashed):
        callback.on_trial_start(0, [], trial)
    report(callback, doomed, {FAILURE: "round 1: the weights are NaN", "done": True})
    callback.on_trial_complete(0, [], doomed)
    callback.on_trial_recover(0, [], crashed)
    callback.on_trial_start(0, [], crashed)
    callback.on_trial_error(0, [], crashed)
    callback.on_experiment_end([])
    for name, cause in (("doomed", "round 1: the weights are NaN"), ("crashed", "the driver was lost")):
        trackers[name].fail.assert_called_once_with("FAILED", cause)
    lines = capsys.readouterr().err.splitlines()
    assert "note: trial fusion.lr=0.3 crashed, trying again (1 of 2): the driver was lost" in lines
    assert lines[-1] == "note: trial fusion.lr=0.3 failed: the driver was lost"


def test_a_trial_whose_run_can_not_be_opened_trains_without_it(started, monkeypatch, capsys, tmp_path):
    def fail(*_, **__):
        raise TrackingError("no answer")

    monkeypatch.setattr(module, "make_tracker", lambda *_: Mock(start=fail))
    callback, trial = begun(started(), "a")
    report(callback, trial, result(1))
    callback.on_experiment_end([])
    assert "tracking: no answer; trial fusion.lr=0.3 is not in MLflow" in capsys.readouterr().err
    folder = SweepFolder(plan(path=str(tmp_path)).run.storage)
    assert folder.read_trials() == {"a": ""}  # its place among the trials


def test_a_resumed_sweep_opens_the_runs_that_it_knows_and_a_trial_that_is_tried_again_keeps_its_own(
    started, trackers
):
    callback, trial = begun(started(a="old"), "a")
    start = RunStart(0, 10, 48, 50, 497, (1, 2), (1, 2), ("a",), "cpu")
    for _ in range(2):
        callback.on_trial_start(0, [trial], trial)
        report(callback, trial, result(1, **{START: start}))
    callback.on_trial_complete(0, [trial], trial)
    callback.on_trial_complete(0, [trial], trial)
    callback.on_experiment_end([trial])
    trackers["a"].start.assert_called_once()
    assert trackers["a"].start.call_args.args[2] == "old"
    assert calls(trackers["a"]) == ["log_start", "log_round", "log_round", "stop"]

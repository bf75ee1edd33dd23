"""One tracker a trial, whatever the store does; without a store."""

from dataclasses import dataclass, field

from raygf.config.recipes import get_recipe
from raygf.errors import TrackingError
from raygf.tracking.sweep import SweepTrials

RUN = get_recipe("digits")


@dataclass
class Store:
    """Makes trackers; ``up``: whether runs can be opened. Calls are kept by run."""

    up: bool = True
    opened: list[tuple[str, str | None]] = field(default_factory=list)
    calls: dict[str, list[str]] = field(default_factory=dict)
    kept: list[dict[str, str]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def trials(self, **known):
        """With trial ``a`` started."""
        notes = self.kept.append, self.said.append
        trials = SweepTrials(lambda: FakeTracker(self), "parent", "digits", known, *notes)
        trials.start("a", RUN, "lr=1")
        return trials


class FakeTracker:
    def __init__(self, store):
        self.store, self.id = store, ""

    def start(self, config, name, run_id, *, recipe, parent_run_id):
        assert (recipe, parent_run_id) == ("digits", "parent")
        if not self.store.up:
            raise TrackingError("no answer")
        self.store.opened.append((name, run_id))
        self.id = run_id or f"run-of-{name}"
        self.store.calls.setdefault(self.id, [])
        return self.id

    def __getattr__(self, call):
        return lambda *args: self.store.calls[self.id].append(" ".join([call, *map(str, args)]))


def test_a_trial_has_one_run_from_its_start_to_its_end():
    store = Store()
    trials = store.trials()
    trials.log_start("a", "start")
    trials.post("a", lambda tracker: tracker.log_round(1))
    trials.start("b", RUN, "lr=2")
    trials.start("a", RUN, "lr=1")  # it crashed and is tried again
    trials.log_start("a", "start again")
    trials.post("a", lambda tracker: tracker.log_round(2))
    trials.end("a", lambda tracker: tracker.finish("end"))
    trials.end("b", lambda tracker: tracker.stop(1, "asha"))
    trials.close()
    assert store.opened == [("lr=1", None), ("lr=2", None)]
    assert store.calls["run-of-lr=1"] == ["log_start start", "log_round 1", "log_round 2", "finish end"]
    assert store.calls["run-of-lr=2"] == ["stop 1 asha"]
    assert store.kept[-1] == {"a": "run-of-lr=1", "b": "run-of-lr=2"}
    assert store.said == []


def test_a_resumed_sweep_opens_the_runs_that_it_knows():
    store = Store()
    trials = store.trials(a="old")
    for trial in ("a", "a", "unknown"):  # the second time it is closed
        trials.end(trial, lambda tracker: tracker.fail("FAILED", "gone"))
    trials.close()
    assert (store.opened, store.calls, store.kept) == ([("lr=1", "old")], {"old": ["fail FAILED gone"]}, [])


def test_a_trial_whose_run_can_not_be_opened_trains_without_it():
    store = Store(up=False)
    trials = store.trials()
    assert store.said == ["tracking: no answer; trial lr=1 is not in MLflow"]
    assert store.kept == [{"a": ""}]  # its place among the trials
    store.up = True
    trials.start("b", RUN, "lr=2")
    trials.end("b", lambda tracker: tracker.finish("end"))
    trials.close()
    assert store.calls == {"run-of-lr=2": ["finish end"]}

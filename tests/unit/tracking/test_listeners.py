"""Trackers beside MLflow: what they are told, and that one which fails ends nothing but itself."""

import struct
import sys
from dataclasses import replace
from types import ModuleType
from typing import Any, ClassVar

import pytest
from tensorboardX.proto.event_pb2 import Event
from tracked_records import CONFIG, END, START, record

from raygf.config.run import StorageConfig, TrackingConfig
from raygf.errors import ConfigError
from raygf.tracking.listeners import make_listeners
from raygf.tracking.mlflow_run import end_metrics, round_metrics
from raygf.tracking.tracker import make_tracker


class Calls:
    """Keeps what it is told; ``fails``: the call that raises."""

    made: ClassVar[list[Any]] = []

    def __init__(self, fails=""):
        self.told, self.fails = [], fails
        Calls.made.append(self)

    def _hear(self, call, *what):
        self.told.append((call, *what))
        if call == self.fails:
            raise SystemExit("no more")

    def on_start(self, config, start):
        self._hear("start", config, start)

    def on_round(self, record):
        self._hear("round", record.round)

    def on_end(self, end):
        self._hear("end", end)


@pytest.fixture
def own(monkeypatch):
    """A module of one's own; the listeners that it has made."""
    module = ModuleType("own_trackers")
    module.good, module.bad, module.no_tracker = Calls, lambda: Calls("round"), lambda: 3
    module.raises = lambda: 1 / 0
    monkeypatch.setitem(sys.modules, "own_trackers", module)
    monkeypatch.setattr(Calls, "made", [])
    return Calls.made


def start(said, tmp_path, *also):
    config = replace(CONFIG, tracking=TrackingConfig(enabled=False, also=also))
    tracker = make_tracker(config.tracking, tmp_path, said.append, StorageConfig(str(tmp_path), "one"))
    assert tracker.start(config, "one") == ""
    tracker.log_start(START)
    return tracker


def test_own_trackers_hear_of_the_run_and_one_that_fails_is_left_out(own, said, tmp_path):
    tracker = start(said, tmp_path, "own_trackers:bad", "own_trackers:good")
    for number in (1, 2):
        tracker.log_round(record(number))
    tracker.finish(END)
    tracker.fail("FAILED", "after the end")
    bad, good = own
    (first, config, begun), *rest = good.told
    assert (first, begun, config.storage.name) == ("start", START, "one")
    assert rest == [("round", 1), ("round", 2), ("end", END)]
    assert [call for call, *_ in bad.told] == ["start", "round"]
    left_out = "on_round failed, it is left out: SystemExit: no more"
    assert said == [f"tracking.also = 'own_trackers:bad': {left_out}"]


@pytest.mark.parametrize("how", ["fail", "stop"])
def test_a_run_without_a_test_ends_without_results(own, said, tmp_path, how):
    tracker = start(said, tmp_path, "own_trackers:good")
    tracker.fail("KILLED", "interrupted") if how == "fail" else tracker.stop(record(1), "asha")
    assert own[0].told[1:] == [("end", None)]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("wandb", 'must be tensorboard or "package.module:function"'),
        ("own_trackers:nothing", "can't be imported: AttributeError"),
        ("own_trackers:raises", "the function failed: ZeroDivisionError"),
        ("own_trackers:no_tracker", "no tracker: int has no on_start, on_round, on_end"),
    ],
)
def test_what_is_no_tracker_is_refused_in_one_line(own, name, says):
    with pytest.raises(ConfigError) as caught:
        make_listeners(["own_trackers:good", name])
    assert says in str(caught.value) and "\n" not in str(caught.value)


def events(folder):
    """Name, step and value of every scalar in TensorBoard's files, which are length, sum, event, sum."""
    found = []
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        while content:
            (size,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + size])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            content = content[16 + size :]
    return found


def test_tensorboard_has_the_metrics_of_mlflow(said, tmp_path):
    tracker = start(said, tmp_path, "tensorboard")
    tracker.log_round(record(2))
    tracker.finish(END)
    assert said == []
    found = events(tmp_path / "one" / "tensorboard")
    steps = {tag: step for tag, step, _ in found}
    values = {tag: value for tag, _, value in found}
    metrics = round_metrics(record(2))
    finite = [name for name in metrics if not name.startswith("val_loss")]
    assert [values[name] for name in finite] == pytest.approx([metrics[name] for name in finite])
    assert (steps["val_accuracy/exit_1"], steps["accuracy_by_passes/exit_1"]) == (2, 6)
    assert values.keys() >= end_metrics(END).keys() | {"config/text_summary"}
    assert "val_loss/exit_2" not in values  # NaN

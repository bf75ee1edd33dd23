"""Trackers beside MLflow: what they are told, and that one which fails ends nothing but itself."""

import struct
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from tensorboardX.proto.event_pb2 import Event
from tracked_records import CONFIG, END, START, record

from raygf.config.run import StorageConfig
from raygf.errors import ConfigError
from raygf.tracking.listeners import Listeners
from raygf.tracking.mlflow_run import end_metrics, round_metrics


class Calls:
    """Keeps what it is told; ``fails``: the call that raises."""

    def __init__(self, fails=""):
        self.told, self.fails = [], fails

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


@pytest.fixture(autouse=True)
def own(monkeypatch):
    """A module of one's own, with two trackers."""
    made = SimpleNamespace(good=Calls(), bad=Calls("round"))
    functions = SimpleNamespace(good=lambda: made.good, bad=lambda: made.bad, three=lambda: 3)
    functions.raises = lambda: 1 / 0
    monkeypatch.setitem(sys.modules, "own_trackers", functions)
    return made


def follow(listeners, config):
    listeners.tell("on_start", config, START)
    for number in (1, 2):
        listeners.tell("on_round", record(number))
    listeners.tell("on_end", END)


def test_own_trackers_hear_of_the_run_and_one_that_fails_is_left_out(own, said):
    follow(Listeners(["own_trackers:bad", "own_trackers:good"], said.append), CONFIG)
    assert own.good.told == [("start", CONFIG, START), ("round", 1), ("round", 2), ("end", END)]
    assert [call for call, *_ in own.bad.told] == ["start", "round"]
    left_out = "on_round failed, it is left out: SystemExit: no more"
    assert said == [f"tracking.also = 'own_trackers:bad': {left_out}"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("wandb", 'must be tensorboard or "package.module:function"'),
        ("own_trackers:nothing", "can't be imported: AttributeError"),
        ("own_trackers:raises", "the function failed: ZeroDivisionError"),
        ("own_trackers:three", "no tracker: int has no on_start, on_round, on_end"),
    ],
)
def test_what_is_no_tracker_is_refused_in_one_line(name, says):
    with pytest.raises(ConfigError) as caught:
        Listeners(["own_trackers:good", name], print)
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
    follow(
        Listeners(["tensorboard"], said.append), replace(CONFIG, storage=StorageConfig(str(tmp_path), "one"))
    )
    assert said == []
    found = {(tag, step): value for tag, step, value in events(tmp_path / "one" / "tensorboard")}
    for name, value in round_metrics(record(2)).items():
        step = 6 if name.startswith("accuracy_by_passes") else 2
        assert value != value or found[name, step] == pytest.approx(value)  # NaN is left out
    assert found.keys() >= {(name, 2) for name in end_metrics(END)} | {("config/text_summary", 0)}

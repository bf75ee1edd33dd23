"""What could not be sent lies in a file, and is read again only for its own run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from raygf.config.run import StorageConfig
from raygf.tracking.delivery import NAME, Call, Delivery, Parcel, Undelivered


@dataclass
class Run:
    """Stands in for MLflowRun: remembers what it is asked."""

    asked: list[tuple[str, dict]]

    def log_metrics(self, **arguments) -> None:
        self.asked.append(("log_metrics", arguments))


def parcel(label: str, call: Call | None) -> Parcel:
    return Parcel(label, lambda: None, call)


METRICS = Call("log_metrics", {"metrics": {"lr": 0.1, "odd": float("inf")}, "step": 3, "stamp_ms": 17})
ROUND = parcel("round 3", METRICS)
FIGURE = parcel("accuracy figure", None)


@pytest.fixture
def kept(tmp_path) -> Undelivered:
    (tmp_path / "runs" / "one").mkdir(parents=True)
    return Undelivered(StorageConfig(str(tmp_path / "runs"), "one"), tmp_path / "here")


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "runs" / "one" / NAME


def test_what_is_kept_is_taken_and_can_be_sent(kept, file):
    said = kept.keep("run-1", [ROUND, FIGURE])
    assert said == (
        f"kept in {file}, sent when the run is gone on with: --storage.name one --storage.resume True"
    )
    ((label, call),) = kept.take("run-1")
    assert (label, call) == ("round 3", METRICS)
    run = Run([])
    call.make(run)
    assert run.asked == [("log_metrics", METRICS.arguments)]


def test_of_another_run_nothing_is_taken(kept):
    kept.keep("run-1", [ROUND])
    assert kept.take("run-2") == []


def test_the_file_goes_when_all_has_arrived_and_not_before(kept, file):
    kept.keep("run-1", [ROUND])
    kept.take("run-1")
    assert file.exists()  # nothing has been sent yet
    assert kept.keep("run-1", [FIGURE]) == ""
    assert not file.exists()


def test_a_file_that_was_not_taken_is_left_alone(kept, file):
    kept.keep("run-1", [ROUND])
    assert kept.keep("run-1", []) == ""
    assert file.exists()


def test_without_the_runs_folder_it_lies_here(tmp_path):
    (tmp_path / "here").mkdir()
    kept = Undelivered(StorageConfig(str(tmp_path / "gone"), "one"), tmp_path / "here")
    place = tmp_path / "here" / f"one-{NAME}"
    assert kept.keep("run-1", [ROUND]).startswith(f"kept in {place}, ")
    assert [label for label, _ in kept.take("run-1")] == ["round 3"]
    kept.keep("run-1", [])
    assert not place.exists()


@pytest.mark.parametrize(
    "line",
    [
        "",
        "no json",
        "[]",
        "{}",
        json.dumps(
            {"run_id": "run-1", "label": "x", "method": "terminate", "arguments": {"status": "FAILED"}}
        ),
        json.dumps({"run_id": "run-1", "label": "x", "method": "__init__", "arguments": {}}),
        json.dumps({"run_id": "run-1", "label": "x", "method": "log_metrics", "arguments": 3}),
    ],
)
def test_strange_lines_are_passed_over(kept, file, line):
    kept.keep("run-1", [ROUND])
    file.write_text(f"{line}\n{file.read_text()}")
    assert [label for label, _ in kept.take("run-1")] == ["round 3"]


def test_a_file_that_is_not_text_is_passed_over(kept, file):
    file.write_bytes(b"\xff\xfe\x00")
    assert kept.take("run-1") == []


def deliver(keep, parcels) -> list[str]:
    """The remarks of a delivery whose store is gone at the end."""
    said = []

    def gone() -> None:
        raise OSError("[Errno 111] Connection refused")

    delivery = Delivery("http://x", gone, said.append, keep)
    delivery.open(lambda: None, 20)
    delivery.close(parcels, 20)
    return said


def test_the_end_says_what_was_not_delivered_and_where_it_is(kept, file):
    said = deliver(lambda left: kept.keep("run-1", left), [ROUND, FIGURE])
    assert said == [
        "tracking: not delivered to http://x (Connection refused): round 3, accuracy figure; "
        f"kept in {file}, sent when the run is gone on with: --storage.name one --storage.resume True"
    ]


def test_what_can_not_be_kept_is_said_too():
    def full(left) -> str:
        raise OSError(28, "No space left on device")

    (line,) = deliver(full, [ROUND])
    assert line.endswith("round 3; and could not be kept in a file: No space left on device")


def test_nothing_is_kept_where_all_arrives():
    asked = []
    delivery = Delivery("http://x", lambda: None, asked.append, lambda left: asked.append(left) or "")
    delivery.open(lambda: None, 20)
    delivery.close([ROUND], 20)
    assert asked == [[]]

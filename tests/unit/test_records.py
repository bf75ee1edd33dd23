"""Records as JSON: the newest come back to the bit, the older ones are short."""

import io
import json
import math

import numpy as np
import pytest

from raygf.errors import CheckpointError
from raygf.records import (
    KEPT,
    ExitScore,
    FusionReport,
    HistoryLog,
    RoundRecord,
    from_json,
    read_history,
    shortened,
    to_json,
    wall_time,
)
from raygf.storage.checkpoint import Checkpoint, read_archive, write_archive
from raygf.training.network import NetworkState

FUSION = FusionReport(
    weights=np.array([[1 / 3, np.nan], [2 / 3, 1.0]]),
    mean_weight=(0.1, 0.9),
    cosine=np.array([[1.0, -1e-17], [-1e-17, 1.0]]),
    delta_norm=(math.pi, 1e30),
    loss=0.1 + 0.2,
    accuracy=(0.5, 1.0),
    tensor_cosine=np.array([np.nan, -0.123456]),
    conflict_before=0.5,
    conflict_after=math.nan,
)
SCORE = ExitScore((math.nan, 1 / 7), (0.1, 0.2))


def record(round=3, **changes):
    fields = {"train": SCORE, "val": SCORE, "fusion": FUSION, "notes": ("ä", "b\n")} | changes
    return RoundRecord(
        round,
        9,
        12,
        0.1,
        0.01,
        seconds={"x": 1.23456789},
        checkpoint="c",
        training_operations=10**19,
        **fields,
    )


def read(text):
    return {"history": json.loads(text)}


def log_of(*records):
    log = HistoryLog()
    for each in records:
        log.append(each)
    return log


@pytest.mark.parametrize("changes", [{}, {"val": None}, {"fusion": None, "notes": (), "skipped": True}])
def test_round_trip_is_exact(changes):
    before = record(**changes)
    after = from_json(json.loads(json.dumps(to_json(before), allow_nan=False)))
    assert repr(after) == repr(before)  # NaN is not equal to itself
    assert type(after.train.loss) is tuple and type(after.notes) is tuple
    if after.fusion is not None:
        np.testing.assert_array_equal(after.fusion.weights, FUSION.weights)


def test_a_shortened_entry_by_hand():
    score = {"loss": [None, 0.142857], "accuracy": [0.1, 0.2]}
    short = shortened(to_json(record()))
    assert short == {
        "round": 3,
        "training_passes": 12,
        "training_operations": 10**19,
        "train": score,
        "val": score,
        "seconds": {"x": 1.23457},
        "fusion": {
            "mean_weight": [0.1, 0.9],
            "cosine": [[1.0, -1e-17], [-1e-17, 1.0]],
            "delta_norm": [3.14159, 1e30],
            "loss": 0.3,
            "accuracy": [0.5, 1.0],
            "tensor_cosine": [None, -0.123],
            "conflict_before": 0.5,
            "conflict_after": None,
        },
    }
    assert shortened(short) == short
    bare = shortened(to_json(record(val=None, fusion=None, skipped=True)))
    assert bare["val"] is bare["fusion"] is None and bare["skipped"]


@pytest.mark.parametrize("resumed_after", [0, 1, KEPT, KEPT + 2, None])
def test_the_log_has_every_round_once_and_the_newest_whole(resumed_after):
    records = [record(round) for round in range(1, KEPT + 5)]
    log = HistoryLog()
    for number, each in enumerate(records[:-1]):
        if number == resumed_after:
            log = HistoryLog(read(log.followed_by(each)))
        else:
            log.append(each)
    meta = read(log.followed_by(records[-1]))
    assert meta == read(log.followed_by(records[-1]))  # nothing was added
    whole = [to_json(each) for each in records]
    assert meta["history"] == [*map(shortened, whole[:-KEPT]), *whole[-KEPT:]]
    assert read_history(meta) == [*map(shortened, whole)]
    assert repr(list(HistoryLog(meta).recent)) == repr(records[-KEPT:])


def test_wall_time_is_that_of_all_rounds_or_unknown():
    log = log_of(*map(record, range(1, KEPT + 4)))
    meta = read(log.followed_by(record(KEPT + 4)))
    assert log.seconds == pytest.approx((KEPT + 3) * record().total_seconds)
    assert HistoryLog(meta).seconds == wall_time(read_history(meta)) > log.seconds
    assert math.isnan(log_of(record(2)).seconds) and math.isnan(wall_time([to_json(record(2))]))


def test_skipped_rounds_at_the_end_are_counted():
    log = log_of(record(1), *(record(round, skipped=True) for round in range(2, KEPT + 4)))
    assert log.skipped == KEPT + 2
    assert HistoryLog(read(log.followed_by(record(9, skipped=True)))).skipped == KEPT + 3
    log.append(record(9))
    assert log.skipped == HistoryLog().skipped == 0


def test_an_archive_holds_it_as_any_other_value():
    text = log_of(record()).followed_by(record(4))
    stream = io.BytesIO()
    meta = {"run_id": "ä", "history": text, "config": {"a": [1, None]}}
    write_archive(stream, Checkpoint(4, NetworkState(np.zeros(2, np.float32), {}), {}, meta))
    again = read_archive(stream).meta
    assert {name: again[name] for name in meta} == {**meta, **read(text)}


def test_entries_that_are_no_whole_records_are_not_taken_for_such():
    whole = to_json(record())
    for last in (shortened(whole), {**whole, "odd": 1}, {**whole, "notes": 3}):
        assert not HistoryLog({"history": [whole, last]}).recent


@pytest.mark.parametrize("history", ["text", {"round": 1}, [3], [{"loss": 1}], [{"round": 1}], None])
def test_what_is_no_history_is_refused(history):
    for reader in (read_history, HistoryLog):
        with pytest.raises(CheckpointError, match="history is not a list of rounds"):
            reader({"history": history})

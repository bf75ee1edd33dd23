"""Records through JSON and back, to the bit."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from raygf.records import (
    KEPT,
    ExitScore,
    FusionReport,
    RoundRecord,
    from_json,
    kept_records,
    recent_records,
    to_json,
)

FUSION = FusionReport(
    weights=np.array([[1 / 3, np.nan], [2 / 3, 1.0]]),
    mean_weight=(0.1, 0.9),
    cosine=np.array([[1.0, -1e-17], [-1e-17, 1.0]]),
    delta_norm=(math.pi, 1e30),
    loss=0.1 + 0.2,
    accuracy=(0.5, 1.0),
    tensor_cosine=np.array([np.nan, 0.25]),
    conflict_before=0.5,
    conflict_after=math.nan,
)


def record(round: int = 3, **changes) -> RoundRecord:
    score = ExitScore((math.nan, 1 / 7), (0.1, 0.2))
    fields = {
        "train": score,
        "val": score,
        "fusion": FUSION,
        "notes": ("ä", "b"),
        "skipped": False,
        **changes,
    }
    return RoundRecord(
        round=round,
        rounds=9,
        training_passes=12,
        lr=0.1,
        fusion_lr=0.01,
        seconds={"x": 1.5},
        checkpoint="c",
        **fields,
    )


@pytest.mark.parametrize("changes", [{}, {"val": None}, {"fusion": None, "notes": (), "skipped": True}])
def test_round_trip_is_exact(changes):
    before = record(**changes)
    after = from_json(json.loads(json.dumps(to_json(before))))
    assert repr(after) == repr(before)  # NaN is not equal to itself
    assert type(after.train.loss) is tuple and type(after.notes) is tuple
    if after.fusion is not None:
        assert after.fusion.weights.dtype == np.float64
        np.testing.assert_array_equal(after.fusion.weights, FUSION.weights)


def test_the_newest_are_kept():
    values = json.loads(json.dumps(kept_records([record(round) for round in range(1, 9)])))
    assert [each.round for each in recent_records(values)] == list(range(9 - KEPT, 9))


@pytest.mark.parametrize(
    "values", [None, [], "x", 3, [3], [{}], [{"round": 1}], [{**to_json(record()), "odd": 1}]]
)
def test_what_is_no_record_is_none(values):
    assert recent_records(values) == ()

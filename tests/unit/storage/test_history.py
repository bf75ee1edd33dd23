"""Records as plain numbers, short and without NaN."""

from __future__ import annotations

import json

import numpy as np
import pytest

from raygf.errors import CheckpointError
from raygf.records import ExitScore, FusionReport, RoundRecord, read_history, to_history

FUSION = FusionReport(
    weights=np.ones((2, 3)),
    mean_weight=(0.25, 0.75),
    cosine=np.array([[1, -0.5], [-0.5, 1]]),
    delta_norm=(3.0, 4.0),
    loss=1.23456789,
    accuracy=(0.5, 0.625),
    tensor_cosine=np.array([-0.123456, np.nan, 1.0]),
    conflict_before=0.5,
    conflict_after=float("nan"),
)
TRAIN, VAL = ExitScore((1.5, 1.0), (0.1, 0.2)), ExitScore((1.25, 0.5), (0.3, 0.4))


def record(val: ExitScore | None = VAL, fusion: FusionReport | None = FUSION) -> RoundRecord:
    return RoundRecord(3, 9, 12, 0.1, 0.1, TRAIN, val, {"train": 1.23456789, "fuse": 2.0}, "path", fusion)


def test_an_entry_by_hand():
    assert to_history(record()) == {
        "round": 3,
        "training_passes": 12,
        "train": {"loss": [1.5, 1.0], "accuracy": [0.1, 0.2]},
        "val": {"loss": [1.25, 0.5], "accuracy": [0.3, 0.4]},
        "seconds": {"train": 1.23457, "fuse": 2.0},
        "fusion": {
            "mean_weight": [0.25, 0.75],
            "cosine": [[1.0, -0.5], [-0.5, 1.0]],
            "delta_norm": [3.0, 4.0],
            "loss": 1.23457,
            "accuracy": [0.5, 0.625],
            "tensor_cosine": [-0.123, None, 1.0],
            "conflict_before": 0.5,
            "conflict_after": None,
        },
    }


def test_what_a_round_lacks_is_none():
    entry = to_history(record(None, None))
    assert entry["val"] is None and entry["fusion"] is None


def test_entries_survive_strict_json():
    entry = to_history(record())
    assert json.loads(json.dumps(entry, allow_nan=False)) == entry
    assert read_history({"history": [entry]}) == [entry]


def test_a_checkpoint_from_before_has_none():
    assert read_history({"config": {}}) == []


@pytest.mark.parametrize("history", ["text", {"round": 1}, [3], [{"loss": 1}], [{"round": 1}], None])
def test_what_is_no_history_is_refused(history):
    with pytest.raises(CheckpointError, match="history is not a list of rounds"):
        read_history({"history": history})

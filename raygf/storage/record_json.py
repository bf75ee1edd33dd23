"""Records as JSON values and back, exactly: a checkpoint keeps those of its last rounds.

A driver that is lost after it has written a checkpoint may not have handed the record out; the next one can.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from raygf.records import ExitScore, FusionReport, RoundRecord

KEPT = 3
"""Records in a checkpoint: one that was not handed out, and some to spare for very short rounds."""
_MATRICES = ("weights", "cosine", "tensor_cosine")
_TUPLES = ("mean_weight", "delta_norm", "accuracy")


def recent_records(values: Any) -> tuple[RoundRecord, ...]:
    """What ``kept_records`` gave; nothing if it is not that."""
    try:
        return tuple(from_json(each) for each in values or ())
    except (KeyError, TypeError, ValueError):
        return ()


def kept_records(records: Sequence[RoundRecord]) -> list[dict[str, Any]]:
    """The newest of ``records``, for a checkpoint."""
    return [to_json(record) for record in records[-KEPT:]]


def to_json(record: RoundRecord) -> dict[str, Any]:
    """``record`` as plain values; NaN stays NaN, which Python's JSON can write and read."""
    values = asdict(record)
    if record.fusion is not None:
        values["fusion"] |= {name: getattr(record.fusion, name).tolist() for name in _MATRICES}
    return values


def from_json(values: Mapping[str, Any]) -> RoundRecord:
    """What ``to_json`` gave.

    Raises:
        KeyError, TypeError, ValueError: it is not that.
    """
    plain = dict(values)
    plain |= {"train": _score(plain["train"]), "val": plain["val"] and _score(plain["val"])}
    plain |= {"fusion": plain["fusion"] and _fusion(plain["fusion"]), "notes": tuple(plain["notes"])}
    return RoundRecord(**plain)


def _score(values: Mapping[str, Any]) -> ExitScore:
    return ExitScore(tuple(values["loss"]), tuple(values["accuracy"]))


def _fusion(values: Mapping[str, Any]) -> FusionReport:
    matrices = {name: np.array(values[name], dtype=np.float64) for name in _MATRICES}
    return FusionReport(**{**values, **{name: tuple(values[name]) for name in _TUPLES}, **matrices})

"""What a checkpoint remembers of every round so far: plain numbers to draw figures over a whole run from.

One dict a round, JSON as it is:

* ``round``, ``training_passes``: counted from the start of the run;
* ``train``, ``val`` (None without a validation split): ``loss`` and ``accuracy`` (0–1) of every exit;
* ``seconds`` by phase; the newest round lacks "checkpoint", the time to write the checkpoint that it is in;
* ``skipped``: True for a round that diverged and left the network as it was, else absent;
* ``fusion`` (None for methods that fuse nothing): fields of ``FusionReport``, without the weights per tensor,
  which can be worked out from the checkpoint's own η.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from raygf.errors import CheckpointError
from raygf.records import ExitScore, FusionReport, RoundRecord

History = list[dict[str, Any]]

_KEYS = {"round", "training_passes", "train", "val", "seconds", "fusion"}
_DIGITS = 6
"""Significant digits kept; float32 sums are not good for more."""
_TENSOR_DIGITS = 3
"""Significant digits of what comes once a tensor: hundreds of numbers a round."""


def to_history(record: RoundRecord) -> dict[str, Any]:
    """``record`` as one entry. NaN becomes None, for which JSON has a word."""
    skipped = {"skipped": True} if record.skipped else {}
    return {
        "round": record.round,
        "training_passes": record.training_passes,
        "train": _score(record.train),
        "val": None if record.val is None else _score(record.val),
        "seconds": _short(record.seconds),
        "fusion": None if record.fusion is None else _fusion(record.fusion),
        **skipped,
    }


def read_history(meta: Mapping[str, Any]) -> History:
    """The entries in a checkpoint's ``meta``; none in one that was written before there were any.

    Raises:
        CheckpointError: they are not entries.
    """
    history = meta.get("history", [])
    if not isinstance(history, list) or not all(isinstance(e, dict) and e.keys() >= _KEYS for e in history):
        raise CheckpointError("the checkpoint's history is not a list of rounds")
    return list(history)


def skipped_in_a_row(history: History) -> int:
    """How many rounds at the end were skipped."""
    rows = 0
    for entry in reversed(history):
        if not entry.get("skipped"):
            break
        rows += 1
    return rows


def _score(score: ExitScore) -> dict[str, Any]:
    return {"loss": _short(score.loss), "accuracy": _short(score.accuracy)}


def _fusion(fusion: FusionReport) -> dict[str, Any]:
    return {
        "mean_weight": _short(fusion.mean_weight),
        "cosine": _short(fusion.cosine.tolist()),
        "delta_norm": _short(fusion.delta_norm),
        "loss": _short(fusion.loss),
        "accuracy": _short(fusion.accuracy),
        "tensor_cosine": _short(fusion.tensor_cosine.tolist(), _TENSOR_DIGITS),
        "conflict_before": _short(fusion.conflict_before),
        "conflict_after": _short(fusion.conflict_after),
    }


def _short(value: Any, digits: int = _DIGITS) -> Any:
    """Numbers, or nested lists or dicts of them, with so many significant digits."""
    if isinstance(value, Mapping):
        return {name: _short(item, digits) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_short(item, digits) for item in value]
    return None if math.isnan(value) else float(f"{value:.{digits}g}")

"""What a run says of itself: plain records that the terminal, MLflow and Tune read alike."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raygf.errors import CheckpointError

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class ExitScore:
    """How the exits do on one split: mean cross-entropy and top-1 accuracy (0–1), shallow to deep."""

    loss: tuple[float, ...]
    accuracy: tuple[float, ...]


@dataclass(frozen=True)
class FusionReport:
    """What fusing did in one round; n exits, T parameter tensors.

    ``weights`` (n, T): mean fusion weight of each exit in each tensor, NaN where the exit does not own it.
    ``mean_weight`` (n,): each exit's mean over the tensors that it shares with others.
    ``cosine`` (n, n): between the exits' deltas, over what both own. ``delta_norm`` (n,): L2 norms.
    ``loss``: mean of F over the fusion pass; ``accuracy`` (n,): of the fused network in it, 0–1.
    ``tensor_cosine`` (T,): mean cosine of all pairs of exits, NaN where fewer than two own the tensor.
    ``conflict_before``: share (0–1) of negative cosines over pairs and tensors that both own.
    ``conflict_after``: share (0–1) of (exit, shared tensor) whose delta has a negative cosine with the fused
    update. Both are NaN where nothing is shared.
    """

    weights: Matrix
    mean_weight: tuple[float, ...]
    cosine: Matrix
    delta_norm: tuple[float, ...]
    loss: float
    accuracy: tuple[float, ...]
    tensor_cosine: Matrix
    conflict_before: float
    conflict_after: float


@dataclass(frozen=True)
class RoundRecord:
    """One round. ``round`` counts from 1; ``training_passes`` counts passes over the training set so far.

    ``skipped``: it diverged and left the network as it was; ``train`` is NaN then, and the notes say why.
    """

    round: int
    rounds: int
    training_passes: int
    lr: float
    fusion_lr: float
    train: ExitScore
    val: ExitScore | None
    seconds: dict[str, float]
    checkpoint: str
    fusion: FusionReport | None = None
    notes: tuple[str, ...] = ()
    skipped: bool = False

    @property
    def total_seconds(self) -> float:
        """Wall time of the whole round."""
        return sum(self.seconds.values())


@dataclass(frozen=True)
class RunStart:
    """What is known before the first round.

    ``round``: rounds done already, when the run is resumed; ``run_id``: its tracking run. ``parameters`` and
    ``operations`` are cumulative up to each exit, shallow to deep. ``tensors``: names, shallow to deep.
    ``recent``: the records of the last rounds done already, as far as the checkpoint has them.
    """

    round: int
    classes: int
    train_images: int
    val_images: int
    test_images: int
    parameters: tuple[int, ...]
    operations: tuple[int, ...]
    tensors: tuple[str, ...]
    setting: str
    run_id: str = ""
    notes: tuple[str, ...] = ()
    recent: tuple[RoundRecord, ...] = field(default=(), compare=False)

    @property
    def last(self) -> RoundRecord | None:
        """The record of round ``round``, if there is one."""
        return self.recent[-1] if self.recent else None


@dataclass(frozen=True)
class RunEnd:
    """What is known after the last round."""

    rounds: int
    training_passes: int
    test: ExitScore
    weights_sha256: str
    checkpoint: str
    finished: bool


Notify = Callable[[str], None]


def ignore(text: str) -> None:
    """Where nobody listens."""


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
        "train": _history_score(record.train),
        "val": None if record.val is None else _history_score(record.val),
        "seconds": _short(record.seconds),
        "fusion": None if record.fusion is None else _history_fusion(record.fusion),
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


def _history_score(score: ExitScore) -> dict[str, Any]:
    return {"loss": _short(score.loss), "accuracy": _short(score.accuracy)}


def _history_fusion(fusion: FusionReport) -> dict[str, Any]:
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


class JsonText(str):
    """JSON that is a text already: ``write_archive`` puts it into its own as it is."""


class HistoryLog:
    """The entries of all rounds so far (see ``raygf.records``).

    They are one text. It takes a fifth of the memory of the entries' numbers, and one block of it: thousands
    of small ones that stay, among many that come and go, would leave holes in the heap.
    """

    def __init__(self, entries: Sequence[dict[str, Any]] = ()) -> None:
        self._text = ", ".join(json.dumps(entry) for entry in entries)
        self.skipped = skipped_in_a_row(list(entries))
        """Rounds at the end that were skipped."""

    def append(self, entry: dict[str, Any]) -> None:
        """Add the newest round's."""
        self._text = self._with(entry)
        self.skipped = self.skipped + 1 if entry.get("skipped") else 0

    def followed_by(self, entry: dict[str, Any]) -> JsonText:
        """All entries and ``entry`` as a JSON list."""
        return JsonText(f"[{self._with(entry)}]")

    def _with(self, entry: dict[str, Any]) -> str:
        return f"{self._text}, {json.dumps(entry)}" if self._text else json.dumps(entry)


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

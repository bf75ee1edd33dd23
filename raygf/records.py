"""The records of a run, which the terminal, MLflow, Tune and the figures read alike, and their JSON form."""

import json
import math
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import takewhile
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
    ``loss``: mean of ``F = Σ_i c_i CE_i``, or of what ``fusion.objective`` has in its place, over the fusion
    pass; ``accuracy`` (n,): of the fused network in it, 0–1.
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
    """One round. ``round`` counts from 1.

    ``training_operations``: of all training so far, forward and backward, over all images;
    ``training_passes``: the same in epochs of joint SGD on this network.
    ``skipped``: it diverged and left the network as it was; ``train`` is NaN then, and the notes say why.
    """

    round: int
    rounds: int
    training_passes: float
    lr: float
    fusion_lr: float
    train: ExitScore
    val: ExitScore | None
    seconds: dict[str, float]
    checkpoint: str
    fusion: FusionReport | None = None
    notes: tuple[str, ...] = ()
    skipped: bool = False
    training_operations: int = 0

    @property
    def total_seconds(self) -> float:
        """Wall time of the whole round."""
        return sum(self.seconds.values())


@dataclass(frozen=True)
class RunStart:
    """What is known before the first round.

    ``round``: rounds done already, when the run is resumed; ``run_id``: its tracking run. ``parameters`` and
    ``operations`` are cumulative up to each exit, shallow to deep. ``tensors``: names, shallow to deep.
    ``recent``: the records of the last rounds done already, as far as the checkpoint has them. ``data``: the
    data set's name; ``digests``: of the images of every split. ``software``: versions, and the device's name.
    ``history``: the entries of all rounds done already, as ``read_history`` has them.
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
    data: str = ""
    digests: Mapping[str, str] = field(default_factory=dict, compare=False)
    software: Mapping[str, str] = field(default_factory=dict, compare=False)
    history: tuple[Mapping[str, Any], ...] = field(default=(), compare=False)

    @property
    def last(self) -> RoundRecord | None:
        """The record of round ``round``, if there is one."""
        return self.recent[-1] if self.recent else None


@dataclass(frozen=True)
class RunEnd:
    """What is known after the last round.

    ``seconds``: wall time of all rounds, those before a resume too, as the last checkpoint has it: without
    its own writing.
    """

    rounds: int
    training_passes: float
    test: ExitScore
    weights_sha256: str
    checkpoint: str
    finished: bool
    seconds: float = field(default=math.nan, compare=False)
    training_operations: int = 0


Notify = Callable[[str], None]


def ignore(text: str) -> None:
    """Drop the note ``text``."""


Entry = dict[str, Any]
"""A ``RoundRecord`` as JSON values: its fields by name, NaN as None. Old ones are shortened."""
History = list[Entry]

KEPT = 3
"""Whole records in a checkpoint: one that was not handed out, and some to spare for very short rounds."""
_DIGITS = 6
"""Significant digits of shortened entries; float32 sums are not good for more."""
_TENSOR_DIGITS = 3
"""Significant digits of what comes once a tensor: hundreds of numbers a round."""
_NEEDED = {"round", "training_passes", "train", "val", "seconds", "fusion"}
_DRAWN = {*_NEEDED, "training_operations"}
"""What figures are drawn from: all that a shortened entry has beside ``skipped``."""


def to_json(record: RoundRecord) -> Entry:
    """``record`` to the bit."""
    entry: Entry = plain(asdict(record))
    return entry


def from_json(entry: Mapping[str, Any]) -> RoundRecord:
    """The record that ``to_json`` made ``entry`` of; KeyError or TypeError if it is not whole."""
    parts: dict[str, Any] = {"notes": tuple(entry["notes"])}
    for name, kind in (("train", ExitScore), ("val", ExitScore), ("fusion", FusionReport)):
        values = entry[name]
        parts[name] = values and kind(**{key: _restored(key, value) for key, value in values.items()})
    return RoundRecord(**{**entry, **parts})


def from_history(entry: Mapping[str, Any]) -> RoundRecord:
    """The record of a shortened ``entry``, with NaN or nothing for what it lacks."""
    lacking = {"rounds": entry["round"], "notes": (), "checkpoint": "", "lr": math.nan, "fusion_lr": math.nan}
    fusion = entry["fusion"] and {"weights": [], **entry["fusion"]}
    return from_json({**lacking, **entry, "fusion": fusion})


def shortened(entry: Entry) -> Entry:
    """What figures are drawn from, in few digits: a third of a record's text, or less."""
    short = {name: _rounded(value) for name, value in entry.items() if name in _DRAWN}
    if entry["fusion"] is not None:
        parts = {name: part for name, part in entry["fusion"].items() if name != "weights"}
        tensors = _rounded(parts["tensor_cosine"], _TENSOR_DIGITS)
        short["fusion"] = {**_rounded(parts), "tensor_cosine": tensors}
    return short | ({"skipped": True} if entry.get("skipped") else {})


def read_history(meta: Mapping[str, Any]) -> History:
    """The entries of all rounds in a checkpoint's ``meta``, shortened; CheckpointError if they are none."""
    entries = meta.get("history", [])
    if not isinstance(entries, list) or not all(isinstance(e, dict) and e.keys() >= _NEEDED for e in entries):
        raise CheckpointError("the checkpoint's history is not a list of rounds")
    return [shortened(entry) for entry in entries]


def wall_time(history: History) -> float:
    """Seconds of all rounds in ``history``; NaN if it lacks some of the first."""
    whole = [entry["round"] for entry in history] == list(range(1, len(history) + 1))
    return float(sum(sum(entry["seconds"].values()) for entry in history)) if whole else math.nan


class JsonText(str):
    """JSON that is a text already: ``write_archive`` puts it into its own as it is."""


class HistoryLog:
    """The entries of all rounds so far; the last ``KEPT`` are whole records, those before are shortened.

    The latter are one text. It takes a fifth of the memory of the entries' numbers, and one block of it:
    thousands of small ones that stay, among many that come and go, would leave holes in the heap.

    Args:
        meta: of the checkpoint that the run is resumed from.

    Raises CheckpointError: what it has is no history.
    """

    def __init__(self, meta: Mapping[str, Any] | None = None) -> None:
        meta = meta or {}
        entries = read_history(meta)
        self.recent: deque[RoundRecord] = deque(maxlen=KEPT)
        """The records of the last rounds, as far as they are known."""
        with suppress(KeyError, TypeError):
            for entry in reversed(meta["history"][-KEPT:]):
                self.recent.appendleft(from_json(entry))
        self._older = _joined(*map(json.dumps, entries[: len(entries) - len(self.recent)]))
        self.skipped = len(list(takewhile(lambda entry: entry.get("skipped"), reversed(entries))))
        """Rounds at the end that were skipped."""
        self.seconds = wall_time(entries)
        """Wall time of all rounds; NaN if some are not known."""

    def append(self, record: RoundRecord) -> None:
        """Add the newest round's record."""
        if len(self.recent) == KEPT:
            self._older = _joined(self._older, json.dumps(shortened(to_json(self.recent[0]))))
        first = not self._older and not self.recent
        self.seconds = record.total_seconds + (math.nan if first and record.round > 1 else self.seconds)
        self.recent.append(record)
        self.skipped = self.skipped + 1 if record.skipped else 0

    def followed_by(self, record: RoundRecord) -> JsonText:
        """All entries and that of ``record`` as a JSON list."""
        entries = [to_json(each) for each in (*self.recent, record)]
        older, newest = entries[:-KEPT], entries[-KEPT:]
        texts = [json.dumps(entry) for entry in (*map(shortened, older), *newest)]
        return JsonText(f"[{_joined(self._older, *texts)}]")


def _joined(*texts: str) -> str:
    return ", ".join(filter(None, texts))


def plain(value: Any) -> Any:
    """``value`` with lists for arrays and tuples, and None for NaN, which JSON has no word for."""
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _rounded(value: Any, digits: int = _DIGITS) -> Any:
    """Plain ``value`` with so many significant digits in its floats."""
    if isinstance(value, Mapping):
        return {name: _rounded(item, digits) for name, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item, digits) for item in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def _restored(name: str, value: Any) -> Any:
    """The field ``name`` of a score or fusion report, of which ``plain`` made ``value``."""
    if name in ("weights", "cosine", "tensor_cosine"):
        return np.array(value, np.float64)  # None becomes NaN
    if isinstance(value, list):
        return tuple(_restored("", item) for item in value)
    return math.nan if value is None else value

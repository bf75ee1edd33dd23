"""What a run shows in a terminal or a log file: progress on stderr, results on stdout."""

from __future__ import annotations

import contextlib
import statistics
import sys
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import IO

from rich.console import Console
from rich.table import Table

from raygf.evaluation.tables import count_unit
from raygf.records import ExitScore, RoundRecord, RunStart

_MEDIAN_OF = 5
"""Rounds that the remaining time is estimated from: enough to outlast one slow round."""
_WIDEST = 400
"""Columns of a table in a file or a pipe."""


def notify(text: str) -> None:
    """Print a note on standard error, where all that is not a result goes."""
    print(f"note: {' '.join(text.split())}", file=sys.stderr, flush=True)


class _Console(Console):
    """A console that a closed pipe silences; rich's own would end the program."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class Progress:
    """One row a round. It never raises for trouble with the stream: a run outlives its terminal.

    Args:
        stream: Where to write; by default stderr.
        last_round: The run stops after this round on purpose; by default it goes through all rounds.
    """

    def __init__(self, stream: IO[str] | None = None, last_round: int | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._last_round = last_round
        self._seconds: deque[float] = deque(maxlen=_MEDIAN_OF)
        self._shown: set[str] = set()

    def start(self, start: RunStart) -> None:
        """Show what is trained on what, with its notes under it."""
        self._line(header_line(start))
        for text in start.notes:
            self.note(text)

    def round(self, record: RoundRecord) -> None:
        """Show how a round went, with its notes under it, but for those shown when they came up."""
        self._seconds.append(record.total_seconds)
        last = min(record.rounds, self._last_round or record.rounds)
        left = statistics.median(self._seconds) * max(0, last - record.round)
        self._line(round_line(record, left))
        for text in record.notes:
            if text not in self._shown:
                self.note(text)

    def note(self, text: str) -> None:
        """Show ``text`` on a line of its own."""
        self._shown.add(text)
        self._line(f"note: {text}")

    def _line(self, text: str) -> None:
        _survive(lambda: print(text, file=self._stream, flush=True))


def print_table(table: Table, stream: IO[str] | None = None) -> None:
    """Print ``table`` to ``stream`` (by default stdout); it is never squeezed in a file or a pipe."""
    out = stream if stream is not None else sys.stdout
    _survive(lambda: _Console(file=out, width=None if out.isatty() else _WIDEST).print(table))


def header_line(start: RunStart) -> str:
    """``900 training, 300 validation, 597 test images, 10 classes; 2 exits of 0.10 0.20 M operations; …``"""
    unit = count_unit(start.operations)
    operations = " ".join(unit.text(count) for count in start.operations)
    validation = f" {start.val_images} validation," if start.val_images else ""
    images = f"{start.train_images} training,{validation} {start.test_images} test images"
    exits = f"{len(start.operations)} exits of {operations} {unit.name} operations"
    return f"{images}, {start.classes} classes; {exits}; {start.setting}"


def round_line(record: RoundRecord, seconds_left: float) -> str:
    """``round 3/40  1.9 s  loss 1.234  val 71.2 80.1 83.0 (avg 78.1) %  eta 0:01:10``

    The loss is the exits' mean training loss; without a validation the accuracy is the training's ("train").
    A skipped round is marked instead.
    """
    parts = [f"round {record.round}/{record.rounds}", f"{record.total_seconds:.1f} s"]
    parts.append("skipped" if record.skipped else f"loss {statistics.fmean(record.train.loss):.3f}")
    if record.val is not None:
        parts.append(_accuracy("val", record.val))
    elif not record.skipped:
        parts.append(_accuracy("train", record.train))
    if seconds_left > 0:
        parts.append(f"eta {timedelta(seconds=round(seconds_left))}")
    return "  ".join(parts)


def _accuracy(split: str, score: ExitScore) -> str:
    exits = " ".join(f"{100 * accuracy:.1f}" for accuracy in score.accuracy)
    return f"{split} {exits} (avg {100 * statistics.fmean(score.accuracy):.1f}) %"


def _survive(write: Callable[[], object]) -> None:
    """Write; a terminal that is gone, a closed pipe or an unprintable character is no reason to end a run."""
    with contextlib.suppress(OSError, ValueError):
        write()

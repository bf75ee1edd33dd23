"""Ray Tune's table of trials, short enough for a terminal and for ``ray job logs``."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from raygf.console import duration, print_table
from raygf.evaluation.tables import MISSING, terminal_table
from raygf.sweep.objective import PASSES, shown_score
from raygf.sweep.table import short, text_of
from raygf.sweep.trial import FAILURE, VALUES

EVERY_S = 30.0
"""Seconds between two tables."""

_ROWS = 12
_ORDER = (Trial.RUNNING, Trial.PAUSED, Trial.ERROR, Trial.TERMINATED, Trial.PENDING)


class SweepReporter(tune.ProgressReporter):  # type: ignore[misc]
    """Prints on standard error, every half minute and only when something has changed."""

    def __init__(self, fields: Sequence[str], metric: str, mode: str, every_s: float = EVERY_S) -> None:
        self._fields, self._metric, self._mode, self._every_s = tuple(fields), metric, mode, every_s
        self._began = self._printed = time.monotonic()
        self._last: Any = None

    def setup(self, *args: Any, **info: Any) -> None:
        """Tune starts."""
        self._began = self._printed = time.monotonic()

    def should_report(self, trials: list[Trial], done: bool = False) -> bool:
        """Whether a table is due; not at the end, when there is a better one."""
        if done or time.monotonic() - self._printed < self._every_s:
            return False
        state = [(trial.trial_id, trial.status, (trial.last_result or {}).get(PASSES)) for trial in trials]
        changed = bool(state != self._last)
        self._last = state
        return changed

    def report(self, trials: list[Trial], done: bool, *sys_info: str) -> None:
        """Print the table."""
        self._printed = time.monotonic()
        counts = Counter(trial.status for trial in trials)
        kinds = [f"{counts[status]} {status.lower()}" for status in _ORDER if counts[status]]
        title = f"{duration(self._printed - self._began)}: {', '.join(kinds)}"
        header = ["Trial", "Status", *(short(name, self._fields) for name in self._fields)]
        shown = sorted(trials, key=self._rank)[:_ROWS]
        rest = [[f"{len(trials) - _ROWS} more", *[""] * (len(header) + 1)]] if len(trials) > _ROWS else []
        rows = [*map(self._line, shown), *rest]
        print_table(terminal_table([*header, self._metric, "Passes"], rows, [], title), sys.stderr)

    def _rank(self, trial: Trial) -> tuple[int, float]:
        score = (trial.last_result or {}).get(self._metric)
        better = 0.0 if score is None else float(score) * (-1 if self._mode == "max" else 1)
        return _ORDER.index(trial.status), better

    def _line(self, trial: Trial) -> list[str]:
        result, values = trial.last_result or {}, trial.config.get(VALUES, {})
        cells = [text_of(values[name]) if name in values else MISSING for name in self._fields]
        score = shown_score(self._metric, result[self._metric]) if self._metric in result else MISSING
        passes = str(int(result[PASSES])) if PASSES in result else MISSING
        status = "failed" if FAILURE in result else trial.status.lower()
        return [trial.trial_id, status, *cells, score, passes]

"""The MLflow runs of a sweep's trials: one each, whatever happens to the trial or to the sweep's process."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal

from raygf.config import RunConfig
from raygf.errors import TrackingError
from raygf.records import RoundRecord, RunEnd, RunStart
from raygf.tracking.base import Say, Tracker
from raygf.tracking.worker import Worker

CLOSE_S = 300.0
"""Seconds that closing the runs of all trials may take at the sweep's end."""
RETRY_S = 60.0
"""Seconds between two tries to open a run that could not be opened."""


@dataclass
class _Trial:
    """One trial's tracker, and what waits until its run could be opened."""

    tracker: Tracker
    config: RunConfig
    opened: bool = False
    started: bool = False
    tried: float = -RETRY_S
    trouble: str = ""
    waiting: list[Callable[[Tracker], None]] = field(default_factory=list)


class SweepTrials:
    """Feeds one tracker a trial. No trouble with the store is raised: it costs one remark a trial.

    Opening a run is waited for, within the tracker's limits; closing it happens in the background.

    Args:
        make: makes a trial's tracker.
        parent: the sweep's run.
        recipe: that all trials come from.
        known: the runs of trials that were started before, by trial.
        keep: called with ``known`` after it has grown.
        say: called with remarks.
    """

    def __init__(
        self,
        make: Callable[[str], Tracker],
        parent: str,
        recipe: str,
        known: Mapping[str, str],
        keep: Callable[[dict[str, str]], None],
        say: Say,
    ) -> None:
        self._make, self._parent, self._recipe = make, parent, recipe
        self._known, self._keep, self._say = dict(known), keep, say
        self._trials: dict[str, _Trial] = {}
        self._closer = Worker()
        self._closings: list[Future[None]] = []
        self._closer.start()

    def start(self, trial: str, config: RunConfig) -> None:
        """Open the run of ``trial``, or open it again; nothing happens if it is open."""
        if trial not in self._trials:
            self._trials[trial] = _Trial(self._make(trial), config)
            self._open(trial)
        if trial not in self._known:  # its place among the trials, even if it could not be opened yet
            self._remember(trial, "")

    def log_start(self, trial: str, start: RunStart) -> None:
        """Log what is known before the first round; only the first time."""
        if not self._trials[trial].started:
            self._trials[trial].started = True
            self._post(trial, lambda tracker: tracker.log_start(start))

    def log_round(self, trial: str, record: RoundRecord) -> None:
        """Log one round."""
        self._post(trial, lambda tracker: tracker.log_round(record))

    def log_tags(self, trial: str, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self._post(trial, lambda tracker: tracker.log_tags(tags))

    def finish(self, trial: str, end: RunEnd) -> None:
        """Close the run of a trial that came to its end."""
        self._end(trial, lambda tracker: tracker.finish(end))

    def stop(self, trial: str, last: RoundRecord, reason: str) -> None:
        """Close the run of a trial that was stopped after the round ``last``."""
        self._end(trial, lambda tracker: tracker.stop(last, reason))

    def fail(self, trial: str, status: Literal["FAILED", "KILLED"], reason: str) -> None:
        """Close the run of a trial that failed."""
        self._end(trial, lambda tracker: tracker.fail(status, reason))

    def forget(self, trials: Collection[str]) -> None:
        """Take ``trials`` for unknown: there are none of these names any more."""
        self._known = {trial: run for trial, run in self._known.items() if trial not in trials}
        self._keep(dict(self._known))

    def close(self) -> None:
        """Wait until all runs are closed that should be."""
        limit = time.monotonic() + CLOSE_S
        for closing in self._closings:
            try:
                closing.result(max(0.0, limit - time.monotonic()))
            except TimeoutError:
                self._say(f"tracking: runs of trials could not be closed within {CLOSE_S:.0f} s")
                break
        self._closer.stop()

    def _post(self, trial: str, call: Callable[[Tracker], None]) -> None:
        state = self._trials[trial]
        state.waiting.append(call)
        if not state.opened and time.monotonic() - state.tried > RETRY_S:
            self._open(trial)
        if state.opened:
            self._flush(state)

    def _end(self, trial: str, call: Callable[[Tracker], None]) -> None:
        """Have ``call`` close the run in the background; it is opened a last time if need be."""
        state = self._trials.pop(trial, None)
        if state is None:
            return
        if not state.opened and not self._try_open(trial, state):
            return self._say(f"tracking: trial {trial} is not in MLflow")
        state.waiting.append(call)
        self._closings.append(self._closer.submit(lambda: self._flush(state)))

    def _open(self, trial: str) -> None:
        state = self._trials[trial]
        first = state.tried < 0
        if not self._try_open(trial, state) and first:
            self._say(f"tracking: the run of trial {trial} is opened later; training goes on")

    def _try_open(self, trial: str, state: _Trial) -> bool:
        state.tried = time.monotonic()
        run_id = self._known.get(trial) or None
        try:
            opened = state.tracker.start(
                state.config, trial, run_id, recipe=self._recipe, parent_run_id=self._parent
            )
        except TrackingError as error:
            if str(error) != state.trouble:
                self._say(f"tracking: {error}")
            state.trouble = str(error)
            return False
        state.opened = True
        if opened != run_id:
            self._remember(trial, opened)
        return True

    def _remember(self, trial: str, run_id: str) -> None:
        self._known[trial] = run_id
        self._keep(dict(self._known))

    @staticmethod
    def _flush(state: _Trial) -> None:
        waiting, state.waiting = state.waiting, []
        for call in waiting:
            call(state.tracker)

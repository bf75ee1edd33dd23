"""What a job sees of tracking, and the tracker that tracks nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, Protocol

from raygf.config import RunConfig
from raygf.records import RoundRecord, RunEnd, RunStart

Say = Callable[[str], None]


class Tracker(Protocol):
    """What a job does with a tracker: ``start``, logs, then ``finish``, ``stop`` or ``fail``."""

    def start(
        self,
        config: RunConfig,
        run_name: str,
        run_id: str | None = None,
        *,
        recipe: str = "",
        parent_run_id: str = "",
    ) -> str:
        """Create a run, or reopen ``run_id``; returns its id. Raises ``TrackingError``."""
        ...

    def log_start(self, start: RunStart) -> None:
        """Log what is known before the first round."""
        ...

    def log_round(self, record: RoundRecord) -> None:
        """Log one round, without waiting for it to arrive."""
        ...

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, without waiting for them to arrive."""
        ...

    def finish(self, end: RunEnd) -> None:
        """Log the results and close the run as FINISHED."""
        ...

    def stop(self, last: RoundRecord, reason: str) -> None:
        """Close the run as FINISHED after the round ``last``, before its end: it has no results."""
        ...

    def fail(self, status: Literal["FAILED", "KILLED"], reason: str) -> None:
        """Close the run with ``status``; nothing happens if it is closed already."""
        ...


class NullTracker:
    """Tracks nothing."""

    def start(
        self,
        config: RunConfig,
        run_name: str,
        run_id: str | None = None,
        *,
        recipe: str = "",
        parent_run_id: str = "",
    ) -> str:
        """No run, no id."""
        return ""

    def log_start(self, start: RunStart) -> None:
        """Nothing."""

    def log_round(self, record: RoundRecord) -> None:
        """Nothing."""

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Nothing."""

    def finish(self, end: RunEnd) -> None:
        """Nothing."""

    def stop(self, last: RoundRecord, reason: str) -> None:
        """Nothing."""

    def fail(self, status: Literal["FAILED", "KILLED"], reason: str) -> None:
        """Nothing."""

"""What became of the trials: one row each, and which one is best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from raygf.records import RoundRecord, RunEnd
from raygf.sweep.causes import cause_of
from raygf.sweep.folder import SweepFolder
from raygf.sweep.plan import Plan
from raygf.sweep.space import Values
from raygf.sweep.trial import END, FAILURE, RECORD, VALUES
from raygf.sweep.trial_files import NAME

Status = Literal["finished", "stopped early", "failed"]


@dataclass(frozen=True)
class TrialRow:
    """One trial.

    ``score``: its metric after the last round that it did. ``test``: average test accuracy, 0–1, of a trial
    that came to its end; never looked at to choose. ``cause``: why it failed.
    """

    trial: str
    status: Status
    values: Values
    score: float | None
    test: float | None
    rounds: int
    passes: int
    seconds: float
    checkpoint: str
    run_id: str
    cause: str = ""


def read_rows(results: Sequence[Any], plan: Plan, folder: SweepFolder) -> list[TrialRow]:
    """A row for each of Tune's ``results``, in the order in which the trials were made up."""
    runs = folder.read_trials()
    started = {trial: number for number, trial in enumerate(runs)}
    rows = [_row(result, plan, folder, runs) for result in results]
    return sorted(rows, key=lambda row: _number(row.trial, started.get(row.trial, len(started))))


def best_row(rows: Sequence[TrialRow], mode: str) -> TrialRow | None:
    """The trial with the best score among those that did not fail; the earliest of equals."""
    scored = [row for row in rows if row.status != "failed" and row.score is not None]
    sign = 1.0 if mode == "max" else -1.0
    return max(scored, key=lambda row: sign * float(row.score or 0.0), default=None)


def failures(rows: Sequence[TrialRow]) -> list[str]:
    """A line for every failed trial."""
    return [f"trial {row.trial} failed: {row.cause}" for row in rows if row.status == "failed"]


def _number(trial: str, started: int) -> int:
    """Tune numbers the trials of a list in their names (``5a1b2_00003``); others count as they started."""
    number = trial.rpartition("_")[2]
    return int(number) if "_" in trial and number.isdigit() else started


def _row(result: Any, plan: Plan, folder: SweepFolder, runs: Mapping[str, str]) -> TrialRow:
    metrics: dict[str, Any] = result.metrics or {}
    trial = str(metrics.get("trial_id") or result.path.rpartition("/")[2])
    record: RoundRecord | None = metrics.get(RECORD)
    end: RunEnd | None = metrics.get(END)
    failed = result.error is not None or record is None
    return TrialRow(
        trial=trial,
        status="failed" if failed else "finished" if end else "stopped early",
        values=dict((result.config or {}).get(VALUES, {})),
        score=None if record is None else float(metrics[plan.metric]),
        test=None if end is None else sum(end.test.accuracy) / len(end.test.accuracy),
        rounds=0 if record is None else record.round,
        passes=0 if record is None else record.training_passes,
        seconds=float(metrics.get("time_total_s") or 0.0),
        checkpoint="" if result.checkpoint is None else f"{_checkpoint(result, trial, folder)}/{NAME}",
        run_id=runs.get(trial, ""),
        cause=str(metrics.get(FAILURE) or cause_of(result.error)) if failed else "",
    )


def _checkpoint(result: Any, trial: str, folder: SweepFolder) -> str:
    """The checkpoint's folder; Tune knows it without the kind of storage in front."""
    name = result.checkpoint.path.rstrip("/").rpartition("/")[2]
    return f"{folder.of_trial(trial)}/{name}"

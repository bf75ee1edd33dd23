"""Ray Tune's news about trials, handed on to MLflow and to the terminal by the sweep's own process."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from raygf.config.run import StorageConfig
from raygf.records import RoundRecord, RunEnd
from raygf.sweep.folder import SweepFolder
from raygf.sweep.plan import Plan, flags_for, shown_score
from raygf.sweep.space import Values
from raygf.sweep.trial import END, FAILURE, NAME, RECORD, START, VALUES, cause_of
from raygf.tracking.store import resolve_uri
from raygf.tracking.sweep import SweepTrials, child_statuses, delete_children
from raygf.tracking.tracker import Tracker, make_tracker


def notify(text: str) -> None:
    """A remark on standard error, where all that is not a result goes."""
    print(f"note: {' '.join(text.split())}", file=sys.stderr, flush=True)


_FOLDER_KEY = "checkpoint_dir_name"
"""Where Tune puts the name of a checkpoint's folder into a result."""


class SweepCallback(tune.Callback):  # type: ignore[misc]
    """Reports what happens to trials. Tune stores it with the sweep: only where the sweep is goes with it."""

    def __init__(self, storage: StorageConfig) -> None:
        """``storage``: the sweep's folder, whose plan is read when Tune starts."""
        self._storage = storage
        self._plan: Plan
        self._folder: SweepFolder
        self._runs: SweepTrials
        self._settled = False
        self._values: dict[str, Values] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_storage": self._storage, "_settled": False, "_values": {}}

    def setup(self, *args: Any, **info: Any) -> None:
        """Tune starts, with a new sweep or an old one."""
        self._folder = SweepFolder(self._storage)
        self._plan = plan = self._folder.read_plan()
        known, keep = self._folder.read_trials(), self._folder.write_trials
        self._runs = SweepTrials(self._tracker, plan.parent, plan.recipe, known, keep, notify)

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """The first step of a resumed sweep: put right what its killed process left."""
        self._settle(trials)

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Open the trial's run before it trains: its checkpoints hold the run's id."""
        self._start(trial)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Log a round; a result without one says why the trial can't succeed."""
        if RECORD not in result:
            return
        if start := result.get(START):
            self._runs.log_start(trial.trial_id, start)
            for note in start.notes:
                notify(f"trial {trial.trial_id}: {note}")
        record = self._record(trial, result)
        self._notice_values(trial, record.round)
        self._runs.log_round(trial.trial_id, record)
        for note in record.notes:
            notify(f"trial {trial.trial_id}: {note}")

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial crashed and is tried again."""
        again = f"trying again ({trial.num_failures} of {self._plan.options.max_failures})"
        notify(f"trial {trial.trial_id} crashed, {again}: {cause_of(_error(trial))}")

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial came to its end, or the scheduler stopped it."""
        self._close(trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial failed for good."""
        self._fail(trial)

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Tune is through."""
        self._settle(trials)
        self._runs.close()

    def _tracker(self, trial: str) -> Tracker:
        """What it can't deliver is kept in the trial's folder."""
        storage = StorageConfig(self._folder.path, trial)
        return make_tracker(self._plan.run.tracking, Path.cwd(), notify, storage)

    def _start(self, trial: Trial) -> None:
        run = self._plan.trial_run(trial.trial_id, trial.config[VALUES])
        self._runs.start(trial.trial_id, run)

    def _notice_values(self, trial: Trial, round: int) -> None:
        """Tell when population based training has given a trial other values; its parameters can't change."""
        if trial.status == Trial.PAUSED:  # it got them just now; this round was still done with the old ones
            return
        now, before = trial.config[VALUES], self._values.get(trial.trial_id)
        self._values[trial.trial_id] = now
        if before not in (None, now):
            shown = flags_for(now)
            notify(f"trial {trial.trial_id} goes on from another's checkpoint, with {shown}")
            self._runs.log_tags(trial.trial_id, {f"raygf.values_from_round_{round}": shown})

    def _close(self, trial: Trial) -> None:
        result = trial.last_result or {}
        if RECORD not in result:
            return self._fail(trial)
        record, score = self._record(trial, result), result[self._plan.metric]
        shown = f"{self._plan.metric} {shown_score(self._plan.metric, score)}"
        passes = f"after {record.training_passes} training passes"
        if end := self._end(trial, result):
            self._runs.finish(trial.trial_id, end)
            notify(f"trial {trial.trial_id} finished: {shown} {passes}")
        else:
            self._runs.stop(trial.trial_id, record, self._plan.options.scheduler)
            notify(f"trial {trial.trial_id} stopped early: {shown} {passes}")

    def _fail(self, trial: Trial) -> None:
        cause = (trial.last_result or {}).get(FAILURE) or cause_of(_error(trial))
        self._runs.fail(trial.trial_id, "FAILED", cause)
        notify(f"trial {trial.trial_id} failed: {cause}")

    def _record(self, trial: Trial, result: dict[str, Any]) -> RoundRecord:
        record: RoundRecord = result[RECORD]
        return replace(record, checkpoint=self._checkpoint(trial, result))

    def _end(self, trial: Trial, result: dict[str, Any]) -> RunEnd | None:
        end: RunEnd | None = result.get(END)
        return end and replace(end, checkpoint=self._checkpoint(trial, result))

    def _checkpoint(self, trial: Trial, result: dict[str, Any]) -> str:
        """Where Tune keeps it, if it got one; the record only knows where the driver wrote it."""
        name = result.get(_FOLDER_KEY)
        return f"{self._folder.of_trial(trial.trial_id)}/{name}/{NAME}" if name else ""

    def _settle(self, trials: Sequence[Trial]) -> None:
        """Once: delete runs that no trial of the restored sweep has, close those of trials that are over."""
        if self._settled:
            return
        self._settled = True
        plan, known = self._plan, self._folder.read_trials()
        if not known or not plan.parent or not plan.run.tracking.enabled:
            return
        lost = known.keys() - {trial.trial_id for trial in trials}
        self._runs.forget(lost)
        uri = resolve_uri(plan.run.tracking, Path.cwd())
        statuses = child_statuses(uri, plan.parent)
        delete_children(uri, statuses.keys() - {run for trial, run in known.items() if trial not in lost})
        for trial in trials:
            if trial.is_finished() and statuses.get(known.get(trial.trial_id, "")) in ("RUNNING", "KILLED"):
                self._start(trial)
                if trial.status == Trial.ERROR:
                    self._fail(trial)
                else:
                    self._close(trial)


def _error(trial: Trial) -> object:
    """The error that Tune has written down: on this machine or, before a resume, in the storage."""
    with suppress(Exception):  # an error may need a module of the user's to be unpickled
        file = Path(trial.pickled_error_file)
        return pickle.loads(file.read_bytes()) if file.exists() else trial.get_pickled_error()
    return trial.get_error()

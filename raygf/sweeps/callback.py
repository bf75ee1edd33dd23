"""Ray Tune's news about trials, passed to MLflow and to the terminal by the sweep's own process."""

from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from raygf.config.run import StorageConfig
from raygf.console import notify
from raygf.errors import TrackingError, Worker
from raygf.evaluation.tables import passes_text
from raygf.records import RoundRecord, RunEnd
from raygf.sweeps.plan import Plan, SweepFolder, name_of, shown_score
from raygf.sweeps.trial import END, FAILURE, NAME, RECORD, START, VALUES, cause_of
from raygf.tracking.tracker import Tracker, make_tracker

CLOSE_S = 300.0
"""Seconds that closing the runs of all trials may take at the sweep's end."""
_FOLDER_KEY = "checkpoint_dir_name"
"""Where Tune puts the name of a checkpoint's folder into a result."""


class SweepCallback(tune.Callback):  # type: ignore[misc]
    """Reports what happens to trials; Tune stores it with the sweep before ``setup`` is called."""

    def __init__(self, storage: StorageConfig) -> None:
        """``storage``: the sweep's folder, whose plan is read when Tune starts."""
        self._storage = storage
        self._plan: Plan
        self._folder: SweepFolder
        self._known: dict[str, str]
        self._trackers: dict[str, Tracker] = {}
        self._begun: set[str] = set()

    def setup(self, *args: Any, **info: Any) -> None:
        """Tune starts, with a new sweep or an old one."""
        self._folder = SweepFolder(self._storage)
        self._plan = self._folder.read_plan()
        self._known = self._folder.read_trials()
        # Opening a run is waited for, within the tracker's limits; closing it happens in the background.
        self._closer, self._closings = Worker("raygf-closing"), list[Future[None]]()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Open the trial's run before it trains, or open it again: its checkpoints hold the run's id.

        Trouble with the store costs a note; the trial is not in MLflow then, unless the sweep is resumed.
        """
        plan, key, name = self._plan, trial.trial_id, _name(trial)
        if key in self._trackers:  # it crashed, and is tried again
            return
        self._trackers[key] = tracker = make_tracker(plan.run.tracking, Path.cwd(), notify)
        run, before = plan.trial_run(key, trial.config[VALUES]), self._known.get(key, "")
        try:
            run_id = tracker.start(run, name, before or None, recipe=plan.recipe, parent_run_id=plan.parent)
        except TrackingError as error:
            notify(f"tracking: {error}; trial {name} is not in MLflow")
            run_id = before
        if key not in self._known or run_id != before:  # its place among the trials, in any case
            self._known[key] = run_id
            self._folder.write_trials(self._known)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Log a round; a result without one says why the trial can't succeed."""
        if RECORD not in result:
            return
        record, start = self._record(trial, result), result.get(START)
        tracker = self._trackers[trial.trial_id]
        if start is not None and trial.trial_id not in self._begun:
            self._begun.add(trial.trial_id)
            tracker.log_start(start)
        tracker.log_round(record)
        for note in (*(start.notes if start else ()), *record.notes):
            notify(f"trial {_name(trial)}: {note}")

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial crashed and is tried again."""
        again = f"trying again ({trial.num_failures} of {self._plan.options.max_failures})"
        notify(f"trial {_name(trial)} crashed, {again}: {cause_of(_error(trial))}")

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial came to its end, or the scheduler stopped it."""
        result, metric = trial.last_result or {}, self._plan.metric
        if RECORD not in result:
            return self.on_trial_error(iteration, trials, trial)
        record = self._record(trial, result)
        end: RunEnd | None = result.get(END)
        if end is not None:
            whole = replace(end, checkpoint=record.checkpoint)
            self._close(trial, lambda tracker: tracker.finish(whole))
        else:
            scheduler = self._plan.options.scheduler
            self._close(trial, lambda tracker: tracker.stop(record, scheduler))
        notify(
            f"trial {_name(trial)} {'stopped early' if end is None else 'finished'}: {metric} "
            f"{shown_score(metric, result[metric])} after {passes_text(record.training_passes)} training "
            "passes"
        )

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial failed for good."""
        cause = (trial.last_result or {}).get(FAILURE) or cause_of(_error(trial))
        self._close(trial, lambda tracker: tracker.fail("FAILED", cause))
        notify(f"trial {_name(trial)} failed: {cause}")

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Tune has ended: wait until all runs are closed that should be."""
        _, late = wait(self._closings, CLOSE_S)
        if late:
            notify(f"tracking: runs of trials could not be closed within {CLOSE_S:.0f} s")
        self._closer.stop()

    def _close(self, trial: Trial, call: Callable[[Tracker], None]) -> None:
        """Have ``call`` close the trial's run in the background."""
        if tracker := self._trackers.pop(trial.trial_id, None):
            self._closings.append(self._closer.submit(partial(call, tracker)))

    def _record(self, trial: Trial, result: dict[str, Any]) -> RoundRecord:
        """The round's record, with its checkpoint where Tune keeps it, if it got one."""
        record: RoundRecord = result[RECORD]
        name = result.get(_FOLDER_KEY)
        checkpoint = f"{self._folder.of_trial(trial.trial_id)}/{name}/{NAME}" if name else ""
        return replace(record, checkpoint=checkpoint)


def _name(trial: Trial) -> str:
    return name_of(trial.config[VALUES])


def _error(trial: Trial) -> str:
    """What Tune has written down of the trial's errors, on this machine."""
    return Path(trial.error_file).read_text(encoding="utf-8") if trial.error_file else ""

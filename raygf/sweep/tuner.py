"""Ray Tune set up for a sweep, started or restored."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from raygf.console import duration, print_table
from raygf.evaluation.tables import MISSING, terminal_table
from raygf.sweep.callback import SweepCallback
from raygf.sweep.folder import SweepFolder
from raygf.sweep.plan import PASSES, Plan, passes_per_round, shown_score
from raygf.sweep.report import short, text_of
from raygf.sweep.schedulers import Population, SchedulerMemory
from raygf.sweep.search import Search
from raygf.sweep.trial import FAILURE, VALUES, placement, run_trial

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


_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the other kind of output can't be given a table of our own
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # MLflow has it all
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune's own waits for trials; a job that is stopped has 3 seconds
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that can't succeed reports why, and no metric
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # a line each, said by the callback
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
_SNAPSHOT_S = "0.2"
"""Seconds between two snapshots of the sweep on a local disk; elsewhere Tune chooses, at least 10."""
_BEHIND = 3
"""Rounds that the snapshot on the disk may be behind a trial, for it is copied there in the background: the
checkpoint that it names must still be there when a killed sweep is resumed."""


def make_tuner(plan: Plan, search: Search, scheduler: TrialScheduler) -> tune.Tuner:
    """A new sweep."""
    options, storage = plan.options, plan.run.storage
    # The trials of a population must all be there at once; they take turns on what the cluster has.
    concurrent = None if isinstance(scheduler, Population) else options.concurrent
    return tune.Tuner(
        _trainable(plan),
        param_space=search.param_space,
        tune_config=tune.TuneConfig(
            metric=plan.metric,
            mode=plan.mode,
            scheduler=scheduler,
            search_alg=search.searcher,
            num_samples=search.samples,
            max_concurrent_trials=concurrent,
            reuse_actors=False,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=storage.name,
            storage_path=storage.path,
            callbacks=[SweepCallback(storage), SchedulerMemory(scheduler)],
            progress_reporter=SweepReporter(plan.fields, plan.metric, plan.mode),
            verbose=1,
            failure_config=tune.FailureConfig(max_failures=options.max_failures),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=_kept(plan, scheduler)),
        ),
    )


def restore_tuner(plan: Plan) -> tune.Tuner:
    """A sweep that was begun; its failed trials stay failed."""
    path = SweepFolder(plan.run.storage).path
    return tune.Tuner.restore(path, _trainable(plan), resume_unfinished=True, resume_errored=False)


@contextmanager
def tune_as_wanted(plan: Plan) -> Iterator[None]:
    """Tune's environment inside: it prints to standard error, and not what the sweep itself says."""
    local = {} if "://" in plan.run.storage.path else {"TUNE_GLOBAL_CHECKPOINT_S": _SNAPSHOT_S}
    log, silence = logging.getLogger("ray.tune.tune"), _Silence()
    log.addFilter(silence)
    try:
        with _environment({**_ENVIRONMENT, **local}), warnings.catch_warnings(), redirect_stdout(sys.stderr):
            warnings.filterwarnings("ignore", message="Consider boosting PBT performance")
            yield
    finally:
        log.removeFilter(silence)


def _trainable(plan: Plan) -> Any:
    with_plan = tune.with_parameters(run_trial, plan=plan)
    return tune.with_resources(with_plan, partial(placement, plan))


def _kept(plan: Plan, scheduler: TrialScheduler) -> int:
    """Newest checkpoints of each trial; in a population others go on from one an exchange old."""
    kept = plan.run.storage.keep + _BEHIND
    if not isinstance(scheduler, Population):
        return kept
    rounds = scheduler.interval / passes_per_round(plan.run.method, plan.exits)
    return max(kept, math.ceil(rounds) + 2)


def _name(trial: Trial) -> str:
    return str(trial.trial_id)


@contextmanager
def _environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """Variables that the user has not set."""
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


class _Silence(logging.Filter):
    """Drops Tune's list of trials that failed: the sweep says which and why."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Trials did not complete")

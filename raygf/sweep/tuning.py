"""Ray Tune set up for a sweep, started or restored."""

from __future__ import annotations

import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import partial
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from raygf.sweep.budget import passes_per_round
from raygf.sweep.callback import SweepCallback
from raygf.sweep.folder import SweepFolder
from raygf.sweep.plan import Plan
from raygf.sweep.reporter import SweepReporter
from raygf.sweep.schedulers import Population, SchedulerMemory
from raygf.sweep.searchers import Search
from raygf.sweep.trial import placement, run_trial

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

"""Ray Tune set up for a sweep: which trials there are, and the tuner that starts or restores them."""

import math
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from raygf.compute import derive_seed
from raygf.sweeps.callback import SweepCallback
from raygf.sweeps.plan import PASSES, Plan, SweepFolder
from raygf.sweeps.schedulers import Population, SchedulerMemory
from raygf.sweeps.space import Axes, Axis, Choice, grid, random
from raygf.sweeps.trial import VALUES, placement, run_trial

TRIALS = 8
"""How many trials there are by default."""

_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the other kind of output can't be given a reporter
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # MLflow has it all
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune's own waits for trials; a job that is stopped has 3 seconds
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that can't succeed reports why, and no metric
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the callback prints a line each
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
_SNAPSHOT_S = "0.2"
"""Seconds between two snapshots of the sweep on a local disk; elsewhere Tune chooses, at least 10."""
_UNDER_WAY = 5
"""Newest checkpoints kept at least until the sweep's end: the one that its snapshot names must be there when
it is killed. With rounds of 0.1 s on a busy machine the snapshot was up to 4 rounds behind."""


def make_search(plan: Plan, alternatives: list[Axes]) -> tuple[dict[str, Any], Any, int]:
    """The search of the axes in ``alternatives`` that the plan's options name.

    Returns:
        The configurations' space; who searches it, None for Tune itself; how many trials there are.
    """
    options, seed, wanted = plan.options, plan.run.seed, plan.options.trials or TRIALS
    if options.search == "optuna":
        from ray.tune.search.optuna import OptunaSearch

        asked = partial(suggest, alternatives=alternatives)
        stream = derive_seed(seed, "sweep", "optuna") % 2**32
        return {}, OptunaSearch(asked, plan.metric, plan.mode, seed=stream), wanted
    if options.search == "grid":
        listed = grid(alternatives, options.points)
    else:
        listed = random(alternatives, wanted, seed)
    return {VALUES: tune.grid_search(listed)}, None, len(listed)


def suggest(trial: Any, alternatives: list[Axes]) -> dict[str, Any]:
    """A space as Optuna reads it: ask its ``trial`` for one value after the other.

    Names have Tune's prefix, which makes them a part of the configuration.
    """
    number = 0
    if len(alternatives) > 1:
        number = trial.suggest_categorical("alternative", list(range(len(alternatives))))
    axes = alternatives[number]
    return {VALUES: {name: _suggest_value(trial, f"{number}:{name}", axis) for name, axis in axes.items()}}


def _suggest_value(trial: Any, name: str, axis: Axis) -> Any:
    """A value of ``axis``; choices are asked for by their number, for Optuna takes plain values alone."""
    if isinstance(axis, Choice):
        return axis.ends[trial.suggest_categorical(name, list(range(len(axis.ends))))]
    if axis.whole and axis.step is None:
        return trial.suggest_int(name, int(axis.low), int(axis.high), log=axis.log)
    return axis.cut(trial.suggest_float(name, axis.low, axis.high, log=axis.log))


class Reporter(tune.CLIReporter):  # type: ignore[misc]
    """Tune's table of trials now and then; at the end the sweep prints its own."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(
            metric_columns={plan.metric: plan.metric, PASSES: "passes"},
            parameter_columns=[VALUES],
            max_progress_rows=12,
            max_column_length=100,
            max_report_frequency=30,  # seconds between two tables
            print_intermediate_tables=True,  # not by the metric: failed trials have none
        )

    def should_report(self, trials: list[Trial], done: bool = False) -> bool:
        """Whether a table is due."""
        return not done and bool(super().should_report(trials))


def make_tuner(plan: Plan, space: dict[str, Any], searcher: Any, scheduler: TrialScheduler) -> tune.Tuner:
    """A new sweep; ``space`` and ``searcher`` are from ``make_search``."""
    options, storage = plan.options, plan.run.storage
    # The trials of a population must all be there at once; they take turns on what the cluster has.
    concurrent = None if isinstance(scheduler, Population) else options.concurrent
    return tune.Tuner(
        _trainable(plan),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=plan.metric,
            mode=plan.mode,
            scheduler=scheduler,
            search_alg=searcher,
            num_samples=plan.trials if searcher else 1,
            max_concurrent_trials=concurrent,
            reuse_actors=False,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=storage.name,
            storage_path=storage.path,
            callbacks=[SweepCallback(storage), SchedulerMemory(scheduler)],
            progress_reporter=Reporter(plan),
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
    """Tune's environment inside: it prints to standard error, and not what the sweep itself prints."""
    local = {} if "://" in plan.run.storage.path else {"TUNE_GLOBAL_CHECKPOINT_S": _SNAPSHOT_S}
    added = {name: value for name, value in (_ENVIRONMENT | local).items() if name not in os.environ}
    os.environ.update(added)
    try:
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):
            warnings.filterwarnings("ignore", message="Consider boosting PBT performance")
            yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _trainable(plan: Plan) -> Any:
    with_plan = tune.with_parameters(run_trial, plan=plan)
    return tune.with_resources(with_plan, partial(placement, plan))


def _kept(plan: Plan, scheduler: TrialScheduler) -> int:
    """Newest checkpoints of each trial; in a population others go on from one an exchange old."""
    kept = max(plan.run.storage.keep, _UNDER_WAY)
    if not isinstance(scheduler, Population):
        return kept
    rounds = scheduler.interval / plan.passes(plan.run)
    return max(kept, math.ceil(rounds) + 2)


def _name(trial: Trial) -> str:
    return str(trial.trial_id)

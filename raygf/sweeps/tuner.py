"""Ray Tune set up for a sweep: schedulers, which trials there are, the tuner that starts or restores them.

Schedulers stop trials early or give them other settings; their time is counted in training passes.
"""

import math
import os
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler

from raygf.compute import derive_seed
from raygf.errors import ConfigError
from raygf.evaluation.tables import passes_text
from raygf.sweeps.callback import SweepCallback
from raygf.sweeps.plan import PASSES, Plan, SweepFolder
from raygf.sweeps.space import Axes, Axis, Choice, Range, Values, draw_trials, grid
from raygf.sweeps.trial import VALUES, placement, run_trial

KEEP_BEST = 3.0
"""asha: one trial in so many goes on from each rung to the next, which is so many times as far."""
QUANTILE = 0.25
"""pbt: the share of trials that is replaced, and the share that replaces it."""
FACTORS = (0.8, 1.25)
"""pbt: what a number is multiplied by."""
RESAMPLED = 0.25
"""pbt: how often a setting is drawn anew instead."""

CHANGEABLE = (
    *("fusion.lr", "fusion.ema", "fusion.epsilon", "loss.aux", "loss.gamma", "loss.temperature"),
    *("optim.lr", "optim.momentum", "optim.weight_decay", "methods.cagrad_c"),
)
"""Fields that may change in the middle of a run: numbers that its checkpoint does not depend on."""


def make_scheduler(plan: Plan, alternatives: list[Axes]) -> TrialScheduler:
    """The scheduler that the options name; ConfigError if it can't work with this space or these options."""
    if plan.options.scheduler == "none":
        return FIFOScheduler()
    grace = grace_passes(plan, alternatives)
    if plan.options.scheduler == "asha":
        return ASHAScheduler(
            time_attr=PASSES, max_t=plan.budget, grace_period=grace, reduction_factor=KEEP_BEST
        )
    return Population(plan, alternatives, grace)


def grace_passes(plan: Plan, alternatives: list[Axes]) -> float:
    """Passes before the first decision, at least a round; ConfigError if a trial gets fewer."""
    grace = plan.options.grace
    if grace is None:
        swept = {method for axes in alternatives if "method" in axes for method in axes["method"].ends}
        least = max(plan.passes(replace(plan.run, method=method)) for method in swept or {plan.run.method})
        share = 1 / 2 if plan.options.scheduler == "asha" else 1 / 8
        return min(plan.budget, max(least, math.ceil(share * plan.budget)))
    if grace > plan.budget:
        raise ConfigError(f"grace = {grace}: a trial gets {passes_text(plan.budget)} training passes in all")
    return grace


class Population(PopulationBasedTraining):  # type: ignore[misc]
    """Population based training that keeps within the space's bounds and draws from seeded streams.

    Trials wait for each other at every exchange, so they are compared after equally many passes, and which
    checkpoint a trial takes over does not depend on which trial happened to be faster. Tune's own waits
    forever for a trial that failed, and exchanges at once after a resume; both need its private state.
    """

    _next_perturbation_sync: float

    def __init__(self, plan: Plan, alternatives: list[Axes], interval: float) -> None:
        ranges = {
            name: axis
            for axes in alternatives
            for name, axis in axes.items()
            if name in CHANGEABLE and isinstance(axis, Range)
        }
        if not ranges:
            raise ConfigError(
                "scheduler = 'pbt': the space has no range of a field that may change in the middle of a run "
                f"({', '.join(CHANGEABLE)})"
            )
        self.interval = interval
        stream = np.random.default_rng(derive_seed(plan.run.seed, "sweep", "explore"))
        # Ray Tune draws from Python's own generator whose checkpoint is taken over.
        random.seed(derive_seed(plan.run.seed, "sweep", "pbt"))
        super().__init__(
            time_attr=PASSES,
            perturbation_interval=interval,
            quantile_fraction=QUANTILE,
            custom_explore_fn=partial(explore, ranges=ranges, stream=stream),
            log_config=False,
            require_attrs=False,  # a trial that can't succeed reports neither
            synch=True,
        )
        for name in ("_trial_state", "_next_perturbation_sync"):
            if not hasattr(self, name):
                raise ConfigError(
                    f"scheduler = 'pbt': this version of Ray Tune's has no {name}; choose another"
                )

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """A trial that is resumed, after a crash or with the sweep, is not due at once."""
        super().on_trial_add(tune_controller, trial)
        passes = (trial.last_result or {}).get(PASSES, 0)
        state = self._trial_state[trial]
        state.last_train_time = passes
        state.last_perturbation_time = passes - passes % self.interval
        due = state.last_perturbation_time + self.interval
        self._next_perturbation_sync = max(self._next_perturbation_sync, due)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Others do not wait for a trial that failed; one that is tried again is added again."""
        super().on_trial_error(tune_controller, trial)
        tune_controller.get_live_trials().discard(trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """The next one; if all wait for one that has failed since, they continue without an exchange."""
        chosen = super().choose_trial_to_run(tune_controller)
        unfinished = [trial for trial in tune_controller.get_trials() if not trial.is_finished()]
        if chosen is not None or {trial.status for trial in unfinished} != {Trial.PAUSED}:
            return chosen
        for trial in unfinished:
            self._trial_state[trial].last_perturbation_time = self._next_perturbation_sync
        self._next_perturbation_sync += self.interval
        return super().choose_trial_to_run(tune_controller)


def explore(config: dict[str, Any], ranges: dict[str, Range], stream: np.random.Generator) -> dict[str, Any]:
    """``config``, a trial's as Tune knows it, with each value in ``ranges`` multiplied or drawn anew."""
    values: Values = dict(config[VALUES])
    for name, axis in ranges.items():
        if name in values and stream.random() < RESAMPLED:
            values[name] = axis.draw(stream)
        elif name in values:
            values[name] = axis.cut(values[name] * FACTORS[int(stream.integers(len(FACTORS)))])
    return {**config, VALUES: values}


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
        listed = draw_trials(alternatives, wanted, seed)
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
    if axis.whole:
        return trial.suggest_int(name, int(axis.low), int(axis.high), log=axis.log)
    return axis.cut(trial.suggest_float(name, axis.low, axis.high, log=axis.log))


def make_tuner(plan: Plan, space: dict[str, Any], searcher: Any, scheduler: TrialScheduler) -> tune.Tuner:
    """A new sweep; ``space`` and ``searcher`` are from ``make_search``."""
    options, storage = plan.options, plan.run.storage
    # The trials of a population must all be there at once; they take turns on what the cluster has.
    concurrent = None if isinstance(scheduler, Population) else options.concurrent
    table = tune.CLIReporter(
        metric_columns={plan.metric: plan.metric, PASSES: "passes"},
        parameter_columns=[VALUES],
        max_progress_rows=12,
        max_column_length=100,
        max_report_frequency=30,  # seconds between two tables
        print_intermediate_tables=True,  # not by the metric: failed trials have none
    )
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
            trial_name_creator=lambda trial: str(trial.trial_id),
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name=storage.name,
            storage_path=storage.path,
            callbacks=[SweepCallback(storage)],
            progress_reporter=table,
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

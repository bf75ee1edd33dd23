"""Who stops trials early, or lets them go on with other settings: Ray Tune's schedulers."""

from __future__ import annotations

import math
import pickle
import random
from typing import Any

import numpy as np
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler

from raygf.compute import derive_seed
from raygf.errors import ConfigError
from raygf.sweep.plan import PASSES, Plan, passes_per_round
from raygf.sweep.space import Axes, Range, Values
from raygf.sweep.trial import VALUES

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


def grace_passes(plan: Plan, alternatives: list[Axes]) -> int:
    """Passes before the first decision; at least one round of every method.

    Raises:
        ConfigError: there are more than a trial gets.
    """
    methods = {values.get("method") for axes in alternatives for values in _methods(axes)} - {None}
    least = max(passes_per_round(str(name), plan.exits) for name in methods or {plan.run.method})
    grace = plan.options.grace
    if grace is None:
        return min(plan.budget, max(least, math.ceil(plan.budget / 8)))
    if grace > plan.budget:
        raise ConfigError(f"grace = {grace}: a trial gets {plan.budget} training passes in all")
    return grace


def make_scheduler(plan: Plan, alternatives: list[Axes]) -> TrialScheduler:
    """The scheduler that the options name; time is counted in passes over the training images.

    Raises:
        ConfigError: it can't work with this space, or with these options.
    """
    if plan.options.scheduler == "none":
        return FIFOScheduler()
    grace = grace_passes(plan, alternatives)
    if plan.options.scheduler == "asha":
        return ASHAScheduler(
            time_attr=PASSES, max_t=plan.budget, grace_period=grace, reduction_factor=KEEP_BEST
        )
    return Population(plan, alternatives, grace)


class Population(PopulationBasedTraining):  # type: ignore[misc]
    """Population based training that keeps within the space's bounds and draws from seeded streams.

    Trials wait for each other at every exchange, so they are compared after equally many passes, and who goes
    on from whom does not depend on which happened to be faster.
    """

    _next_perturbation_sync: int

    def __init__(self, plan: Plan, alternatives: list[Axes], interval: int) -> None:
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
        # Which of the best is followed is drawn by Ray Tune from Python's own generator.
        random.seed(derive_seed(plan.run.seed, "sweep", "pbt"))
        super().__init__(
            time_attr=PASSES,
            perturbation_interval=interval,
            quantile_fraction=QUANTILE,
            custom_explore_fn=Explorer(ranges, plan.run.seed),
            log_config=False,
            require_attrs=False,  # a trial that can't succeed reports neither
            synch=True,
        )

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """A trial that goes on after a crash, or in a resumed sweep, is not due at once."""
        super().on_trial_add(tune_controller, trial)
        passes = (trial.last_result or {}).get(PASSES, 0)
        state = self._trial_state[trial]
        state.last_train_time = passes
        state.last_perturbation_time = passes - passes % self.interval
        due = state.last_perturbation_time + self.interval
        self._next_perturbation_sync = max(self._next_perturbation_sync, due)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Nobody waits for a trial that failed; one that is tried again is added again."""
        super().on_trial_error(tune_controller, trial)
        tune_controller.get_live_trials().discard(trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """The next one; if all wait for one that has failed since, they go on without an exchange."""
        chosen = super().choose_trial_to_run(tune_controller)
        unfinished = [trial for trial in tune_controller.get_trials() if not trial.is_finished()]
        if chosen is not None or {trial.status for trial in unfinished} != {Trial.PAUSED}:
            return chosen
        for trial in unfinished:
            self._trial_state[trial].last_perturbation_time = self._next_perturbation_sync
        self._next_perturbation_sync += self.interval
        return super().choose_trial_to_run(tune_controller)


class Explorer:
    """Settings near given ones: each multiplied by a factor, or drawn anew, within its range."""

    def __init__(self, ranges: dict[str, Range], seed: int) -> None:
        self._ranges = ranges
        self._stream = np.random.default_rng(derive_seed(seed, "sweep", "explore"))

    def __call__(self, config: dict[str, Any]) -> dict[str, Any]:
        """A trial's configuration, as Tune knows it, with other values of its own."""
        values: Values = dict(config[VALUES])
        for name in values.keys() & self._ranges.keys():
            values[name] = self._near(self._ranges[name], values[name])
        return {**config, VALUES: values}

    def _near(self, axis: Range, value: float) -> Any:
        if self._stream.random() < RESAMPLED:
            return axis.draw(self._stream)
        return axis.cut(value * FACTORS[int(self._stream.integers(len(FACTORS)))])


class SchedulerMemory(tune.Callback):  # type: ignore[misc]
    """Keeps what asha has seen with the sweep's state, which Tune itself forgets when it resumes."""

    def __init__(self, scheduler: TrialScheduler) -> None:
        self._scheduler = scheduler

    def get_state(self) -> dict[str, Any] | None:
        """The rungs of asha; nothing for others."""
        brackets = getattr(self._scheduler, "_brackets", None)
        return None if brackets is None else {"brackets": pickle.dumps(brackets)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Put them back."""
        self._scheduler._brackets = pickle.loads(state["brackets"])


def _methods(axes: Axes) -> list[Values]:
    return [{"method": name} for name in axes["method"].ends] if "method" in axes else []

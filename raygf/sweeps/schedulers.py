"""Ray Tune's schedulers, which stop trials early or give them other settings; time is counted in passes."""

import math
import pickle
import random
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
from raygf.sweeps.plan import PASSES, Plan
from raygf.sweeps.space import Axes, Range, Values
from raygf.sweeps.trial import VALUES

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
    """The scheduler that the options name.

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


def grace_passes(plan: Plan, alternatives: list[Axes]) -> float:
    """Passes before the first decision; at least one round of every method.

    Raises:
        ConfigError: there are more than a trial gets.
    """
    grace = plan.options.grace
    if grace is None:
        swept = {method for axes in alternatives if "method" in axes for method in axes["method"].ends}
        least = max(plan.passes(replace(plan.run, method=method)) for method in swept or {plan.run.method})
        share = 1 / 2 if plan.options.scheduler == "asha" else 1 / 8
        return min(plan.budget, max(least, math.ceil(share * plan.budget)))
    if grace > plan.budget:
        raise ConfigError(f"grace = {grace}: a trial gets {passes_text(plan.budget)} training passes in all")
    return grace


class SchedulerMemory(tune.Callback):  # type: ignore[misc]
    """Keeps what asha has seen with the sweep's state; Tuner.restore loses it (ray-project/ray#30838)."""

    def __init__(self, scheduler: TrialScheduler) -> None:
        self._scheduler = scheduler

    def get_state(self) -> dict[str, Any] | None:
        """What asha's own ``save`` writes; nothing for other schedulers."""
        is_asha = isinstance(self._scheduler, ASHAScheduler)
        return {"asha": pickle.dumps(self._scheduler.__dict__)} if is_asha else None

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore it."""
        self._scheduler.__dict__.update(pickle.loads(state["asha"]))


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

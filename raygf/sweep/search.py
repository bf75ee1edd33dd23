"""Which trials there are: a list drawn beforehand, or Optuna, which learns from the trials before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ray import tune

from raygf.compute import derive_seed
from raygf.sweep.plan import TRIALS, Plan, SweepOptions
from raygf.sweep.space import Axes, Axis, Choice, Space, Values, grid, random
from raygf.sweep.trial import VALUES

SearchName = Literal["random", "grid", "optuna"]


@dataclass(frozen=True)
class Search:
    """For Ray Tune: the configurations' space, who searches it (by default Tune itself), how many trials."""

    param_space: dict[str, Any]
    searcher: Any
    samples: int
    trials: int


def search_name(options: SweepOptions, space: Space) -> SearchName:
    """How trials are chosen; a number of trials turns a space's own grid into draws from it."""
    if options.search is not None:
        return options.search
    return "random" if space.search == "grid" and options.trials is not None else space.search


def make_search(name: str, plan: Plan, alternatives: list[Axes]) -> Search:
    """The search ``name`` of the axes in ``alternatives``."""
    wanted, seed = plan.options.trials or TRIALS, plan.run.seed
    if name == "optuna":
        from ray.tune.search.optuna import OptunaSearch

        searcher = OptunaSearch(
            Suggester(alternatives), plan.metric, plan.mode, seed=derive_seed(seed, "sweep", "optuna") % 2**32
        )
        return Search({}, searcher, wanted, wanted)
    listed = grid(alternatives, plan.options.points) if name == "grid" else random(alternatives, wanted, seed)
    return Search({VALUES: tune.grid_search(listed)}, None, 1, len(listed))


@dataclass(frozen=True)
class Suggester:
    """A space as Optuna reads it: a function that asks for one value after the other."""

    alternatives: list[Axes]

    def __call__(self, trial: Any) -> dict[str, Any]:
        """What one trial sets; names have Tune's prefix, which makes them a part of the configuration."""
        number = 0
        if len(self.alternatives) > 1:
            number = trial.suggest_categorical("alternative", list(range(len(self.alternatives))))
        values: Values = {
            name: suggest(trial, f"{number}:{name}", axis) for name, axis in self.alternatives[number].items()
        }
        return {VALUES: values}


def suggest(trial: Any, name: str, axis: Axis) -> Any:
    """Ask Optuna's ``trial`` for a value of ``axis``; choices by their number: Optuna takes plain values."""
    if isinstance(axis, Choice):
        return axis.options[trial.suggest_categorical(name, list(range(len(axis.options))))]
    if axis.whole and axis.step is None:
        return trial.suggest_int(name, int(axis.low), int(axis.high), log=axis.log)
    return axis.cut(trial.suggest_float(name, axis.low, axis.high, log=axis.log))

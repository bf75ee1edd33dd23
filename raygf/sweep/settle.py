"""From what is asked for to a plan: what has to be found out on the cluster before trials can start."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ray import tune
from ray.tune.schedulers import TrialScheduler

from raygf.config import ResourceConfig
from raygf.errors import ConfigError
from raygf.methods.registry import is_step_method
from raygf.sweep.assign import Axes, ends
from raygf.sweep.check import check_search, check_space
from raygf.sweep.cluster import check_trial_fits, idle_nodes, settle_actors
from raygf.sweep.find_space import load_space
from raygf.sweep.flags import Command
from raygf.sweep.objective import check_metric
from raygf.sweep.overrides import override
from raygf.sweep.plan import Plan
from raygf.sweep.probe import probe_remotely
from raygf.sweep.schedulers import make_scheduler
from raygf.sweep.searchers import Search, SearchName, make_search, search_name
from raygf.sweep.space import Space
from raygf.sweep.tuning import make_tuner


@dataclass(frozen=True)
class Checked:
    """What could be checked without a cluster: the space, its axes, how it is searched."""

    command: Command
    space: Space
    alternatives: list[Axes]
    search: SearchName


@dataclass(frozen=True)
class Prepared:
    """A sweep that can start. ``notes``: what people should know of it."""

    plan: Plan
    search: Search
    scheduler: TrialScheduler
    notes: tuple[str, ...]

    def tuner(self, plan: Plan) -> tune.Tuner:
        """Ray Tune for ``plan``, which is this one with its run in MLflow."""
        return make_tuner(plan, self.search, self.scheduler)


def check_command(command: Command) -> Checked:
    """Load the space that ``command`` names, and check all that needs no cluster.

    Raises:
        ConfigError: the space is unknown, empty or contradictory, or a package is missing.
    """
    space = load_space(command.options.space, command.run)
    alternatives = check_space(space, command)
    search = search_name(command.options, space)
    check_search(search)
    return Checked(command, space, alternatives, search)


def prepare(checked: Checked, resources: ResourceConfig) -> Prepared:
    """Try data, network and methods on the cluster, and settle how large trials are.

    Args:
        resources: the command's, settled for the cluster that this process is in.

    Raises:
        UserError: the data, the network or a method can't be used, or the cluster could never hold a trial.
        RunFailed: they could not be tried.
    """
    command, space, concurrent = checked.command, checked.space, checked.command.options.concurrent or 1
    run, nodes = replace(command.run, resources=resources), idle_nodes()
    methods = [override(run, values).method for axes in checked.alternatives for values in ends(axes)]
    trains_exits = not all(map(is_step_method, methods))
    check_trial_fits(resources, trains_exits, concurrent, nodes)
    alternatives, exits, dropped = _usable(checked, command)
    check_metric(space.metric, space.mode, exits)
    actors, few = settle_actors(resources, exits if trains_exits else 0, concurrent, nodes)
    options = replace(command.options, search=checked.search)
    plan = Plan(command.recipe, options, run, space.fields, space.metric, space.mode, exits, actors)
    for axes in alternatives:
        plan.trial_run("", ends(axes)[0])
    search = make_search(checked.search, plan, alternatives)
    plan = replace(plan, trials=search.trials)
    notes = (*space.notes, *dropped, *filter(None, [few]))
    return Prepared(plan, search, make_scheduler(plan, alternatives), notes)


def _usable(checked: Checked, command: Command) -> tuple[list[Axes], int, list[str]]:
    """The alternatives that can be used, the network's exits, and a remark for each that can't.

    An alternative is left out if its first run can't be used and others can.
    """
    values = [ends(axes) for axes in checked.alternatives]
    found = probe_remotely(command.run, [override(command.run, each) for some in values for each in some])
    problems = iter(found.problems)
    kept, dropped = [], []
    for axes, some in zip(checked.alternatives, values, strict=True):
        first, *others = [next(problems) for _ in some]
        if first:
            dropped.append(first)
        elif wrong := next(filter(None, others), ""):
            raise ConfigError(f"space: {wrong}")
        else:
            kept.append(axes)
    if not kept:
        raise ConfigError(f"space: {dropped[0]}")
    return kept, found.exits, [f"left out: {problem}" for problem in dropped]

"""From what is asked for to a plan: what has to be found out on the cluster before trials can start."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace

import ray
from ray import tune
from ray.exceptions import GetTimeoutError, RayError
from ray.tune.schedulers import TrialScheduler
from torch import Tensor

from raygf.compute import resolve_compute, torch_threads
from raygf.config.run import ResourceConfig, RunConfig
from raygf.data.base import BatchSource
from raygf.data.load import load_data
from raygf.errors import ConfigError, ResourceError, RunFailed
from raygf.methods.registry import check_method, is_step_method
from raygf.models.build import build_model
from raygf.on_ray.faults import fetch
from raygf.on_ray.placement import check_trial_fits, idle_nodes, settle_actors
from raygf.rounds.delta import DeltaRound
from raygf.rounds.step import StepRound
from raygf.sweep.command import Command
from raygf.sweep.plan import Plan, check_metric, flag_of, override
from raygf.sweep.schedulers import make_scheduler
from raygf.sweep.search import Search, SearchName, make_search, search_name
from raygf.sweep.space import Axes, Space, ends, load_space, read_axes
from raygf.sweep.tuner import make_tuner
from raygf.training.exit_trainer import LocalExecutor
from raygf.training.losses import loss_coefficients
from raygf.training.network import BoundNetwork
from raygf.training.space import find_ownership

NOT_SWEPT = {
    "rounds": "every trial gets as many training passes as the recipe spends",
    "stop_after": "the sweep itself stops trials",
    "data.val": "trials must be compared by the same validation images",
    "model.name": "trials must have the same exits; make a sweep for each network",
    "model.msdnet.exits": "trials must have the same exits; make a sweep for each network",
    "eval_batch_size": "it does not change results",
    "resources.": "it does not change results",
    "storage.": "it does not change results",
    "tracking.": "it does not change results",
}
"""Fields (or sections, with a dot at the end) that no space may have, and why."""


def check_flags(command: Command) -> None:
    """Raise ConfigError for flags of single runs that a sweep can't have, or that contradict each other."""
    run, options = command.run, command.options
    refused = {
        "resources.executor = 'local'": run.resources.executor == "local" and "sweeps need Ray; leave it out",
        f"resources.workers = {run.resources.workers}": run.resources.workers is not None
        and "the trials of a sweep have no workers; leave it out",
        f"stop_after = {run.stop_after}": run.stop_after is not None and NOT_SWEPT["stop_after"],
        "storage.resume = True": run.storage.resume and "resume a sweep with --resume",
        "data.val = 0": not run.data.val and "trials are compared by validation images; hold some out",
        f"trials = {options.trials}": options.trials is not None
        and options.search == "grid"
        and "a grid has as many trials as points; leave one of them out",
        "search = 'optuna'": options.search == "optuna"
        and options.scheduler == "pbt"
        and "pbt changes settings itself; search at random or on a grid",
    }
    for what, why in refused.items():
        if why:
            raise ConfigError(f"{what}: {why}")


def check_search(search: str) -> None:
    """Raise ConfigError if ``search`` needs a package that is not installed."""
    if search == "optuna" and importlib.util.find_spec("optuna") is None:
        raise ConfigError("search = 'optuna': Optuna is not installed: pip install 'raygf[sweep]'")


def check_space(space: Space, command: Command) -> list[Axes]:
    """The axes of ``space``, every end of which makes a run.

    Raises:
        ConfigError: the space is empty or contradicts itself, a run, or a flag.
    """
    check_metric(space.metric, space.mode)
    alternatives = read_axes(space)
    for name in space.fields:
        _check_field(name, command)
    for axes in alternatives:
        for values in ends(axes):
            check_method(override(command.run, values).method)
    return alternatives


def _check_field(name: str, command: Command) -> None:
    for field, why in NOT_SWEPT.items():
        if name == field or (field.endswith(".") and name.startswith(field)):
            raise ConfigError(f"space: {name} can't be swept: {why}")
    if name in command.given:
        raise ConfigError(
            f"space: {name} is swept by {command.options.space!r} and also fixed by {flag_of(name)}: leave "
            "one of them out"
        )


_WAIT_S = 300.0


@dataclass(frozen=True)
class Found:
    """``exits`` of the network; ``problems``: for every run that was asked about, what is wrong with it."""

    exits: int
    problems: tuple[str, ...]


def probe(run: RunConfig, trials: Sequence[RunConfig]) -> Found:
    """Load the data and build the network of ``run``, then the method of each of ``trials`` on it.

    Raises:
        UserError: in one of its forms: the data, the network or the device can't be used.
    """
    with torch_threads(run.resources.driver_cpus):
        compute = resolve_compute(run.compute)
        dataset = load_data(run.data, run.seed)
        bound = BoundNetwork(build_model(run.model, dataset.spec, run.seed), compute)
        batches = dataset.open(compute, run.batch_size, run.eval_batch_size)
        owned = find_ownership(bound.network, dataset.spec.blank(2, compute.device), bound.space)
        executor = LocalExecutor(run, dataset)
        problems = tuple(_problem(trial, bound, batches, executor, owned) for trial in trials)
    return Found(len(owned), problems)


def probe_remotely(run: RunConfig, trials: Sequence[RunConfig]) -> Found:
    """``probe`` in a process of its own on the cluster, with what a driver gets.

    Raises:
        UserError: see ``probe``; also if no node has room within the time allowed.
        RunFailed: the process was lost.
    """
    resources = run.resources
    limit = _WAIT_S + resources.wait_for_resources_s
    task = ray.remote(probe).options(
        num_cpus=resources.driver_cpus, num_gpus=resources.driver_gpus or 0, max_retries=0
    )
    ref = task.remote(run, list(trials))
    try:
        found: Found = fetch(ref, limit)
    except GetTimeoutError:
        ray.cancel(ref, force=True)
        raise ResourceError(
            f"data and network could not be tried within {limit:.0f} s: the cluster is busy; free it, or "
            "raise resources.wait_for_resources_s"
        ) from None
    except RayError as error:
        first = str(error).strip().split("\n")[-1]
        raise RunFailed(f"trying data and network failed: {first}") from None
    return found


def _problem(
    trial: RunConfig, bound: BoundNetwork, batches: BatchSource, executor: LocalExecutor, owned: Tensor
) -> str:
    """What is wrong with ``trial``'s method on this network; nothing: ""."""
    try:
        loss_coefficients(1, trial.rounds, len(owned), trial.loss)
        if is_step_method(trial.method):
            StepRound(trial, bound, batches, owned).close()
        else:
            DeltaRound(trial, bound, batches, executor, owned)
    except (ConfigError, ValueError) as error:
        return str(error)
    return ""


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

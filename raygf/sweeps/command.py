"""A sweep from its command line to its plan.

Its own settings and those of the runs in it are one list of flags. What can't be swept is refused at once;
then data, network and methods are tried on the cluster, before the first trial.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal

import ray
import tyro
from ray import tune
from ray.exceptions import GetTimeoutError, RayError

from raygf.cli import describe_recipes, parse_flags, split_recipe
from raygf.compute import resolve_compute, torch_threads
from raygf.config.fields import flatten, override, to_dict
from raygf.config.run import ResourceConfig, RunConfig
from raygf.data.load import load_data
from raygf.errors import ConfigError, ResourceError, RunFailed
from raygf.methods.registry import check_method, is_step_method
from raygf.models.build import build_model
from raygf.models.costs import measure_costs
from raygf.on_ray.cluster import fetch
from raygf.on_ray.placement import actors_per_trial, check_fits, idle_nodes
from raygf.rounds.delta import DeltaRound
from raygf.rounds.step import StepRound
from raygf.sweeps.plan import Plan, SweepOptions, check_metric, flag_of
from raygf.sweeps.space import Axes, Space, describe_spaces, ends, ranges_of, read_axes
from raygf.sweeps.tuner import draw, make_scheduler, make_tuner
from raygf.training.exit_trainer import LocalExecutor
from raygf.training.losses import loss_coefficients
from raygf.training.network import BoundNetwork
from raygf.training.space import find_ownership

RECIPE = "digits"
"""The recipe by default."""
FREE_ON_RESUME = (
    *("storage.path", "storage.name", "tracking.", "resources.address", "resources.wait_for_resources_s"),
    *("resources.exit_timeout_s", "resources.max_failures", "resources.max_driver_restarts"),
)
"""Fields of the runs that may differ when a sweep is resumed."""
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


@dataclass(frozen=True)
class SweepFlags:
    """All flags; neither part has a prefix."""

    options: Annotated[SweepOptions, tyro.conf.arg(name="")]
    run: Annotated[RunConfig, tyro.conf.arg(name="")]


@dataclass(frozen=True)
class Command:
    """What was asked for. ``given``: dotted names of the fields that have a flag on the command line."""

    recipe: str
    options: SweepOptions
    run: RunConfig
    given: frozenset[str]


def parse_sweep(description: str, argv: Sequence[str], stored: Plan | None = None) -> Command:
    """What ``argv`` asks for; what has no flag is as in the ``stored`` sweep, if one is resumed.

    Raises:
        ConfigError: the recipe or a flag is unknown, a value is not allowed, two flags contradict each other,
            or a flag contradicts the stored sweep.
        SystemExit: for ``--help``.
    """
    recipe, run, rest = split_recipe(
        stored.recipe if stored else RECIPE, argv, stored.run if stored else None
    )
    default = SweepFlags(stored.options if stored else SweepOptions(), run)
    spaces = f"Spaces (--space NAME):\n\n{describe_spaces()}"
    text = f"{description} {spaces}\n\n{describe_recipes(RECIPE, recipe)}"
    words = list(rest)
    if "--resume" in words:  # it may stand alone
        after = words.index("--resume") + 1
        if words[after : after + 1] not in (["True"], ["False"]):
            words.insert(after, "True")
    flags = parse_flags(SweepFlags, text, words, default, " [--recipe NAME] [--config FILE]")
    given = frozenset(word[2:].split("=")[0].replace("-", "_") for word in words if word.startswith("--"))
    command = Command(recipe, flags.options, flags.run, given)
    if stored:
        _check_same(stored, command)
    return command


def _check_same(stored: Plan, command: Command) -> None:
    """Raise ConfigError if ``command`` changes what must stay as it is in the ``stored`` sweep."""
    was, now = (
        {
            "recipe": flags.recipe,
            **to_dict(replace(flags.options, resume=False)),
            **flatten(to_dict(flags.run)),
        }
        for flags in (stored, command)
    )
    odd = [name for name in was if was[name] != now[name] and not name.startswith(FREE_ON_RESUME)]
    if odd:
        shown = "; ".join(f"{name} was {was[name]!r}, is now {now[name]!r}" for name in odd[:3])
        raise ConfigError(f"can't resume another sweep: {shown}")


def check_flags(command: Command) -> None:
    """Raise ConfigError for flags of single runs that a sweep can't have, or that contradict each other."""
    run, options = command.run, command.options
    workers, trials = run.resources.workers, options.trials
    for refused, why in (
        (run.resources.executor == "local", "resources.executor = 'local': sweeps need Ray; leave it out"),
        (workers, f"resources.workers = {workers}: the trials of a sweep have no workers; leave it out"),
        (run.stop_after, f"stop_after = {run.stop_after}: {NOT_SWEPT['stop_after']}"),
        (run.storage.resume, "storage.resume = True: resume a sweep with --resume"),
        (run.tracking.also, f"tracking.also = {run.tracking.also}: of single runs alone; leave it out"),
        (not run.data.val, "data.val = 0: trials are compared by validation images; hold some out"),
        (
            trials and options.search == "grid",
            f"trials = {trials}: a grid has as many trials as points; leave one of them out",
        ),
        (
            options.grace and options.scheduler == "none",
            f"grace = {options.grace}: scheduler = 'none' has none; choose asha",
        ),
    ):
        if refused:
            raise ConfigError(why)


def check_space(space: Space, command: Command) -> None:
    """Check all that needs no cluster: every end of every axis must make a run.

    Raises ConfigError: the space is empty or contradicts itself, a run or a flag, or a package is missing.
    """
    check_metric(space.metric, space.mode)
    alternatives = read_axes(space)
    for name in space.fields:
        for field, why in NOT_SWEPT.items():
            if name == field or (field.endswith(".") and name.startswith(field)):
                raise ConfigError(f"space: {name} can't be swept: {why}")
        if name in command.given:
            raise ConfigError(
                f"space: {name} is swept by {command.options.space!r} and also fixed by {flag_of(name)}: "
                "leave one of them out"
            )
    for axes in alternatives:
        for run in end_runs(axes, command):
            check_method(run.method)


def end_runs(axes: Axes, command: Command) -> list[RunConfig]:
    """Runs that between them take every end of every axis."""
    return [override(command.run, values) for values in ends(axes)]


def search_name(options: SweepOptions, space: Space) -> Literal["random", "grid"]:
    """How trials are chosen; a number of trials turns a space's own grid into draws from it."""
    drawn = space.search == "grid" and options.trials is not None
    return options.search or ("random" if drawn else space.search)


Probed = tuple[tuple[int, ...], dict[str, int], dict[str, int], list[str]]
_WAIT_S = 300.0


def prepare(
    command: Command, space: Space, resources: ResourceConfig
) -> tuple[Plan, Callable[[Plan], tune.Tuner], list[str]]:
    """Try data, network and methods on the cluster, and decide how large trials are.

    Args:
        space: one that ``check_space`` has passed. An alternative is left out if a run in it can't be used
            and other alternatives can.
        resources: the command's, with the defaults of the cluster that this process is in.

    Returns:
        The plan, what makes its tuner, and notes for people.

    Raises:
        UserError: the data, the network or a method can't be used, or the cluster could never hold a trial.
        RunFailed: they could not be tried.
    """
    options, concurrent, nodes = command.options, command.options.concurrent or 1, idle_nodes()
    alternatives = read_axes(space)
    runs = [end_runs(axes, command) for axes in alternatives]
    trains_exits = not all(is_step_method(run.method) for some in runs for run in some)
    check_fits(resources, int(trains_exits), concurrent, nodes)
    costs, images, own, problems = probe_remotely(command.run, runs)
    dropped = list(filter(None, problems))
    if len(dropped) == len(alternatives):
        raise ConfigError(f"space: {dropped[0]}")
    alternatives = [axes for axes, problem in zip(alternatives, problems, strict=True) if not problem]
    check_metric(space.metric, space.mode, len(costs))
    actors, few = actors_per_trial(resources, len(costs) if trains_exits else 0, concurrent, nodes)
    plan = Plan(
        recipe=command.recipe,
        options=replace(options, search=search_name(options, space)),
        run=replace(command.run, resources=resources),
        fields=space.fields,
        metric=space.metric,
        mode=space.mode,
        actors=actors,
        ranges=ranges_of(alternatives),
        costs=costs,
        own=own,
        images=images,
    )
    for axes in alternatives:
        plan.trial_run("", ends(axes)[0])  # there must be passes for a round
    trials, scheduler = draw(plan, alternatives), make_scheduler(plan, alternatives)
    make = partial(make_tuner, trials=trials, scheduler=scheduler)
    left_out = [f"left out: {problem}" for problem in dropped]
    return replace(plan, trials=len(trials)), make, [*left_out, *filter(None, [few])]


def probe_remotely(run: RunConfig, alternatives: Sequence[Sequence[RunConfig]]) -> Probed:
    """``probe`` in a process of its own on the cluster, with what a driver gets.

    Raises:
        UserError: the data, the network or the device can't be used, or no node has room in time.
        RunFailed: the process was lost.
    """
    resources = run.resources
    limit = _WAIT_S + resources.wait_for_resources_s
    task = ray.remote(probe).options(
        num_cpus=resources.driver_cpus, num_gpus=resources.driver_gpus or 0, max_retries=0
    )
    ref = task.remote(run, alternatives)
    try:
        found: Probed = fetch(ref, limit)
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


def probe(run: RunConfig, alternatives: Sequence[Sequence[RunConfig]]) -> Probed:
    """Load the data and build the network of ``run``, then the methods of all runs on it.

    Returns:
        Operations up to each exit; the images of every split; operations of a round for one image, of
        each method that is the user's own; what is wrong with each of ``alternatives``, "" if nothing is.

    Raises UserError: the data, the network or the device can't be used.
    """
    with torch_threads(run.resources.driver_cpus):
        compute = resolve_compute(run.compute)
        dataset = load_data(run.data, run.seed)
        bound = BoundNetwork(build_model(run.model, dataset.spec, run.seed), compute)
        batches = dataset.open(compute, run.batch_size, run.eval_batch_size)
        owned = find_ownership(bound.network, dataset.spec.blank(2, compute.device), bound.space)
        executor = LocalExecutor(run, dataset)
        costs = tuple(cost.operations for cost in measure_costs(bound.network, dataset.spec))
        own: dict[str, int] = {}

        def problem(trial: RunConfig) -> str:
            try:
                loss_coefficients(1, trial.rounds, len(owned), trial.loss)
                if is_step_method(trial.method):
                    made = StepRound(replace(trial, round_steps=None), bound, batches, owned)
                    if ":" in trial.method:
                        own[trial.method] = made.operations(costs, {"train": 2}, 1) // 2
                else:
                    DeltaRound(trial, bound, batches, executor, owned)
            except (ConfigError, ValueError) as error:
                return str(error)
            return ""

        problems = [next(filter(None, map(problem, runs)), "") for runs in alternatives]
        return costs, dataset.counts(), own, problems

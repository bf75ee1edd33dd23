"""From what is asked for to a plan: data, network and methods are tried on the cluster before the trials."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import ray
from ray import tune
from ray.exceptions import GetTimeoutError, RayError

from raygf.compute import resolve_compute, torch_threads
from raygf.config.run import ResourceConfig, RunConfig
from raygf.data.load import load_data
from raygf.errors import ConfigError, ResourceError, RunFailed
from raygf.methods.registry import is_step_method
from raygf.models.build import build_model
from raygf.models.costs import measure_costs
from raygf.on_ray.cluster import fetch
from raygf.on_ray.placement import actors_per_trial, check_fits, idle_nodes
from raygf.rounds.delta import DeltaRound
from raygf.rounds.step import StepRound
from raygf.sweeps.command import Command, end_runs, search_name
from raygf.sweeps.plan import Plan, check_metric
from raygf.sweeps.schedulers import make_scheduler
from raygf.sweeps.space import Space, ends, ranges_of, read_axes
from raygf.sweeps.tuner import make_search, make_tuner
from raygf.training.exit_trainer import LocalExecutor
from raygf.training.losses import loss_coefficients
from raygf.training.network import BoundNetwork
from raygf.training.space import find_ownership

Probed = tuple[tuple[int, ...], int, dict[str, int], list[str]]
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
        exits=len(costs),
        actors=actors,
        ranges=ranges_of(alternatives),
        costs=costs,
        own=own,
        images=images,
    )
    for axes in alternatives:
        plan.trial_run("", ends(axes)[0])  # there must be passes for a round
    configurations, searcher, trials = make_search(plan, alternatives)
    scheduler = make_scheduler(plan, alternatives)
    make = partial(make_tuner, space=configurations, searcher=searcher, scheduler=scheduler)
    left_out = [f"left out: {problem}" for problem in dropped]
    return replace(plan, trials=trials), make, [*left_out, *filter(None, [few])]


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
        Operations up to each exit; the number of training images; operations of a round for one image, of
        each method that is the user's own; what is wrong with each of ``alternatives``, "" if nothing is.

    Raises:
        UserError: the data, the network or the device can't be used.
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
                    made = StepRound(trial, bound, batches, owned)
                    if ":" in trial.method:
                        own[trial.method] = made.operations(costs, dataset.count("train"))
                else:
                    DeltaRound(trial, bound, batches, executor, owned)
            except (ConfigError, ValueError) as error:
                return str(error)
            return ""

        problems = [next(filter(None, map(problem, runs)), "") for runs in alternatives]
        return costs, dataset.count("train"), own, problems

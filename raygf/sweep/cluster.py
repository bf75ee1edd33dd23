"""The cluster that a sweep runs on, and how many exit actors its trials can have there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import ray

from raygf.config import ResourceConfig
from raygf.on_ray.cluster import joined, settle
from raygf.sweep.bundles import Bundle, actors_that_fit, check_fits


@contextmanager
def swept_cluster(resources: ResourceConfig, concurrent: int) -> Iterator[tuple[str, ResourceConfig]]:
    """This process in a cluster, which it leaves in the end (and ends, if it was started here).

    A cluster that is started here has room for the drivers of ``concurrent`` trials beside its CPUs: as with
    a single run, they sleep while their exits train.

    Yields:
        What was joined, for people, and ``resources`` settled for it.

    Raises:
        ResourceError: the cluster can't be reached.
    """
    drivers = replace(resources, driver_cpus=resources.driver_cpus * concurrent)
    with joined(drivers) as where:
        yield where, settle(resources)


def idle_nodes() -> list[Bundle]:
    """CPUs and GPUs of every living node."""
    return [
        {name: float(node["Resources"].get(name, 0.0)) for name in ("CPU", "GPU")}
        for node in ray.nodes()
        if node["Alive"]
    ]


def settle_actors(
    resources: ResourceConfig, exits: int, concurrent: int, nodes: Sequence[Bundle]
) -> tuple[int, str]:
    """How many exit actors a trial gets that trains ``exits`` exits, and a remark if that is fewer.

    ``resources.actors`` is taken at its word. Without it there is one an exit, fewer where the cluster is
    smaller. Nodes that are still awaited are taken to be large enough.

    Raises:
        ResourceError: ``nodes`` could never hold ``concurrent`` trials.
    """
    wanted = min(exits, resources.actors or exits)
    if resources.wait_for_resources_s > 0:
        return wanted, ""
    if resources.actors is not None:
        check_fits(resources, wanted, concurrent, nodes)
        return wanted, ""
    actors = actors_that_fit(resources, wanted, concurrent, nodes)
    count = f"{actors} exit actor{'s' * (actors != 1)}"
    few = f"every trial has {count} for {exits} exits: the cluster has no room for more"
    return actors, few if actors < wanted else ""


def check_trial_fits(
    resources: ResourceConfig, trains_exits: bool, concurrent: int, nodes: Sequence[Bundle]
) -> None:
    """Raise ResourceError if ``nodes`` could not hold the trials even if their networks had one exit."""
    if resources.wait_for_resources_s == 0:
        check_fits(resources, int(trains_exits), concurrent, nodes)

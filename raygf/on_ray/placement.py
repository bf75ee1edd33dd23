"""What a trial reserves, and whether a cluster could ever hold it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raygf.config.run import ResourceConfig
from raygf.errors import ResourceError
from raygf.on_ray.cluster import joined, settle
from raygf.records import Notify

Bundle = dict[str, float]
"""Amounts by resource, such as ``{"CPU": 1, "GPU": 0.5}``; what is zero is left out."""

_ROUNDING = 1e-6


def trial_bundles(resources: ResourceConfig, actors: int) -> list[Bundle]:
    """The trial's own function, its driver, and ``actors`` exit actors, each in a bundle of its own.

    The function only waits and passes records on, so its bundle is empty: Ray Tune then places it beside the
    driver. ``resources`` must be settled (``raygf.on_ray.cluster.settle``).
    """
    driver = _bundle(resources.driver_cpus, resources.driver_gpus)
    return [{}, driver, *(_bundle(resources.cpus_per_exit, resources.gpus_per_exit) for _ in range(actors))]


def fits(bundles: Sequence[Bundle], nodes: Sequence[Bundle]) -> bool:
    """Whether idle ``nodes`` can hold all ``bundles`` at once, each on one node.

    The largest go first, each onto the node that it leaves least room on; GPUs count before CPUs.
    """
    free = [dict(node) for node in nodes]
    for bundle in sorted(bundles, key=_size, reverse=True):
        able = [node for node in free if _holds(node, bundle)]
        if not able:
            return False
        node = min(able, key=_size)
        for name, amount in bundle.items():
            node[name] = node.get(name, 0.0) - amount
    return True


def actors_that_fit(resources: ResourceConfig, wanted: int, concurrent: int, nodes: Sequence[Bundle]) -> int:
    """Exit actors, ``wanted`` at most, with which ``concurrent`` trials fit on ``nodes`` side by side.

    Raises:
        ResourceError: they don't fit, not even with one each if any is wanted.
    """
    least = min(wanted, 1)
    for actors in range(wanted, least - 1, -1):
        if fits(trial_bundles(resources, actors) * concurrent, nodes):
            return actors
    raise _too_much(resources, least, concurrent)


def check_fits(resources: ResourceConfig, actors: int, concurrent: int, nodes: Sequence[Bundle]) -> None:
    """Raise ResourceError unless ``concurrent`` trials with ``actors`` exit actors each fit on ``nodes``."""
    if not fits(trial_bundles(resources, actors) * concurrent, nodes):
        raise _too_much(resources, actors, concurrent)


def _bundle(cpus: float, gpus: float | None) -> Bundle:
    return {name: amount for name, amount in (("CPU", cpus), ("GPU", gpus or 0.0)) if amount}


def _holds(node: Bundle, bundle: Bundle) -> bool:
    return all(node.get(name, 0.0) + _ROUNDING >= amount for name, amount in bundle.items())


def _size(amounts: Bundle) -> tuple[float, float]:
    return amounts.get("GPU", 0.0), amounts.get("CPU", 0.0)


def _too_much(resources: ResourceConfig, actors: int, concurrent: int) -> ResourceError:
    driver, exit = _text(resources.driver_cpus, resources.driver_gpus), ""
    if actors:
        each = _text(resources.cpus_per_exit, resources.gpus_per_exit)
        exit = f" and {actors} exit actor{'s' * (actors > 1)} ({each}{' each' * (actors > 1)})"
    if concurrent > 1:
        who, knob = f"{concurrent} trials side by side, each with", "lower concurrent, or "
    else:
        who, knob = "a trial with", "lower "
    return ResourceError(
        f"the cluster could never hold {who} a driver ({driver}){exit}: {knob}cpus_per_exit, gpus_per_exit, "
        "resources.actors or resources.driver_cpus, or add nodes and set resources.wait_for_resources_s"
    )


def _text(cpus: float, gpus: float | None) -> str:
    return f"{cpus:g} CPUs, {gpus or 0:g} GPUs"


@dataclass(frozen=True)
class Bundles:
    """The driver in the bundle ``driver`` of ``group``, and one exit actor in each of ``exits``."""

    group: PlacementGroup
    driver: int
    exits: tuple[int, ...]

    def options(self, bundle: int) -> dict[str, Any]:
        """Options for an actor that goes into ``bundle``; what it starts itself goes where it says."""
        strategy = PlacementGroupSchedulingStrategy(
            self.group, placement_group_bundle_index=bundle, placement_group_capture_child_tasks=False
        )
        return {"scheduling_strategy": strategy}


START_S = 300.0
"""Seconds in which a process that has room starts: it imports torch, and an exit's maps the data."""
_SAY_AFTER_S = {True: 5.0, False: 30.0}
"""Seconds after which it is said that a node is lacking, or that a process takes long to start."""


@dataclass(frozen=True)
class Late:
    """It took longer than ``limit`` seconds; ``lacking``: no living node has room for it at all."""

    limit: float
    lacking: bool


class Waiting:
    """For one kind of actor. ``late`` is called again and again while there is none, ``over`` when there is.

    Args:
        what: the actor and its size, for people.
        wait_s: seconds to wait for nodes.
        fits: whether a living node could hold one.
    """

    def __init__(self, what: str, wait_s: float, fits: Callable[[], bool], notify: Notify) -> None:
        self._what, self._wait_s, self._fits, self._notify = what, wait_s, fits, notify
        self._began: float | None = None
        self._said = False

    def late(self, started: float) -> Late | None:
        """None while there is still hope for the process that was asked for at ``started``."""
        now = time.monotonic()
        self._began = now if self._began is None else self._began
        lacking = not self._fits()
        limit, since = (self._wait_s, self._began) if lacking else (START_S + self._wait_s, started)
        if now - since > limit:
            return Late(limit, lacking)
        if not self._said and now - self._began > _SAY_AFTER_S[lacking]:
            self._said = True
            kind = "a node that can hold" if lacking else "the start of"
            self._notify(f"waiting up to {limit:.0f} s for {kind} {self._what}")
        return None

    def over(self) -> None:
        """There is one."""
        if self._said and self._began is not None:
            self._notify(f"there is {self._what} after {time.monotonic() - self._began:.0f} s")
        self._began, self._said = None, False


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

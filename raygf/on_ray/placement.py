"""What fits where: actors and bundles on the nodes of a cluster, and waiting for a node or a process."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from types import MappingProxyType
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raygf.config.run import ResourceConfig
from raygf.errors import ResourceError
from raygf.records import Notify

Bundle = dict[str, float]
"""Amounts by resource, such as ``{"CPU": 1, "GPU": 0.5}``; what is zero is left out."""

_ROUNDING = 1e-6
"""0.8 and 0.2 of a GPU fill it, though not as floating-point numbers; Ray counts in 1/10000."""


def driver_bundle(resources: ResourceConfig) -> Bundle:
    """What the driver takes, or each of the workers of Ray Train."""
    return _bundle(resources.driver_cpus, resources.driver_gpus)


def exit_bundle(resources: ResourceConfig) -> Bundle:
    """What an exit actor takes."""
    return _bundle(resources.cpus_per_exit, resources.gpus_per_exit)


def trial_bundles(resources: ResourceConfig, actors: int) -> list[Bundle]:
    """The trial's own function, its driver, and ``actors`` exit actors, each in a bundle of its own.

    The function only waits and passes records on, so its bundle is empty: Ray Tune then places it beside the
    driver. ``resources`` must have their GPUs filled in (``raygf.on_ray.cluster.with_gpus``).
    """
    return [{}, driver_bundle(resources), *[exit_bundle(resources)] * actors]


def _bundle(cpus: float, gpus: float | None) -> Bundle:
    return {name: amount for name, amount in (("CPU", cpus), ("GPU", gpus or 0.0)) if amount}


def size(bundle: Bundle) -> str:
    """``bundle`` in words."""
    gpus, cpus = _amounts(bundle)
    return f"{cpus:g} CPUs, {gpus:g} GPUs"


def idle_nodes(taken: Mapping[str, Bundle] = MappingProxyType({})) -> list[Bundle]:
    """CPUs and GPUs of every living node, without those that are ``taken``, by the node's id."""
    living = [(node["Resources"], taken.get(node["NodeID"], {})) for node in ray.nodes() if node["Alive"]]
    return [
        {name: has.get(name, 0.0) - gone.get(name, 0.0) for name in ("CPU", "GPU")} for has, gone in living
    ]


def fits(bundles: Sequence[Bundle], nodes: Sequence[Bundle]) -> bool:
    """Whether ``nodes`` can hold all ``bundles`` at once, each on one node.

    The largest go first, each onto the node that has least; GPUs count before CPUs. A node with 1.4 GPUs has
    a whole one and 0.4 of another: a share lies on one GPU, and more than one are whole ones.
    """
    free = [_Free(node) for node in nodes]
    largest_first = sorted(bundles, key=_amounts, reverse=True)
    return all(any(node.take(bundle) for node in sorted(free, key=_Free.amounts)) for bundle in largest_first)


def _amounts(bundle: Bundle) -> tuple[float, float]:
    return bundle.get("GPU", 0.0), bundle.get("CPU", 0.0)


class _Free:
    """What is left of a node."""

    def __init__(self, node: Bundle) -> None:
        gpus = max(0.0, node.get("GPU", 0.0))
        whole = int(gpus + _ROUNDING)
        self.cpus = node.get("CPU", 0.0)
        self.gpus = [*[1.0] * whole, gpus - whole]

    def amounts(self) -> tuple[float, float]:
        return sum(self.gpus), self.cpus

    def take(self, bundle: Bundle) -> bool:
        """Take ``bundle`` from the fullest GPUs that can give it; False if there is no room."""
        gpus, cpus = _amounts(bundle)
        each, count = min(gpus, 1.0), math.ceil(gpus - _ROUNDING)
        able = [gpu for gpu in sorted(self.gpus) if gpu + _ROUNDING >= each][:count]
        if self.cpus + _ROUNDING < cpus or len(able) < count:
            return False
        self.cpus -= cpus
        for gpu in able:
            self.gpus.remove(gpu)
            self.gpus.append(gpu - each)
        return True


def check_fits(resources: ResourceConfig, actors: int, concurrent: int, nodes: Sequence[Bundle]) -> None:
    """Raise ResourceError if ``concurrent`` trials with ``actors`` exit actors each don't fit on ``nodes``.

    Nodes that are still awaited are taken to be large enough.
    """
    if resources.wait_for_resources_s > 0 or fits(trial_bundles(resources, actors) * concurrent, nodes):
        return
    exits = f" and {actors} exit actors ({size(exit_bundle(resources))} each)" if actors else ""
    raise ResourceError(
        f"the cluster could never hold trials (concurrent = {concurrent}) with a driver "
        f"({size(driver_bundle(resources))}){exits}: lower concurrent, resources.cpus_per_exit, "
        "resources.gpus_per_exit, resources.actors or resources.driver_cpus, or add nodes and set "
        "resources.wait_for_resources_s"
    )


def actors_per_trial(
    resources: ResourceConfig, exits: int, concurrent: int, nodes: Sequence[Bundle]
) -> tuple[int, str]:
    """How many exit actors a trial gets that trains ``exits`` exits, and a note if that is fewer.

    ``resources.actors`` is taken at its word. Without it there is one an exit, fewer where the cluster is
    smaller.

    Raises ResourceError: ``nodes`` could never hold ``concurrent`` trials, and no others are awaited.
    """
    seats = resources.seats(exits)
    wanted = actors = min(seats, resources.actors or seats)
    least = min(wanted, 1) if resources.actors is None else wanted
    check_fits(resources, least, concurrent, nodes)
    if resources.wait_for_resources_s == 0:
        while actors > least and not fits(trial_bundles(resources, actors) * concurrent, nodes):
            actors -= 1
    count = f"{actors} exit actor{'s' * (actors != 1)}"
    replicas = f", {seats} replicas in all" if seats > exits else ""
    few = f"every trial has {count} for {exits} exits{replicas}: the cluster has no room for more"
    return actors, few if actors < wanted else ""


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
_NOTE_AFTER_S = {True: 5.0, False: 30.0}
"""Seconds after which people are told that a node is lacking, or that a process takes long to start."""


class Waiting:
    """For actors of one kind. ``late`` is called again and again while there are none, ``over`` afterwards.

    Args:
        what: the actors and their size, for people; ``knob`` makes them smaller.
        wait_s: seconds to wait for nodes.
        fits: whether the living nodes could hold them.
    """

    def __init__(self, what: str, knob: str, wait_s: float, fits: Callable[[], bool], notify: Notify) -> None:
        self._what, self._knob, self._wait_s, self._fits, self._notify = what, knob, wait_s, fits, notify
        self._began: float | None = None
        self._noted = False

    def late(self, started: float) -> str:
        """An error; "" while there is hope for the process asked for at ``started`` (``monotonic``)."""
        now = monotonic()
        self._began = now if self._began is None else self._began
        lacking = not self._fits()
        limit, since = (self._wait_s, self._began) if lacking else (START_S + self._wait_s, started)
        if now - since > limit:
            begin = f"{self._what} could not start within {limit:.0f} s: the cluster is busy; free it"
            if lacking:
                begin = f"the cluster can't hold {self._what}, and no node came within {limit:.0f} s; add one"
            return f"{begin}, lower {self._knob}, or raise resources.wait_for_resources_s"
        if not self._noted and now - self._began > _NOTE_AFTER_S[lacking]:
            self._noted = True
            kind = "a node that can hold" if lacking else "the start of"
            self._notify(f"waiting up to {limit:.0f} s for {kind} {self._what}")
        return ""

    def over(self) -> None:
        """There is one."""
        if self._noted and self._began is not None:
            self._notify(f"there is {self._what} after {monotonic() - self._began:.0f} s")
        self._began, self._noted = None, False

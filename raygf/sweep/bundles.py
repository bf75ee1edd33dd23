"""What a trial reserves, and whether a cluster could ever hold it."""

from __future__ import annotations

from collections.abc import Sequence

from raygf.config import ResourceConfig
from raygf.errors import ResourceError

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

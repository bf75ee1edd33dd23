"""Joining or starting a Ray cluster, and settling what "by default" means on it."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType

import ray
from ray._private import worker

from raygf.config.run import ResourceConfig
from raygf.errors import ResourceError


@contextmanager
def silent_ray() -> Iterator[None]:
    """Ray prints nothing of lost processes and nodes, inside.

    Else a paragraph on each goes to standard output, where a job has its result, whatever ``log_to_driver``
    is. raygf says in one line what was lost and why; Ray's logs have the rest. Ray has no setting for it.
    """
    before = worker._worker_logs_enabled
    worker._worker_logs_enabled = False
    try:
        yield
    finally:
        worker._worker_logs_enabled = before


@contextmanager
def connected(resources: ResourceConfig) -> Iterator[tuple[str, ResourceConfig]]:
    """This process in a cluster, which it leaves in the end (and ends, if it was started here).

    Yields:
        What was joined, for people, and ``resources`` settled for it.

    Raises:
        ResourceError: the cluster can't be reached, or could never hold the driver.
    """
    with joined(resources) as where:
        resources = settle(resources)
        check_driver_fits(resources)
        yield where, resources


@contextmanager
def joined(resources: ResourceConfig) -> Iterator[str]:
    """As ``connected``, with any resources; yields what was joined.

    Raises:
        ResourceError: the cluster can't be reached.
    """
    if ray.is_initialized():
        yield "the cluster that this process is in"
        return
    with silent_ray():
        where = connect(resources)
        try:
            yield where
        finally:
            ray.shutdown()


def connect(resources: ResourceConfig) -> str:
    """Join the cluster at ``resources.address`` or RAY_ADDRESS, a running local one, or start one here.

    "local" as address always starts one.

    Returns:
        What was joined, for people.

    Raises:
        ResourceError: the named cluster can't be reached.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    named = resources.address or os.environ.get("RAY_ADDRESS", "")
    if named == "local":
        return _start(resources)
    _require_answer(named)
    try:
        ray.init(address=named or "auto", log_to_driver=False, logging_level="ERROR")
        return f"cluster {ray.get_runtime_context().gcs_address}"
    except (ConnectionError, ValueError, RuntimeError, AssertionError) as error:
        if named:
            first = str(error).strip().split("\n")[0]
            raise ResourceError(f"no Ray cluster answers at {named}: {first}") from None
    return _start(resources)


def _require_answer(address: str) -> None:
    """Raise ResourceError unless somebody listens at ``address``: Ray would try for minutes."""
    scheme, _, place = address.rpartition("://")
    if place in ("", "auto") or scheme not in ("", "ray", "http", "https"):
        return
    if scheme.startswith("http"):
        raise ResourceError(
            f"resources.address (or RAY_ADDRESS) = {address!r} is where jobs are submitted: give it to "
            "ray job submit --address, or name the cluster by HOST:PORT"
        )
    host, _, port = place.rpartition(":")
    if not host or not port.isdigit():
        raise ResourceError(
            f"resources.address (or RAY_ADDRESS) = {address!r}: must be HOST:PORT of a cluster, or local"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        cause = getattr(error, "strerror", None) or error
        raise ResourceError(
            f"no Ray cluster answers at {address}: {cause}; start it there, or set resources.address"
        ) from None


def _start(resources: ResourceConfig) -> str:
    """A cluster on this machine, for as long as this process lives."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # The driver sleeps while the exits train and they sleep while it fuses, so its CPUs come on top.
    cpus = cores + (0 if resources.workers else math.ceil(resources.driver_cpus))
    ray.init(
        address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
    )
    return f"Ray started on this machine with {cores} CPUs"


def settle(resources: ResourceConfig) -> ResourceConfig:
    """``resources`` with its GPUs settled for the cluster that this process is connected to.

    Every exit actor and the driver get a GPU of their own; where the cluster has only one, half each. So do
    the workers of Ray Train; where there are too few, as many share each as need be.
    """
    total = ray.cluster_resources().get("GPU", 0)
    share = 0.0 if total == 0 else 0.5 if total < 2 else 1.0
    exit_gpus = share if resources.gpus_per_exit is None else resources.gpus_per_exit
    driver_gpus = exit_gpus if resources.driver_gpus is None else resources.driver_gpus
    if resources.workers and resources.driver_gpus is None:
        driver_gpus = 1 / math.ceil(resources.workers / total) if total else 0.0
    return replace(resources, gpus_per_exit=exit_gpus, driver_gpus=driver_gpus)


def check_driver_fits(resources: ResourceConfig) -> None:
    """Raise ResourceError if the nodes could never hold the driver or its workers, and none is awaited."""
    cpus, gpus, needed = resources.driver_cpus, resources.driver_gpus or 0, resources.workers or 1
    if resources.wait_for_resources_s > 0 or fitting(cpus, gpus) >= needed:
        return
    each = f"{cpus:g} CPUs, {gpus:g} GPUs"
    if resources.workers is None:
        raise ResourceError(
            f"no node of the cluster can hold the driver ({each}): lower resources.driver_cpus or "
            "resources.driver_gpus"
        )
    raise ResourceError(
        f"the nodes of the cluster can't hold {needed} workers ({each} each): lower resources.workers, "
        "resources.driver_cpus or resources.driver_gpus, or add nodes and set resources.wait_for_resources_s"
    )


_ROUNDING = 1e-6
"""0.8 and 0.2 of a GPU fill it, though not as floating-point numbers; Ray counts in 1/10000."""


def fitting(cpus: float, gpus: float, taken: Mapping[str, tuple[float, float]] = MappingProxyType({})) -> int:
    """How many actors of this size the living nodes of the cluster can hold, were they idle.

    Args:
        taken: CPUs and GPUs that are not to be counted, by the node's id.
    """
    fits = 0
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        total = node["Resources"]
        taken_cpus, taken_gpus = taken.get(node["NodeID"], (0.0, 0.0))
        by_cpu = (total.get("CPU", 0) - taken_cpus) / cpus if cpus else math.inf
        by_gpu = _on_gpus(total.get("GPU", 0), taken_gpus, gpus) if gpus else math.inf
        fits += max(0, int(min(by_cpu, by_gpu, 1 << 16) + _ROUNDING))
    return fits


def _on_gpus(total: float, taken: float, share: float) -> float:
    """How many shares ``total`` GPUs hold beside ``taken``; none is spread over two GPUs but whole ones."""
    free = total - math.ceil(taken - _ROUNDING)
    if share >= 1:
        return free // share
    beside = math.ceil(taken - _ROUNDING) - taken
    return free * int(1 / share + _ROUNDING) + int(beside / share + _ROUNDING)

"""Joining or starting a Ray cluster, and settling what "by default" means on it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import ray

from raygf.config import ResourceConfig
from raygf.errors import ResourceError


@contextmanager
def connected(resources: ResourceConfig) -> Iterator[tuple[str, ResourceConfig]]:
    """This process in a cluster, which it leaves in the end (and ends, if it was started here).

    Yields:
        What was joined, for people, and ``resources`` settled for it.

    Raises:
        ResourceError: the cluster can't be reached, or could never hold the driver.
    """
    mine = not ray.is_initialized()
    where = connect(resources) if mine else "the cluster that this process is in"
    try:
        resources = settle(resources)
        check_driver_fits(resources)
        yield where, resources
    finally:
        if mine:
            ray.shutdown()


def connect(resources: ResourceConfig) -> str:
    """Join the cluster at ``resources.address`` or RAY_ADDRESS, a running local one, or start one here.

    Returns:
        What was joined, for people.

    Raises:
        ResourceError: the named cluster can't be reached.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    named = resources.address or os.environ.get("RAY_ADDRESS", "")
    try:
        ray.init(address=named or "auto", log_to_driver=False, logging_level="ERROR")
        return f"cluster {ray.get_runtime_context().gcs_address}"
    except (ConnectionError, ValueError, RuntimeError, AssertionError) as error:
        if named:
            first = str(error).strip().split("\n")[0]
            raise ResourceError(f"no Ray cluster answers at {named}: {first}") from None
    return _start(resources)


def _start(resources: ResourceConfig) -> str:
    """A cluster on this machine, for as long as this process lives."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # The driver sleeps while the exits train and they sleep while it fuses, so its CPUs come on top.
    cpus = cores + math.ceil(resources.driver_cpus)
    ray.init(
        address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
    )
    return f"Ray started on this machine with {cores} CPUs"


def settle(resources: ResourceConfig) -> ResourceConfig:
    """``resources`` with its GPUs settled for the cluster that this process is connected to.

    Every exit actor and the driver get a GPU of their own; where the cluster has only one, half each.
    """
    total = ray.cluster_resources().get("GPU", 0)
    share = 0.0 if total == 0 else 0.5 if total < 2 else 1.0
    exit_gpus = share if resources.gpus_per_exit is None else resources.gpus_per_exit
    driver_gpus = exit_gpus if resources.driver_gpus is None else resources.driver_gpus
    return replace(resources, gpus_per_exit=exit_gpus, driver_gpus=driver_gpus)


def check_driver_fits(resources: ResourceConfig) -> None:
    """Raise ResourceError if no node could ever hold the driver, and none is waited for."""
    if resources.wait_for_resources_s > 0:
        return
    for node in ray.nodes():
        total = node["Resources"] if node["Alive"] else {}
        has_gpus = total.get("GPU", 0) >= (resources.driver_gpus or 0)
        if has_gpus and total.get("CPU", 0) >= resources.driver_cpus:
            return
    raise ResourceError(
        f"no node of the cluster can hold the driver ({resources.driver_cpus:g} CPUs, "
        f"{resources.driver_gpus or 0:g} GPUs): lower resources.driver_cpus or resources.driver_gpus"
    )

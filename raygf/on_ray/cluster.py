"""Joining or starting a Ray cluster, and the default shares of its GPUs."""

import math
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import ray
from ray._private import worker
from ray.exceptions import RayTaskError

from raygf.config.run import ResourceConfig
from raygf.errors import RaygfError, ResourceError, one_line
from raygf.on_ray.placement import driver_bundle, fits, idle_nodes, size

_PRINTING = "_worker_logs_enabled"


@contextmanager
def connected(resources: ResourceConfig, trials: int = 0) -> Iterator[tuple[str, ResourceConfig]]:
    """This process in a cluster, which it leaves in the end (and ends, if it was started here).

    ``trials``: of a sweep, side by side. A cluster that is started here then has room for all their drivers
    beside its CPUs: as with a single run, they sleep while their exits train.

    Yields:
        What was joined, for people, and ``resources`` with their GPUs filled in.

    Raises ResourceError: the cluster can't be reached, or could never hold the driver of a single run.
    """
    with ExitStack() as stack:
        where = "the cluster that this process is in"
        if not ray.is_initialized():
            stack.enter_context(silent_ray())
            where = connect(replace(resources, driver_cpus=resources.driver_cpus * (trials or 1)))
            stack.callback(ray.shutdown)
        resources = with_gpus(resources)
        if not trials:
            check_driver_fits(resources)
        yield where, resources


@contextmanager
def silent_ray() -> Iterator[None]:
    """Ray prints nothing of lost processes and nodes, inside.

    Else a paragraph on each goes to standard output, where a job has its result, whatever ``log_to_driver``
    is. raygf says in one line what was lost and why; Ray's logs have the rest. Ray has no setting for it.
    """
    before = getattr(worker, _PRINTING, True)
    setattr(worker, _PRINTING, False)
    try:
        yield
    finally:
        setattr(worker, _PRINTING, before)


def connect(resources: ResourceConfig) -> str:
    """Join the cluster at ``resources.address`` or RAY_ADDRESS, a running local one, or start one here.

    "local" as address always starts one.

    Returns:
        What was joined, for people.

    Raises ResourceError: the named cluster can't be reached.
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
            why = one_line(error, kind=False)
            raise ResourceError(f"no Ray cluster answers at {named}: {why}") from None
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
    """Start a cluster on this machine, for as long as this process lives, or raise ResourceError."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # The driver sleeps while the exits train and they sleep while it fuses, so its CPUs come on top.
    cpus = cores + (0 if resources.workers else math.ceil(resources.driver_cpus))
    quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    try:
        ray.init(address="local", num_cpus=cpus, **quiet)
    except Exception as error:  # Ray raises many kinds, plain Exception among them
        why = f"Ray could not be started on this machine: {one_line(error)}"
        raise ResourceError(f"{why}; try again, or train without it: --resources.executor local") from error
    return f"Ray started on this machine with {cores} CPUs"


def with_gpus(resources: ResourceConfig) -> ResourceConfig:
    """``resources`` with its GPUs filled in for the cluster that this process is connected to.

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
    bundle = driver_bundle(resources)
    if resources.wait_for_resources_s > 0 or fits([bundle] * (resources.workers or 1), idle_nodes()):
        return
    workers = resources.workers
    who, fewer = (f"{workers} workers", "resources.workers, ") if workers else ("the driver", "")
    raise ResourceError(
        f"the nodes of the cluster can't hold {who} ({size(bundle)} each): lower {fewer}"
        "resources.driver_cpus or resources.driver_gpus, or add nodes and set resources.wait_for_resources_s"
    )


def fetch(ref: Any, limit: float) -> Any:
    """The value of ``ref``, waited for ``limit`` seconds at most.

    Raises:
        RaygfError: the remote code raised it on purpose; it comes back as itself, not wrapped by Ray.
        RayError: in one of its forms: the wait ran out, the process was lost, another error in the code.
    """
    try:
        return ray.get(ref, timeout=limit)
    except RayTaskError as error:
        if isinstance(error.cause, RaygfError):
            raise error.cause from None
        raise

"""What Ray's errors mean: which kind of failure, on which node, for what cause."""

from __future__ import annotations

import re
from typing import Any

import ray
from ray.exceptions import (
    ActorUnavailableError,
    GetTimeoutError,
    ObjectStoreFullError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
)

from raygf.errors import RaygfError
from raygf.memory import is_out_of_memory, memory_cause
from raygf.retry import Failure

_NODE = re.compile(r"because its node has died\. Node Id: (\w+)")
_WHY = re.compile(r"because (its \w+ process has died|its node has died|[^.]*)")
_SILENT = re.compile(r"RPC error: (.*?) rpc_code")
_DETAIL = re.compile(r"Worker exit detail: ([^.]*\.[^.]*)")
_USED = re.compile(r"Memory on the node .*?\) was ([^(\n]+?limit)")
_OWN = re.compile(r"pid=(\d+), actual memory used=([\d.]+ ?\w+)")


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


def failure_of(error: RayError) -> Failure:
    """Which kind of failure ``error`` is."""
    if isinstance(error, OutOfMemoryError | ObjectStoreFullError):
        return Failure.MEMORY
    if isinstance(error, GetTimeoutError):
        return Failure.STUCK
    if _unborn(error):
        return Failure.RAISED
    if not isinstance(error, RayTaskError):
        return Failure.LOST
    return Failure.MEMORY if is_out_of_memory(error.cause) else Failure.RAISED


def cause_of(error: RayError, known: str = "") -> str:
    """``error`` in one line for people; ``known`` sizes are told where memory ran out and it names none."""
    text = str(error)
    if isinstance(error, OutOfMemoryError):
        return f"OutOfMemoryError: Ray ended it because the node ran low on memory{_amounts(text)}"
    if failure_of(error) is Failure.MEMORY:
        return memory_cause(error.cause if isinstance(error, RayTaskError) else error, known)
    if isinstance(error, ActorUnavailableError):
        why = _SILENT.search(text)
        return f"ActorUnavailableError: it does not answer{f' ({why[1]})' if why else ''}"
    inner = error.cause if isinstance(error, RayTaskError) else error
    lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
    if _unborn(error):
        return lines[-1]  # of the traceback of its constructor
    if why := _WHY.search(text):
        detail = _DETAIL.search(text)
        return f"{type(inner).__name__}: {why[1]}{f' ({detail[1].strip()})' if detail else ''}"
    return f"{type(inner).__name__}: {lines[0] if lines else ''}".rstrip(": ")


def node_of(error: RayError) -> str:
    """The id of the node that ``error`` says has died; empty if it does not say that."""
    found = _NODE.search(str(error))
    return found[1] if found else ""


def dead_nodes() -> set[str]:
    """The ids of the nodes that the cluster has lost."""
    return {node["NodeID"] for node in ray.nodes() if not node["Alive"]}


def _unborn(error: RayError) -> bool:
    """Whether an actor's own constructor has failed, or what it is made of can't be imported."""
    return isinstance(error, RayActorError) and error.actor_init_failed


def _amounts(text: str) -> str:
    """``: 5.45GB used / 23.54GB limit on it, 0.81GB by pid 17411``, as far as Ray says so.

    It may end several processes at once, and names all of them.
    """
    used = _USED.search(text)
    parts = [f"{used[1]} on it"] if used else []
    parts += [f"{size} by pid {pid}" for pid, size in _OWN.findall(text)]
    return f": {', '.join(parts)}" if parts else ""

"""What Ray's errors mean (which kind of failure, for what cause) and what to do about them.

Everything here is a pure function; executors and drivers act on it.
"""

import re
from enum import Enum

from ray.exceptions import (
    GetTimeoutError,
    ObjectStoreFullError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
)

from raygf.compute import is_out_of_memory, memory_cause
from raygf.errors import PeersLost, one_line

FIRST_DEADLINE_S = 14400.0
"""Seconds for the first training: four hours."""
_FACTOR = 5.0
_FLOOR_S = 60.0


class Failure(Enum):
    """Why a training, or the driver, did not come back."""

    LOST = "lost"  # the actor, its node or its result is gone
    STUCK = "stuck"  # no result before the deadline
    MEMORY = "memory"  # killed for memory: the same training would end the same way
    RAISED = "raised"  # the training itself raised: likewise


def may_retry(failure: Failure, failures: int, max_failures: int) -> bool:
    """Whether to retry: what bad luck took, ``max_failures`` times, not what would happen again.

    ``failures``: how many there were, this one included: of an exit in a round, or of the driver since its
    last round.
    """
    return failure not in (Failure.MEMORY, Failure.RAISED) and failures <= max_failures


def deadline_s(slowest_s: float | None, limit_s: float | None) -> float:
    """Seconds after which a training counts as stuck.

    Args:
        slowest_s: the longest training so far; None if none has ended yet.
        limit_s: what the user has set, which holds alone; None: five times the slowest, at least a minute.
    """
    if limit_s is not None:
        return limit_s
    if slowest_s is None:
        return FIRST_DEADLINE_S
    return max(_FLOOR_S, _FACTOR * slowest_s)


_WHY = re.compile(r"because (its \w+ process has died|its node has died|[^.]*)")
_DETAIL = re.compile(r"Worker exit detail: ([^.]*\.[^.]*)")


def failure_of(error: RayError | PeersLost) -> Failure:
    """Which kind of failure ``error`` is."""
    if isinstance(error, OutOfMemoryError | ObjectStoreFullError):
        return Failure.MEMORY
    if isinstance(error, GetTimeoutError):
        return Failure.STUCK
    if _failed_to_start(error):
        return Failure.RAISED
    if not isinstance(error, RayTaskError):
        return Failure.LOST
    return Failure.MEMORY if is_out_of_memory(error.cause) else Failure.RAISED


def cause_of(error: RayError | PeersLost, known: str = "") -> str:
    """``error`` in one line for people, with the ``known`` sizes where memory ran out and it names none."""
    text = str(error)
    if isinstance(error, OutOfMemoryError):
        return "OutOfMemoryError: Ray ended it because the node ran low on memory"
    if failure_of(error) is Failure.MEMORY:
        return memory_cause(error.cause if isinstance(error, RayTaskError) else error, known)
    if _failed_to_start(error):
        return text.strip().splitlines()[-1].strip()  # of the traceback of its constructor
    inner = error.cause if isinstance(error, RayTaskError) else error
    if why := _WHY.search(text):
        detail = _DETAIL.search(text)
        return f"{type(inner).__name__}: {why[1]}{f' ({detail[1].strip()})' if detail else ''}"
    return one_line(inner)


def _failed_to_start(error: Exception) -> bool:
    """Whether an actor's own constructor has failed, or what it is made of can't be imported."""
    return isinstance(error, RayActorError) and error.actor_init_failed

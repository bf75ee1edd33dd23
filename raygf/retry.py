"""What to do when something fails. Pure: acting on it is the part of executors, drivers and storage."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum

FIRST_DEADLINE_S = 14400.0
"""For a training of which no like has ended yet: four hours."""
_FACTOR = 5.0
_FLOOR_S = 60.0
_LONGEST_PAUSE_S = 60.0


class Failure(Enum):
    """Why a training, or the driver, did not come back."""

    LOST = "lost"  # the actor, its node or its result is gone
    STUCK = "stuck"  # no result before the deadline
    MEMORY = "memory"  # killed for memory: the same training would end the same way
    RAISED = "raised"  # the training itself raised: likewise


class Action(Enum):
    """What to do about it."""

    RETRY = "retry"
    STOP = "stop"


@dataclass(frozen=True)
class Loss:
    """One failure, and the id of the node that it happened on; empty where there was none yet."""

    failure: Failure
    node: str = ""


def decide(failure: Failure, failures: int, max_failures: int) -> Action:
    """Retry what bad luck took, stop on what would happen again.

    For exits: ``failures`` of a round so far. For the driver: since the last round that it finished.

    Args:
        failure: this failure.
        failures: how many there were, this one included; see ``count``.
        max_failures: how many are retried.
    """
    if failure in (Failure.MEMORY, Failure.RAISED) or failures > max_failures:
        return Action.STOP
    return Action.RETRY


def count(losses: Sequence[Loss], dead: Collection[str]) -> int:
    """How many failures ``losses`` are: all that one of the ``dead`` nodes took with it count as one."""
    nodes = {loss.node for loss in losses if loss.node in dead}
    return len(nodes) + sum(loss.node not in dead for loss in losses)


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


def pause_s(failures: int, retries: int) -> float | None:
    """Seconds to wait before the next try, 1, 2, 4 … up to a minute; None if it was the last.

    Args:
        failures: tries that failed before this one.
        retries: how many times to try again.
    """
    return None if failures >= retries else min(_LONGEST_PAUSE_S, 2.0**failures)

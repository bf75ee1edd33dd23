"""What to do when the training of an exit fails. Pure: acting on it is the executor's part."""

from __future__ import annotations

from enum import Enum


class Failure(Enum):
    """Why a training did not come back."""

    LOST = "lost"  # the actor, its node or its result is gone
    STUCK = "stuck"  # no result before the deadline
    MEMORY = "memory"  # killed for memory: the same training would end the same way
    RAISED = "raised"  # the training itself raised: likewise


class Action(Enum):
    """What to do about it."""

    RETRY = "retry"
    STOP = "stop"


def decide(failure: Failure, failures: int, max_failures: int) -> Action:
    """Retry what bad luck took, stop on what would happen again.

    Args:
        failure: this failure.
        failures: failures of this round so far, this one included.
        max_failures: how many are retried in one round.
    """
    if failure in (Failure.MEMORY, Failure.RAISED) or failures > max_failures:
        return Action.STOP
    return Action.RETRY

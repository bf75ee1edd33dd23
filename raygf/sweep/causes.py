"""Why a trial failed, in one line: the error at the bottom of what Ray and Tune wrap around it."""

from __future__ import annotations

from ray.exceptions import RayActorError, RayTaskError

from raygf.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    MemoryExhausted,
    NonFiniteError,
    RaygfError,
)

WOULD_HAPPEN_AGAIN = (ConfigError, DataError, CheckpointError, NonFiniteError, MemoryExhausted)
"""Errors that end a trial at once: training is repeatable, so another try would end the same way."""


def cause_of(error: object) -> str:
    """One line for people. raygf's own errors say all there is to say; others are named."""
    if isinstance(error, str):  # what Tune hands out when an error could not be read
        return ([line.strip() for line in error.splitlines() if line.strip()] or ["unknown"])[-1]
    if not isinstance(error, BaseException):
        return "unknown"
    inner = _innermost(error)
    if isinstance(inner, RayActorError):
        return "its process was lost (killed, out of memory, or its node has gone)"
    lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    return text if isinstance(inner, RaygfError) else f"{type(inner).__name__}: {text}".rstrip(": ")


def _innermost(error: BaseException) -> BaseException:
    """The first of raygf's errors on the way down, else the error that was there first.

    Ray's wrappers take on the type of what they wrap, so they are looked for first.
    """
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, RayTaskError):
            below = error.cause
        else:
            below = None if isinstance(error, RaygfError) else error.__cause__
        if not isinstance(below, BaseException):
            break
        error = below
    return error

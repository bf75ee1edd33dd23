"""Checks for configuration values: each raises one line naming the field, the value and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from raygf.errors import ConfigError

_LEAST = 1e-4
"""The smallest share of a CPU or GPU that Ray counts."""


def refuse(field: str, value: Any, allowed: str) -> ConfigError:
    """The error for ``field`` having ``value``; ``allowed`` ends the sentence "must be …"."""
    return ConfigError(f"{field} = {value!r}: must be {allowed}")


def whole(field: str, value: Any, low: int = 0, high: int | None = None) -> None:
    """``value`` must be an int of at least ``low`` (and at most ``high``)."""
    span = f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise refuse(field, value, span)
    if high is not None and value > high:
        raise refuse(field, value, span)


def at_most(field: str, value: int, high: int) -> None:
    """``value`` must not be above ``high``."""
    if value > high:
        raise refuse(field, value, f"at most {high}")


def whole_or_none(field: str, value: Any, low: int = 1) -> None:
    """``value`` must be None or an int of at least ``low``."""
    if value is not None:
        whole(field, value, low)


def number(
    field: str, value: Any, low: float = -math.inf, high: float = math.inf, *, open_low: bool = False
) -> None:
    """``value`` must be a finite number in [low, high], or (low, high] with ``open_low``."""
    bounds = [f"{'above' if open_low else 'at least'} {low:g}"] if low > -math.inf else []
    bounds += [f"at most {high:g}"] if high < math.inf else []
    allowed = " ".join(["a finite number", " and ".join(bounds)]).strip()
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or value < low or value > high or (open_low and value == low):
        raise refuse(field, value, allowed)


def amount(field: str, value: Any, *, whole_above_one: bool = False) -> None:
    """``value`` must be a number of CPUs or GPUs as Ray takes it; of GPUs it takes no one and a half."""
    number(field, value, 0)
    if 0 < value < _LEAST:
        raise refuse(field, value, f"0, or at least {_LEAST:g}")
    if whole_above_one and value > 1 and value != int(value):
        raise refuse(field, value, "at most 1, or a whole number")


def several(field: str, value: Any) -> None:
    """``value`` must be a tuple."""
    if not isinstance(value, tuple):
        raise refuse(field, value, "a list of numbers")


def one_of(field: str, value: Any, allowed: Sequence[str]) -> None:
    """``value`` must be one of the names ``allowed``."""
    if value not in allowed:
        raise refuse(field, value, "one of " + ", ".join(allowed))


def flag(field: str, value: Any) -> None:
    """``value`` must be a bool."""
    if not isinstance(value, bool):
        raise refuse(field, value, "True or False")


def text(field: str, value: Any, *, empty: bool = True) -> None:
    """``value`` must be a string, and not an empty one unless ``empty``."""
    if not isinstance(value, str) or not (empty or value.strip()):
        raise refuse(field, value, "a text" if empty else "a text that is not empty")

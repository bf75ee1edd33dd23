"""The values that one field may take, read from what ``ray.tune`` offers for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from raygf.errors import ConfigError

_DIGITS = 4
"""Significant digits of a drawn number: a person can type it again, and gets the same run."""
_OFFERED = "uniform, loguniform, randint, lograndint, their quantized forms (quniform ...), choice or a value"


@dataclass(frozen=True)
class Choice:
    """One of ``options``."""

    options: tuple[Any, ...]

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values that must be allowed if all are to be."""
        return self.options

    def points(self, count: int) -> list[Any]:
        """The values of a grid: all of them, whatever ``count`` is."""
        return list(self.options)

    def draw(self, random: np.random.Generator) -> Any:
        """One of them."""
        return self.options[int(random.integers(len(self.options)))]


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included; ``step``: multiples of it; ``whole``: integers."""

    low: float
    high: float
    log: bool = False
    whole: bool = False
    step: float | None = None

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values that must be allowed if all are to be."""
        return (self.cut(self.low), self.cut(self.high))

    def points(self, count: int) -> list[Any]:
        """The values of a grid: ``count`` of them evenly spaced (in the logarithm), without repetitions."""
        spread = np.geomspace if self.log else np.linspace
        return list(dict.fromkeys(self.cut(float(x)) for x in spread(self.low, self.high, count)))

    def draw(self, random: np.random.Generator) -> Any:
        """A number, uniform (in the logarithm)."""
        low, high = self.low - 0.5 * self.whole, self.high + 0.5 * self.whole
        if self.log:
            return self.cut(math.exp(random.uniform(math.log(low), math.log(high))))
        return self.cut(random.uniform(low, high))

    def cut(self, value: float) -> Any:
        """The allowed number next to ``value``, with few digits."""
        if self.step is not None:
            first, last = math.ceil(self.low / self.step), math.floor(self.high / self.step)
            value = min(max(round(value / self.step), first), last) * self.step
        rounded = float(f"{value:.{_DIGITS}g}") if not self.whole else float(round(value))
        inside = min(max(rounded, self.low), self.high)
        return int(inside) if self.whole else inside


Axis = Choice | Range


def read_axis(name: str, value: Any) -> Axis:
    """The axis that ``value`` (of the field ``name`` in a space) stands for; a plain value is a lone choice.

    Raises:
        ConfigError: it has no values, its bounds are crossed, or it is nothing that can be checked.
    """
    from ray.tune.search.sample import Categorical, Domain, Float, Function, Integer

    if isinstance(value, dict) and list(value) == ["grid_search"]:
        return _choice(name, value["grid_search"])
    if isinstance(value, Categorical):
        return _choice(name, value.categories)
    if isinstance(value, Float | Integer):
        return _range(name, value, isinstance(value, Integer))
    if isinstance(value, Domain | Function | dict) or callable(value):
        raise ConfigError(f"space: {name} must be given by ray.tune's {_OFFERED}, not {type(value).__name__}")
    return _choice(name, [value])


def _choice(name: str, options: Any) -> Choice:
    if not options:
        raise ConfigError(f"space: {name} has nothing to choose from")
    return Choice(tuple(tuple(option) if isinstance(option, list) else option for option in options))


def _range(name: str, domain: Any, whole: bool) -> Range:
    from ray.tune.search.sample import LogUniform, Normal, Quantized

    sampler, step = domain.get_sampler(), None
    if isinstance(sampler, Quantized):
        sampler, step = sampler.get_sampler(), float(sampler.q)
    if isinstance(sampler, Normal) or not math.isfinite(domain.lower) or not math.isfinite(domain.upper):
        raise ConfigError(f"space: {name} has no bounds; use one of ray.tune's {_OFFERED}")
    low, high, log = float(domain.lower), float(domain.upper), isinstance(sampler, LogUniform)
    if whole and (step is None or step == 1):
        high -= 1  # ray.tune leaves the upper bound of integers out
    if not low < high or (log and low <= 0):
        raise ConfigError(f"space: {name} goes from {low:g} to {high:g}: no values to draw from")
    if step is not None and math.ceil(low / step) > math.floor(high / step):
        raise ConfigError(f"space: {name}: no multiple of {step:g} from {low:g} to {high:g}")
    return Range(low, high, log, whole, step)

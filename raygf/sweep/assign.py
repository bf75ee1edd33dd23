"""The trials of a random or grid search, drawn before the first one starts."""

from __future__ import annotations

from itertools import product

import numpy as np

from raygf.errors import ConfigError
from raygf.seeding import derive_seed
from raygf.sweep.axes import Axis, Choice, read_axis
from raygf.sweep.space import Space, Values

Axes = dict[str, Axis]


def read_axes(space: Space) -> list[Axes]:
    """The axes of every alternative of ``space``.

    Raises:
        ConfigError: the space is empty, or an axis can't be used.
    """
    axes = [
        {name: read_axis(name, value) for name, value in alternative.items()}
        for alternative in space.alternatives
    ]
    if not axes or not all(axes):
        raise ConfigError("space: it is empty: every variant needs at least one field")
    if sum(_size(alternative) for alternative in axes) < 2:
        raise ConfigError("space: it holds one run only: nothing to choose from")
    return axes


def grid(alternatives: list[Axes], points: int) -> list[Values]:
    """Every combination; ranges are taken at ``points`` values."""
    trials = []
    for axes in alternatives:
        columns = [axis.points(points) for axis in axes.values()]
        trials += [dict(zip(axes, row, strict=True)) for row in product(*columns)]
    return trials


def random(alternatives: list[Axes], trials: int, seed: int) -> list[Values]:
    """``trials`` draws, the alternatives taking turns in an order of chance.

    Every trial has a stream of its own, so the first few of many trials are those of a smaller sweep. A space
    of choices alone is drawn without repetition, and gives no more trials than it has combinations.
    """
    if all(isinstance(axis, Choice) for axes in alternatives for axis in axes.values()):
        every = grid(alternatives, points=2)
        return [every[i] for i in _stream(seed, "order").permutation(len(every))[:trials]]
    order = _stream(seed, "alternatives").permutation(len(alternatives))
    drawn = []
    for number in range(trials):
        stream = _stream(seed, "trial", number)
        axes = alternatives[order[number % len(order)]]
        drawn.append({name: axis.draw(stream) for name, axis in axes.items()})
    return drawn


def ends(axes: Axes) -> list[Values]:
    """Trials that between them take every end of every axis: if these are allowed, so are all."""
    first = {name: axis.ends[0] for name, axis in axes.items()}
    return [first, *(first | {name: end} for name, axis in axes.items() for end in axis.ends[1:])]


def _size(axes: Axes) -> int:
    """Combinations, ranges counted as two."""
    return int(np.prod([len(axis.ends) for axis in axes.values()]))


def _stream(seed: int, *key: str | int) -> np.random.Generator:
    return np.random.default_rng(derive_seed(seed, "sweep", *key))

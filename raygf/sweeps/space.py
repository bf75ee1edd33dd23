"""What a search space is: fields of a run, the values that each may take, and what to optimise.

Spaces are found by name: files in ``tune_spaces``, a file anywhere, or a function in a module. The trials of
a random or grid search are drawn before the first one starts.
"""

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np

from raygf.compute import call_own, derive_seed
from raygf.config.run import RunConfig
from raygf.errors import ConfigError, import_function
from raygf.methods.registry import DELTA, method_names

FOLDER = "tune_spaces"
LR_FACTORS = {"pcgrad": 0.3, "upgrad": 0.3, "gradvac": 0.3, "config": 0.3}
"""Methods within a step that do better with a learning rate below the recipe's, and the factor.

Tried on the digits, 40 to 100 rounds, one or two seeds: with a third of the recipe's learning rate these
gained 0.9 to 2.2 % of validation accuracy over once. For the others once was best, or within half a per cent
of it (imtlg gained 0.6 % with three times as much). Seeds differ by about as much.
"""

LOG = "log-uniform"
"""What is said of a range that is drawn evenly in the logarithm."""
_DIGITS = 4
"""Significant digits of a drawn number: a person can type it again, and gets the same run."""
_OFFERED = "uniform, loguniform, randint, lograndint, choice or a value"

Values = dict[str, Any]
"""What one trial sets: dotted names of a run's fields, such as ``fusion.lr``, and their values."""


def text_of(value: Any, between: str = " ") -> str:
    """A swept value as people write it; ``between``: what stands between the items of a list."""
    if isinstance(value, list | tuple):
        return between.join(map(text_of, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Space:
    """A search space. A file in ``tune_spaces`` has a function that returns one.

    ``variables``: dotted names of a run's fields, each with the values to try: ``ray.tune``'s ``uniform``,
    ``loguniform``, ``randint``, ``lograndint`` and ``choice``, or one plain value. ``variants``:
    alternatives with fields of their own; every trial takes one of them, and all of ``variables``.
    ``metric``: ``val_accuracy/average``, ``val_accuracy/exit_i`` (from 1), ``val_loss/average`` or
    ``val_loss/exit_i``. ``search``: how trials are chosen unless ``--search`` says otherwise.
    """

    variables: Mapping[str, Any] = field(default_factory=dict)
    variants: Sequence[Mapping[str, Any]] = ({},)
    metric: str = "val_accuracy/average"
    mode: Literal["max", "min"] = "max"
    search: Literal["random", "grid"] = "random"

    @property
    def alternatives(self) -> tuple[Values, ...]:
        """Every variant with the common variables, in order; the variant's own fields come first."""
        return tuple({**variant, **self.variables} for variant in self.variants)

    @property
    def fields(self) -> tuple[str, ...]:
        """The dotted names of all fields that are set, each once."""
        return tuple(dict.fromkeys(name for alternative in self.alternatives for name in alternative))


@dataclass(frozen=True)
class Choice:
    """One of ``ends``, all of which must be allowed."""

    ends: tuple[Any, ...]

    def points(self, count: int) -> list[Any]:
        """The values of a grid: all of them, whatever ``count`` is."""
        return list(self.ends)

    def __str__(self) -> str:
        return ", ".join(map(text_of, self.ends))

    def draw(self, random: np.random.Generator) -> Any:
        """One of them."""
        return self.ends[int(random.integers(len(self.ends)))]


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included; ``whole``: only integers."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values that must be allowed if all are to be."""
        return (self.cut(self.low), self.cut(self.high))

    def points(self, count: int) -> list[Any]:
        """The values of a grid: ``count`` of them evenly spaced (in the logarithm), without repetitions."""
        spread = np.geomspace if self.log else np.linspace
        return list(dict.fromkeys(self.cut(float(x)) for x in spread(self.low, self.high, count)))

    def __str__(self) -> str:
        kind = f"{LOG if self.log else 'uniform'}{', whole' if self.whole else ''}"
        return f"{kind}, {self.low:g} to {self.high:g}"

    def draw(self, random: np.random.Generator) -> Any:
        """A number, uniform (in the logarithm)."""
        low, high = self.low - 0.5 * self.whole, self.high + 0.5 * self.whole
        if self.log:
            return self.cut(math.exp(random.uniform(math.log(low), math.log(high))))
        return self.cut(random.uniform(low, high))

    def cut(self, value: float) -> Any:
        """The allowed number next to ``value``, with few digits."""
        rounded = float(f"{value:.{_DIGITS}g}") if not self.whole else float(round(value))
        inside = min(max(rounded, self.low), self.high)
        return int(inside) if self.whole else inside


Axis = Choice | Range


def read_axis(name: str, value: Any) -> Axis:
    """The axis that ``value`` (of the field ``name`` in a space) stands for; a plain value is a lone choice.

    Raises ConfigError: it has no values, its bounds are crossed, or it is nothing that can be checked.
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

    sampler = domain.get_sampler()
    bounded = math.isfinite(domain.lower) and math.isfinite(domain.upper)
    if isinstance(sampler, Normal | Quantized) or not bounded:
        raise ConfigError(f"space: {name} has no bounds, or steps; use one of ray.tune's {_OFFERED}")
    # ray.tune leaves the upper bound of integers out
    low, high, log = float(domain.lower), float(domain.upper) - whole, isinstance(sampler, LogUniform)
    if not low < high or (log and low <= 0):
        raise ConfigError(f"space: {name} goes from {low:g} to {high:g}: no values to draw from")
    return Range(low, high, log, whole)


Axes = dict[str, Axis]


def read_axes(space: Space) -> list[Axes]:
    """The axes of every alternative of ``space``; ConfigError if it is empty, or one can't be used."""
    axes = [
        {name: read_axis(name, value) for name, value in alternative.items()}
        for alternative in space.alternatives
    ]
    if not axes or not all(axes):
        raise ConfigError("space: it is empty: every variant needs at least one field")
    if len(axes) == 1 and all(len(axis.ends) == 1 for axis in axes[0].values()):
        raise ConfigError("space: it holds one run only: nothing to choose from")
    return axes


def ranges_of(alternatives: Sequence[Axes]) -> dict[str, str]:
    """What each field may be, for people; where alternatives differ, theirs with a bar between."""
    texts: dict[str, dict[str, None]] = {}
    for axes in alternatives:
        for name, axis in axes.items():
            texts.setdefault(name, {})[str(axis)] = None
    return {name: " | ".join(several) for name, several in texts.items()}


def grid(alternatives: list[Axes], points: int) -> list[Values]:
    """Every combination; ranges are taken at ``points`` values."""
    trials = []
    for axes in alternatives:
        columns = [axis.points(points) for axis in axes.values()]
        trials += [dict(zip(axes, row, strict=True)) for row in product(*columns)]
    return trials


def draw_trials(alternatives: list[Axes], trials: int, seed: int) -> list[Values]:
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


def _stream(seed: int, *key: str | int) -> np.random.Generator:
    return np.random.default_rng(derive_seed(seed, "sweep", *key))


def known_spaces() -> dict[str, Path]:
    """Name and file of every space in ``tune_spaces``, here or raygf's own; the one here counts first."""
    package = Path(__file__).parents[1]  # which holds its spaces where it is installed
    own = package if (package / FOLDER).is_dir() else package.parent
    folders = (own / FOLDER, Path.cwd() / FOLDER)
    files = [file for folder in folders for file in sorted(folder.glob("*.py")) if file.stem != "__init__"]
    return {file.stem: file for file in files}


def describe_spaces() -> str:
    """One line for each known space: its name and the first line of its file's text."""
    files = known_spaces()
    width = max(map(len, files), default=0)
    first = (file.read_text(errors="replace").partition("\n")[0] for file in files.values())
    lines = zip(files, first, strict=True)
    return "\n".join(f"  {name:<{width}}  {line.strip(chr(34))}" for name, line in lines)


def load_space(name: str, run: RunConfig) -> Space:
    """The space ``name`` around ``run``.

    ``name`` is that of a file in ``tune_spaces``, the path of a Python file whose function is called as the
    file is, or "package.module:function".

    Raises ConfigError: there is none of this name, its code fails, or it does not return a space.
    """
    space = call_own("space", name, run, function=lambda run: _function(name)(run), failed="its code failed")
    if not isinstance(space, Space):
        raise ConfigError(f"space = {name!r}: its function returned {type(space).__name__}, not a Space")
    return space


def _function(name: str) -> Callable[[RunConfig], Space]:
    """The function that makes the space ``name``; whatever its module raises is raised."""
    if ":" in name:
        return import_function("space", name)
    file = Path(name).expanduser() if name.endswith(".py") else known_spaces().get(name)
    if file is None or not file.is_file():
        known = ", ".join(known_spaces())
        raise ConfigError(
            f"space = {name!r}: there is none; choose from {known}, or name a file (.py) or "
            '"package.module:function" of your own'
        )
    spec = importlib.util.spec_from_file_location(f"{FOLDER}.{file.stem}", file.absolute())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, file.stem, None)
    if not callable(function):
        raise ConfigError(f"space = {name!r}: {file.name} must have a function {file.stem}(run)")
    return function  # type: ignore[no-any-return]


def settings_of_methods(run: RunConfig) -> list[Values]:
    """One variant for each method of raygf: its name, its learning rate, what else it has to be set.

    The recipe's learning rate is taken to suit the sum of the exits' gradients, and so Meta-GF's exits.
    """
    variants = []
    for name in method_names():
        lr = float(f"{run.optim.lr * LR_FACTORS.get(name, 1.0):.4g}")
        values: Values = {"method": name, "optim.lr": lr}
        if name.removeprefix(DELTA) == "cagrad":
            values["methods.cagrad_c"] = run.methods.cagrad_c
        if name == "dfs":
            values["methods.dfs_beta"] = run.methods.dfs_beta
        variants.append(values)
    return variants


def require_learned_fusion(run: RunConfig) -> None:
    """Raise ConfigError unless ``run`` learns fusion weights."""
    if run.method != "metagf":
        raise ConfigError(
            f"space: it sweeps learned fusion weights, which {run.method} does not have: choose a recipe "
            "with method metagf"
        )

"""The command line of a sweep: its own settings and those of the runs in it, in one list of flags.

And what is refused at once: flags that don't go with a sweep, spaces that can't be swept.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import tyro

from raygf.cli import describe_recipes, parse_flags, split_recipe
from raygf.config.fields import flatten, override, to_dict
from raygf.config.recipes import get_recipe
from raygf.config.run import RunConfig
from raygf.errors import ConfigError
from raygf.methods.registry import check_method
from raygf.sweeps.plan import Plan, SweepOptions, check_metric, flag_of
from raygf.sweeps.space import Axes, Space, describe_spaces, ends, read_axes

RECIPE = "digits"
"""The recipe by default."""
FREE_ON_RESUME = (
    *("storage.path", "storage.name", "tracking.", "resources.address", "resources.wait_for_resources_s"),
    *("resources.exit_timeout_s", "resources.max_failures", "resources.max_driver_restarts"),
)
"""Fields of the runs that may differ when a sweep is resumed."""
NOT_SWEPT = {
    "rounds": "every trial gets as many training passes as the recipe spends",
    "stop_after": "the sweep itself stops trials",
    "data.val": "trials must be compared by the same validation images",
    "model.name": "trials must have the same exits; make a sweep for each network",
    "model.msdnet.exits": "trials must have the same exits; make a sweep for each network",
    "eval_batch_size": "it does not change results",
    "resources.": "it does not change results",
    "storage.": "it does not change results",
    "tracking.": "it does not change results",
}
"""Fields (or sections, with a dot at the end) that no space may have, and why."""


@dataclass(frozen=True)
class SweepFlags:
    """All flags; neither part has a prefix."""

    options: Annotated[SweepOptions, tyro.conf.arg(name="")]
    run: Annotated[RunConfig, tyro.conf.arg(name="")]


@dataclass(frozen=True)
class Command:
    """What was asked for. ``given``: dotted names of the fields that have a flag on the command line."""

    recipe: str
    options: SweepOptions
    run: RunConfig
    given: frozenset[str]


def parse_sweep(description: str, argv: Sequence[str], stored: Plan | None = None) -> Command:
    """What ``argv`` asks for; what has no flag is as in the ``stored`` sweep, if one is resumed.

    Raises:
        ConfigError: the recipe or a flag is unknown, a value is not allowed, two flags contradict each other,
            or a flag contradicts the stored sweep.
        SystemExit: for ``--help``.
    """
    recipe, rest = split_recipe(stored.recipe if stored else RECIPE, argv)
    default = (
        SweepFlags(stored.options, stored.run) if stored else SweepFlags(SweepOptions(), get_recipe(recipe))
    )
    spaces = f"Spaces (--space NAME):\n\n{describe_spaces()}"
    text = f"{description} {spaces}\n\n{describe_recipes(RECIPE, recipe)}"
    words = list(rest)
    if "--resume" in words:  # it may stand alone
        after = words.index("--resume") + 1
        if words[after : after + 1] not in (["True"], ["False"]):
            words.insert(after, "True")
    flags = parse_flags(SweepFlags, text, words, default, " [--recipe NAME]")
    given = frozenset(word[2:].split("=")[0].replace("-", "_") for word in words if word.startswith("--"))
    command = Command(recipe, flags.options, flags.run, given)
    if stored:
        _check_same(stored, command)
    return command


def _check_same(stored: Plan, command: Command) -> None:
    """Raise ConfigError if ``command`` changes what must stay as it is in the ``stored`` sweep."""
    was, now = (
        {
            "recipe": flags.recipe,
            **to_dict(replace(flags.options, resume=False)),
            **flatten(to_dict(flags.run)),
        }
        for flags in (stored, command)
    )
    odd = [name for name in was if was[name] != now[name] and not name.startswith(FREE_ON_RESUME)]
    if odd:
        shown = "; ".join(f"{name} was {was[name]!r}, is now {now[name]!r}" for name in odd[:3])
        raise ConfigError(f"can't resume another sweep: {shown}")


def check_flags(command: Command) -> None:
    """Raise ConfigError for flags of single runs that a sweep can't have, or that contradict each other."""
    run, options = command.run, command.options
    workers, trials = run.resources.workers, options.trials
    for refused, why in (
        (run.resources.executor == "local", "resources.executor = 'local': sweeps need Ray; leave it out"),
        (workers, f"resources.workers = {workers}: the trials of a sweep have no workers; leave it out"),
        (run.stop_after, f"stop_after = {run.stop_after}: {NOT_SWEPT['stop_after']}"),
        (run.storage.resume, "storage.resume = True: resume a sweep with --resume"),
        (run.tracking.also, f"tracking.also = {run.tracking.also}: of single runs alone; leave it out"),
        (not run.data.val, "data.val = 0: trials are compared by validation images; hold some out"),
        (
            trials and options.search == "grid",
            f"trials = {trials}: a grid has as many trials as points; leave one of them out",
        ),
        (
            options.search == "optuna" and options.scheduler == "pbt",
            "search = 'optuna': pbt changes settings itself; search at random or on a grid",
        ),
        (
            options.grace and options.scheduler == "none",
            f"grace = {options.grace}: scheduler = 'none' has none; choose asha or pbt",
        ),
    ):
        if refused:
            raise ConfigError(why)


def check_space(space: Space, command: Command) -> None:
    """Check all that needs no cluster: every end of every axis must make a run.

    Raises:
        ConfigError: the space is empty or contradicts itself, a run or a flag, or a package is missing.
    """
    check_metric(space.metric, space.mode)
    alternatives = read_axes(space)
    for name in space.fields:
        for field, why in NOT_SWEPT.items():
            if name == field or (field.endswith(".") and name.startswith(field)):
                raise ConfigError(f"space: {name} can't be swept: {why}")
        if name in command.given:
            raise ConfigError(
                f"space: {name} is swept by {command.options.space!r} and also fixed by {flag_of(name)}: "
                "leave one of them out"
            )
    for axes in alternatives:
        for run in end_runs(axes, command):
            check_method(run.method)
    search_name(command.options, space)


def end_runs(axes: Axes, command: Command) -> list[RunConfig]:
    """Runs that between them take every end of every axis."""
    return [override(command.run, values) for values in ends(axes)]


def search_name(options: SweepOptions, space: Space) -> Literal["random", "grid", "optuna"]:
    """How trials are chosen; a number of trials turns a space's own grid into draws from it.

    Raises:
        ConfigError: it needs a package that is not installed.
    """
    drawn = space.search == "grid" and options.trials is not None
    name = options.search or ("random" if drawn else space.search)
    if name == "optuna" and importlib.util.find_spec("optuna") is None:
        raise ConfigError("search = 'optuna': Optuna is not installed: pip install 'optuna>=4'")
    return name

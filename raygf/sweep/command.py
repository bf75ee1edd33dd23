"""The command line of a sweep: its own settings and those of the runs in it, in one list of flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import tyro

from raygf.cli import describe_recipes, parse_flags, split_recipe
from raygf.config.fields import flatten, to_dict
from raygf.config.recipes import get_recipe
from raygf.config.run import RunConfig
from raygf.errors import ConfigError
from raygf.sweep.plan import Plan, SweepOptions, flag_of
from raygf.sweep.space import describe_spaces

RECIPE = "digits"
"""The recipe if nobody names one."""
FREE_ON_RESUME = (
    *("storage.path", "storage.name", "tracking.", "resources.address", "resources.wait_for_resources_s"),
    *("resources.exit_timeout_s", "resources.max_failures", "resources.max_driver_restarts"),
)
"""Fields of the runs that may differ when a sweep is resumed."""


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


def parse_sweep(description: str, argv: Sequence[str]) -> Command:
    """What ``argv`` asks for.

    Raises:
        ConfigError: the recipe or a flag is unknown, a value is not allowed, or two flags contradict.
        SystemExit: for ``--help``.
    """
    recipe, rest = split_recipe(RECIPE, argv)
    return _parse(description, recipe, rest, SweepFlags(SweepOptions(), get_recipe(recipe)))


def parse_resumed(description: str, argv: Sequence[str], stored: Plan) -> Command:
    """As ``parse_sweep``, but what has no flag is as in the ``stored`` sweep.

    Raises:
        ConfigError: see ``parse_sweep``; also if a flag says something else than the stored sweep.
    """
    recipe, rest = split_recipe(stored.recipe, argv)
    command = _parse(description, recipe, rest, SweepFlags(stored.options, stored.run))
    was, now = (_binding(*each) for each in ((stored.recipe, stored), (recipe, command)))
    odd = [name for name in was if was[name] != now[name]]
    if odd:
        shown = "; ".join(f"{name} was {was[name]!r}, is now {now[name]!r}" for name in odd[:3])
        raise ConfigError(f"can't resume another sweep: {shown}")
    return command


def _parse(description: str, recipe: str, rest: Sequence[str], default: SweepFlags) -> Command:
    text = (
        f"{description} Spaces (--space NAME):\n\n{describe_spaces()}\n\n{describe_recipes(RECIPE, recipe)}"
    )
    words = _with_values(rest)
    flags = parse_flags(SweepFlags, text, words, default, " [--recipe NAME]")
    given = frozenset(word[2:].split("=")[0].replace("-", "_") for word in words if word.startswith("--"))
    return Command(recipe, flags.options, _with_short_forms(flags, given), given)


def _with_values(words: Sequence[str]) -> list[str]:
    """``--resume`` may stand alone; other flags have a value each."""
    full: list[str] = []
    for word, after in zip(words, [*words, ""][1:], strict=True):
        full.append(word)
        if word == "--resume" and after not in ("True", "False"):
            full.append("True")
    return full


def _with_short_forms(flags: SweepFlags, given: frozenset[str]) -> RunConfig:
    """The run with ``--cpus-per-exit`` and ``--gpus-per-exit`` where they belong."""
    options, resources = flags.options, flags.run.resources
    for name, short, long in (
        ("cpus_per_exit", options.cpus_per_exit, resources.cpus_per_exit),
        ("gpus_per_exit", options.gpus_per_exit, resources.gpus_per_exit),
    ):
        if f"resources.{name}" in given and short not in (None, long):
            raise ConfigError(f"{flag_of(name)} and {flag_of(f'resources.{name}')} contradict each other")
    cpus = resources.cpus_per_exit if options.cpus_per_exit is None else float(options.cpus_per_exit)
    gpus = resources.gpus_per_exit if options.gpus_per_exit is None else float(options.gpus_per_exit)
    return replace(flags.run, resources=replace(resources, cpus_per_exit=cpus, gpus_per_exit=gpus))


def _binding(recipe: str, flags: Plan | Command) -> dict[str, object]:
    """What must be as it was, by dotted name."""
    options, run = to_dict(replace(flags.options, resume=False)), flatten(to_dict(flags.run))
    kept = {name: value for name, value in run.items() if not name.startswith(FREE_ON_RESUME)}
    return {"recipe": recipe, **options, **kept}

"""The command line of a job: a recipe chosen by name, its fields overridden by typed flags."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import tyro

from raygf.config import RunConfig
from raygf.errors import RaygfError
from raygf.launch import Result
from raygf.recipes import RECIPES, get_recipe


def parse(description: str, default_recipe: str, argv: Sequence[str]) -> tuple[str, RunConfig]:
    """The recipe's name and the run that ``argv`` describes.

    Raises:
        ConfigError: the recipe is unknown or a value is not allowed.
        SystemExit: for ``--help`` (0) and unknown flags (2).
    """
    name, rest = _split_recipe(default_recipe, argv)
    listing = "\n".join(f"  {key}: {_first_line(function)}" for key, function in RECIPES.items())
    text = (
        f"{description}\n\nFlags override the recipe --recipe NAME (default: {default_recipe}), "
        f"here {name}. Recipes:\n\n{listing}"
    )
    config = tyro.cli(
        RunConfig,
        default=get_recipe(name),
        args=rest,
        description=text,
        prog=f"{Path(sys.argv[0]).name} [--recipe NAME]",
        config=(tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands),
    )
    return name, config


def main(job: Callable[[Sequence[str]], Result], argv: Sequence[str] | None = None) -> int:
    """Run ``job``; its result is the last line on standard output, errors are one line on standard error.

    Returns:
        The exit code: 0, 1 for a run that failed, 2 for something asked for that can't be done, 130 for an
        interrupted run.
    """
    sys.path.insert(0, str(Path.cwd()))  # networks of the user's own are imported by name
    try:
        result = job(sys.argv[1:] if argv is None else argv)
    except RaygfError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; go on with --storage.resume True", file=sys.stderr, flush=True)
        return 130
    print(json.dumps(result.json()), flush=True)
    return 0


def _split_recipe(default: str, argv: Sequence[str]) -> tuple[str, list[str]]:
    """``--recipe NAME`` or ``--recipe=NAME`` taken out of ``argv``."""
    name, rest, words = default, [], iter(argv)
    for word in words:
        if word == "--recipe":
            name = next(words, "")
        elif word.startswith("--recipe="):
            name = word.removeprefix("--recipe=")
        else:
            rest.append(word)
    return name, rest


def _first_line(function: Callable[..., object]) -> str:
    return (function.__doc__ or "").strip().split("\n")[0]

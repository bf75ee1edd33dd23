"""The command ``raygf``: the programs in ``jobs/`` by their names, and what needs no cluster.

Its own help and refusals load nothing else of raygf.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from raygf import __version__, cli
from raygf.config.fields import did_you_mean
from raygf.config.recipes import RECIPES
from raygf.errors import ConfigError, loading

Job = Callable[[Sequence[str]], Mapping[str, Any] | None]


@dataclass(frozen=True)
class RecipesConfig:
    """Which recipes."""

    word: str = ""
    """Part of their names, such as cifar10-msdnet."""


COMMANDS = {
    "train": ("raygf.launch:train_job", ("--recipe",)),
    "sweep": ("raygf.sweeps.run:run_sweep", ("--space", "--recipe")),
    "evaluate": ("raygf.api:evaluate_job", ("--checkpoint",)),
    "predict": ("raygf.api:predict_job", ("--pictures",)),
    "export": ("raygf.api:export_job", ("--run", "--folder")),
    "prepare": ("raygf.data.prepare:prepare_job", ("--path", "--out")),
    "recipes": ("raygf.__main__:recipes_job", ("--word",)),
}
"""Where the job of each command is, and the flags of its first words."""

HELP = """\
usage: raygf COMMAND ...

  train [RECIPE] [flags]          train a network with several exits
  sweep [SPACE [RECIPE]] [flags]  train many side by side, and find the best settings
  evaluate RUN... [--out FOLDER]  tables and figures of past runs
  predict [RUN] PICTURE...        class, probability, exit and operations of pictures
  export RUN FOLDER [--segments]  a run's network in a folder, to load or serve anywhere
  prepare SET FOLDER [flags]      large images as Parquet shards, scaled down if asked to
  recipes [WORD]                  the recipes: data, network, method, rounds

raygf COMMAND --help lists the flags. RUN is the folder of a run, such as runs/digits-20260102-030405."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code, see ``raygf.cli.main``."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help", "--version"):
        print(__version__ if name == "--version" else HELP)
        return 0
    sys.argv = [f"raygf {name}", *rest]  # what a command's own help calls it
    return cli.main(lambda words: _find(name)(words), rest)


def _find(name: str) -> Job:
    """The command ``name``; leading words without a flag stand for its first flags."""
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS)
        raise ConfigError(f"raygf {name}: no such command{hint}; raygf --help lists them")
    place, flags = COMMANDS[name]
    module, _, function = place.partition(":")
    with loading():
        job: Job = getattr(import_module(module), function)
    return lambda words: job(as_flags(words, *flags))


def as_flags(words: Sequence[str], *flags: str) -> list[str]:
    """``words`` with flags before the first ones, which have none; the last flag gets all that are left."""
    free = next((place for place, word in enumerate(words) if word.startswith("-")), len(words))
    named = [part for flag, word in zip(flags, words[:free], strict=False) for part in (flag, word)]
    return [*named, *words[min(free, len(flags)) :]]


def recipes_job(words: Sequence[str]) -> None:
    """A line for every recipe whose name has the word in it."""
    config = cli.parse_flags(RecipesConfig, "List recipes: complete runs by name.", words)
    rows = [("RECIPE", "DATA", "NETWORK", "METHOD", "ROUNDS")]
    for name, recipe in RECIPES.items():
        run = recipe.run
        if config.word in name:
            method = run.method + " with distillation" * run.loss.distill
            rows.append((name, run.data.source, run.model.name, method, str(run.rounds)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    sys.exit(main())

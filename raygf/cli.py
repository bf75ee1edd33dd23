"""The command line of a job: a recipe chosen by name, its fields overridden by typed flags."""

import argparse
import io
import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import tyro

from raygf.config.fields import flatten, override
from raygf.config.recipes import RECIPES, get_recipe
from raygf.config.run import RunConfig
from raygf.errors import ConfigError, RaygfError, one_line, without_password

T = TypeVar("T")


def parse(
    description: str, default_recipe: str, argv: Sequence[str], run: RunConfig | None = None
) -> tuple[str, RunConfig]:
    """The recipe's name and the run that ``argv`` describes.

    Args:
        run: what the flags override; by default the recipe.

    Raises:
        ConfigError: the recipe or a flag is unknown, or a value is not allowed.
        SystemExit: for ``--help``.
    """
    name, run, rest = split_recipe(default_recipe, argv, run)
    more = "--print-config prints the whole run. --resume NAME resumes a run, with its own settings; "
    more += "--resume alone the one that was started last."
    text = f"{description} {more}\n\n{describe_recipes(default_recipe, name)}"
    usage = " [--recipe NAME] [--config FILE] [--print-config] [--resume [NAME]]"
    return name, parse_flags(RunConfig, text, rest, run, usage)


def parse_flags(
    cls: type[T], description: str, argv: Sequence[str], default: T | None = None, usage: str = ""
) -> T:
    """The dataclass ``cls`` from the flags ``argv``; the texts under its fields are what ``--help`` shows.

    Args:
        default: what the flags override; by default the fields' own defaults.
        usage: what may follow the program's name beside the flags.

    Raises:
        ConfigError: a flag is unknown or missing, or a value is not allowed.
        SystemExit: for ``--help``.
    """
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            return tyro.cli(
                cls,
                args=list(argv),
                description=description,
                prog=Path(sys.argv[0]).name + usage,
                config=(tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands),
                default=tyro.MISSING_NONPROP if default is None else default,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError(_unboxed(complaint.getvalue())) from None


def take(argv: Sequence[str], **flags: Any) -> tuple[argparse.Namespace, list[str]]:
    """``flags``, by name with argparse's settings, taken out of ``argv``: their values, and what is left."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name, settings in flags.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **settings)
    return parser.parse_known_args(argv)


def split_recipe(
    default: str, argv: Sequence[str], run: RunConfig | None = None
) -> tuple[str, RunConfig, list[str]]:
    """``--recipe NAME`` and ``--config FILE`` taken out of ``argv``: the name, the run, the other flags.

    The file has a run as YAML, or parts of one, which override the recipe; ``recipe: NAME`` in it names that.

    Args:
        run: in place of the recipe's.

    Raises ConfigError: there is no such recipe or file, or it has fields or values that are not allowed.
    """
    known, rest = take(argv, recipe={"nargs": "?", "const": ""}, config={"nargs": "?", "const": ""})
    values = {} if known.config is None else _read_config(known.config)
    in_file = values.pop("recipe", default)
    name = str(in_file) if known.recipe is None else known.recipe
    try:
        return name, override(run or get_recipe(name), flatten(values)), rest
    except ConfigError as error:
        if known.config is None or known.recipe is not None:
            raise
        raise ConfigError(f"{known.config}: {error}") from None


def _read_config(path: str) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"config = {path!r}: can't be read: {one_line(error, kind=False)}") from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ConfigError(f"config = {path!r}: must have fields of a run, as --print-config shows them")
    return values


def describe_recipes(default: str, chosen: str) -> str:
    """The part of ``--help`` on recipes: how to choose one, the one chosen, a line for each of its data."""
    source = get_recipe(chosen).data.source
    fit = {key: recipe for key, recipe in RECIPES.items() if recipe.run.data.source == source}
    listing = "\n".join(f"  {key}: {recipe.description}" for key, recipe in fit.items())
    return (
        f"Flags override the recipe --recipe NAME (default: {default}), here {chosen}, and what --config "
        f"FILE has: a run, or parts of one, in YAML. Recipes for {source} (raygf recipes lists all):\n\n"
        f"{listing}"
    )


def main(job: Callable[[Sequence[str]], Mapping[str, Any] | None], argv: Sequence[str] | None = None) -> int:
    """Run ``job``; what it returns, unless None, is the last line on standard output, as JSON.

    Errors that raygf raises on purpose become one line on standard error. A KeyboardInterrupt may carry the
    command to resume with.

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
    except KeyboardInterrupt as stop:
        print(_interrupted("interrupted", str(stop)), file=sys.stderr, flush=True)
        return 130
    except BrokenPipeError:  # the reader of a long --help has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if result is not None:
        print(json.dumps(result), flush=True)
    return 0


def command_with(flags: Mapping[str, str]) -> str:
    """The command that started this process, with ``flags`` in place of its own of these names.

    Passwords are masked.
    """
    _, others = take(sys.orig_argv, **{flag.removeprefix("--"): {"nargs": "?"} for flag in flags})
    return without_password(shlex.join([*others, *chain.from_iterable(flags.items())]))


def _interrupted(what: str, command: str) -> str:
    return f"{what}; resume with {command}" if command else what


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interruptible(command: str = "") -> Iterator[Callable[[], None]]:
    """Inside, the first Ctrl-C or SIGTERM raises KeyboardInterrupt, whatever comes then exits with 130.

    Only in the main thread; elsewhere nothing is changed. The second signal cleans nothing up: actors and
    nodes that this process has started end with it.

    Args:
        command: resumes what was interrupted; a process that exits names it.

    Yields:
        A call that puts the handlers in place again, for after Ray's start, which puts its own there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def first(number: int, frame: FrameType | None) -> NoReturn:
        _handle(dict.fromkeys(_SIGNALS, second))
        raise KeyboardInterrupt

    def second(number: int, frame: FrameType | None) -> NoReturn:
        text = f"\n{_interrupted('interrupted again: stopped at once', command)}\n"
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, text.encode())
        os._exit(130)

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    _handle(dict.fromkeys(_SIGNALS, first))
    try:
        yield lambda: _handle(dict.fromkeys(_SIGNALS, first))
    finally:
        _handle(before)


def _handle(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _unboxed(text: str) -> str:
    """The parser's boxed complaint in one line, without the box's title; ASCII terminals get no frame."""
    sections: list[list[str]] = [[]]
    for line in text.splitlines():
        words = line.strip(" ╭╮╰╯│").split()
        if "".join(words).strip("─-") and "─" not in words[0]:
            sections[-1] += words
        elif sections[-1]:
            sections.append([])
    title = 0 if text.startswith("╭") else 1
    texts = [" ".join(words).rstrip(".") for words in sections[title:] if words]
    return "; ".join([*texts[:1], *(text[0].lower() + text[1:] for text in texts[1:])])

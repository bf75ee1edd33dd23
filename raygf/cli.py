"""The command line of a job: a recipe chosen by name, its fields overridden by typed flags."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import tyro

from raygf.config.recipes import RECIPES, get_recipe
from raygf.config.run import RunConfig
from raygf.errors import ConfigError, RaygfError

T = TypeVar("T")


def parse(description: str, default_recipe: str, argv: Sequence[str]) -> tuple[str, RunConfig]:
    """The recipe's name and the run that ``argv`` describes.

    Raises:
        ConfigError: the recipe or a flag is unknown, or a value is not allowed.
        SystemExit: for ``--help``.
    """
    name, rest = split_recipe(default_recipe, argv)
    text = f"{description}\n\n{describe_recipes(default_recipe, name)}"
    return name, parse_flags(RunConfig, text, rest, get_recipe(name), " [--recipe NAME]")


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
    with _one_line_errors():
        return tyro.cli(
            cls,
            args=list(argv),
            description=description,
            prog=Path(sys.argv[0]).name + usage,
            config=(tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands),
            default=tyro.MISSING_NONPROP if default is None else default,
        )


def describe_recipes(default: str, chosen: str) -> str:
    """What ``--help`` says of recipes: how one is chosen, which one is, and a line for each."""
    listing = "\n".join(f"  {key}: {_first_line(function)}" for key, function in RECIPES.items())
    return (
        f"Flags override the recipe --recipe NAME (default: {default}), here {chosen}. Recipes:\n\n{listing}"
    )


def main(job: Callable[[Sequence[str]], Mapping[str, Any]], argv: Sequence[str] | None = None) -> int:
    """Run ``job``; what it returns is the last line on standard output, as JSON.

    Errors that raygf raises on purpose become one line on standard error. A KeyboardInterrupt may carry the
    flags to go on with.

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
        how = str(stop) or "--storage.resume True"
        print(f"interrupted; go on with {how}", file=sys.stderr, flush=True)
        return 130
    except BrokenPipeError:  # the reader of a long --help has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    print(json.dumps(result), flush=True)
    return 0


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """The parser's boxed complaint about flags as one ConfigError."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            yield
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError(_unboxed(said.getvalue())) from None


def _unboxed(text: str) -> str:
    """The sections of a box in one line, without its title; terminals that know ASCII alone get no frame."""
    sections: list[list[str]] = [[]]
    for line in text.splitlines():
        words = line.strip(" ╭╮╰╯│").split()
        if "".join(words).strip("─-") and "─" not in words[0]:
            sections[-1] += words
        elif sections[-1]:
            sections.append([])
    title = 0 if text.startswith("╭") else 1
    said = [" ".join(words).rstrip(".") for words in sections[title:] if words]
    return "; ".join([*said[:1], *(part[0].lower() + part[1:] for part in said[1:])])


def split_recipe(default: str, argv: Sequence[str]) -> tuple[str, list[str]]:
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


_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SHOW_CURSOR = "\x1b[?25h"

Handler = Callable[[int, FrameType | None], NoReturn]


@contextmanager
def interruptible(go_on: str = "--storage.resume True") -> Iterator[Callable[[], None]]:
    """Inside, the first Ctrl-C or SIGTERM raises KeyboardInterrupt, whatever comes then exits with 130.

    Only in the main thread; elsewhere nothing is changed.

    Args:
        go_on: the flags that go on with what was interrupted; a process that exits names them.

    Yields:
        A call that puts the handlers in place again, for after Ray's start, which puts its own there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in _SIGNALS}
    first = _first(_second(go_on))
    _install(first)
    try:
        yield lambda: _install(first)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _install(handler: Handler) -> None:
    for number in _SIGNALS:
        signal.signal(number, handler)


def _first(second: Handler) -> Handler:
    def handler(number: int, frame: FrameType | None) -> NoReturn:
        _install(second)
        raise KeyboardInterrupt

    return handler


def _second(go_on: str) -> Handler:
    """No cleaning up: actors and nodes that this process has started end with it."""
    cursor = _SHOW_CURSOR if os.isatty(2) else ""
    text = f"{cursor}\ninterrupted again: stopped at once; go on with {go_on}\n"

    def handler(number: int, frame: FrameType | None) -> NoReturn:
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, text.encode())
        os._exit(130)

    return handler

"""Search spaces by name: files in ``tune_spaces``, a file anywhere, or a function in a module."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable
from pathlib import Path

import raygf
from raygf.config import RunConfig
from raygf.errors import ConfigError
from raygf.sweep.space import Space
from raygf.user_code import import_function, user_error

FOLDER = "tune_spaces"

MakeSpace = Callable[[RunConfig], Space]
"""From the run as recipe and flags have it to the space around it."""


def known_spaces() -> dict[str, Path]:
    """Name and file of every space in ``tune_spaces``, here or where raygf is; the one here counts first."""
    folders = (Path(raygf.__file__).parents[1] / FOLDER, Path.cwd() / FOLDER)
    files = [file for folder in folders for file in sorted(folder.glob("*.py")) if file.stem != "__init__"]
    return {file.stem: file for file in files}


def describe_spaces() -> str:
    """One line for each known space: its name and the first line of its file's text."""
    names = known_spaces()
    width = max(map(len, names), default=0)
    return "\n".join(f"  {name:<{width}}  {_first_line(file)}" for name, file in names.items())


def load_space(name: str, run: RunConfig) -> Space:
    """The space ``name`` around ``run``.

    ``name`` is that of a file in ``tune_spaces``, the path of a Python file whose function is called as the
    file is, or "package.module:function".

    Raises:
        ConfigError: there is none of this name, its code fails, or it does not return a space.
    """
    try:
        space = _function(name)(run)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # a user's function may raise anything
        raise user_error("space", name, "its function failed", error) from error
    if not isinstance(space, Space):
        raise ConfigError(f"space = {name!r}: its function returned {type(space).__name__}, not a Space")
    return space


def _function(name: str) -> MakeSpace:
    if ":" in name:
        return import_function("space", name)
    file = Path(name).expanduser() if name.endswith(".py") else known_spaces().get(name)
    if file is None or not file.is_file():
        known = ", ".join(known_spaces())
        raise ConfigError(
            f"space = {name!r}: there is none; choose from {known}, or name a file (.py) or "
            '"package.module:function" of your own'
        )
    return _function_in(file, name)


def _function_in(file: Path, name: str) -> MakeSpace:
    spec = importlib.util.spec_from_file_location(f"{FOLDER}.{file.stem}", file.absolute())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a module may raise anything while it is imported
        raise user_error("space", name, "can't be imported", error) from error
    function = getattr(module, file.stem, None)
    if not callable(function):
        raise ConfigError(f"space = {name!r}: {file.name} must have a function {file.stem}(run)")
    return function  # type: ignore[no-any-return]


def _first_line(file: Path) -> str:
    """The file's description, read without running it."""
    try:
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    except (OSError, SyntaxError, ValueError) as error:
        return f"(can't be read: {type(error).__name__})"
    return (text or "(has no description)").splitlines()[0]

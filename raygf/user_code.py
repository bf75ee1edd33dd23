"""Functions of the user's own, named in the configuration as "package.module:function"."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from raygf.errors import ConfigError


def import_function(field: str, name: str) -> Callable[..., Any]:
    """The function that ``name`` ("package.module:function") in the configuration's ``field`` stands for.

    Raises:
        ConfigError: it can't be imported, or is not a function.
    """
    module_name, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except (Exception, SystemExit) as error:  # a module may raise anything while it is imported
        raise user_error(field, name, "can't be imported", error) from error
    if not callable(function):
        raise ConfigError(f"{field} = {name!r}: {attribute} is not a function")
    return function  # type: ignore[no-any-return]


def user_error(field: str, name: str, what: str, error: BaseException) -> ConfigError:
    """One line for an error from code that is not raygf's."""
    cause = (str(error).splitlines() or [""])[0]
    return ConfigError(f"{field} = {name!r}: {what}: {type(error).__name__}: {cause}")

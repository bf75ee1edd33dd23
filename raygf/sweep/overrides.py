"""Setting single fields of a run by their dotted names."""

from __future__ import annotations

import shlex
from typing import Any

from raygf.config import RunConfig
from raygf.config_dict import flatten, from_dict, to_dict
from raygf.errors import ConfigError
from raygf.sweep.space import Values


def override(run: RunConfig, values: Values) -> RunConfig:
    """``run`` with the fields in ``values`` set, checked like any other run.

    Raises:
        ConfigError: there is no such field, or its value is not allowed.
    """
    nested = to_dict(run)
    known = flatten(nested)
    for name, value in values.items():
        if name not in known:
            raise ConfigError(f"space: {name}: a run has no such field{_hint(name, known)}")
        _set(nested, name.split("."), value)
    return from_dict(RunConfig, nested)


def flag_of(name: str) -> str:
    """The flag that sets the field ``name``: ``fusion.lr`` → ``--fusion.lr``."""
    return "--" + name.replace("_", "-")


def flags_for(values: Values) -> str:
    """The flags that set ``values``, as typed in a shell."""
    return " ".join(f"{flag_of(name)} {_word(value)}" for name, value in values.items())


def _word(value: Any) -> str:
    several = value if isinstance(value, list | tuple) else [value]
    return " ".join(shlex.quote(f"{item}") for item in several)


def _set(nested: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        nested = nested[part]
    nested[path[-1]] = list(value) if isinstance(value, tuple) else value


def _hint(name: str, known: dict[str, Any]) -> str:
    """Fields that end alike, for whoever left out the section or misspelt it."""
    last = name.rsplit(".", 1)[-1]
    alike = [field for field in known if field.rsplit(".", 1)[-1] == last]
    return f"; there is {' and '.join(alike)}" if alike else ""

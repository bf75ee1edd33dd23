"""Checks for configuration values: each raises one line naming the field, the value and what is allowed."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from raygf.errors import ConfigError

_LEAST = 1e-4
"""The smallest share of a CPU or GPU that Ray counts."""


def refuse(field: str, value: Any, allowed: str) -> ConfigError:
    """The error for ``field`` having ``value``; ``allowed`` ends the sentence "must be …"."""
    return ConfigError(f"{field} = {value!r}: must be {allowed}")


def whole(field: str, value: Any, low: int = 0, high: int | None = None) -> None:
    """``value`` must be an int of at least ``low`` (and at most ``high``)."""
    span = f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise refuse(field, value, span)
    if high is not None and value > high:
        raise refuse(field, value, span)


def at_most(field: str, value: int, high: int) -> None:
    """``value`` must not be above ``high``."""
    if value > high:
        raise refuse(field, value, f"at most {high}")


def whole_or_none(field: str, value: Any, low: int = 1) -> None:
    """``value`` must be None or an int of at least ``low``."""
    if value is not None:
        whole(field, value, low)


def number(
    field: str, value: Any, low: float = -math.inf, high: float = math.inf, *, open_low: bool = False
) -> None:
    """``value`` must be a finite number in [low, high], or (low, high] with ``open_low``."""
    bounds = [f"{'above' if open_low else 'at least'} {low:g}"] if low > -math.inf else []
    bounds += [f"at most {high:g}"] if high < math.inf else []
    allowed = " ".join(["a finite number", " and ".join(bounds)]).strip()
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or value < low or value > high or (open_low and value == low):
        raise refuse(field, value, allowed)


def amount(field: str, value: Any, *, whole_above_one: bool = False) -> None:
    """``value`` must be a number of CPUs or GPUs as Ray takes it; of GPUs it takes no one and a half."""
    number(field, value, 0)
    if 0 < value < _LEAST:
        raise refuse(field, value, f"0, or at least {_LEAST:g}")
    if whole_above_one and value > 1 and value != int(value):
        raise refuse(field, value, "at most 1, or a whole number")


def several(field: str, value: Any) -> None:
    """``value`` must be a tuple."""
    if not isinstance(value, tuple):
        raise refuse(field, value, "a list of numbers")


def one_of(field: str, value: Any, allowed: Sequence[str]) -> None:
    """``value`` must be one of the names ``allowed``."""
    if value not in allowed:
        raise refuse(field, value, "one of " + ", ".join(allowed))


def flag(field: str, value: Any) -> None:
    """``value`` must be a bool."""
    if not isinstance(value, bool):
        raise refuse(field, value, "True or False")


def text(field: str, value: Any, *, empty: bool = True) -> None:
    """``value`` must be a string, and not an empty one unless ``empty``."""
    if not isinstance(value, str) or not (empty or value.strip()):
        raise refuse(field, value, "a text" if empty else "a text that is not empty")


T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """``config`` (a dataclass) as nested dicts of JSON values; tuples become lists."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """The dataclass ``cls`` from what ``to_dict`` gave; fields left out take their defaults.

    Raises:
        ConfigError: a field is unknown, or a value is not allowed.
    """
    fields = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            raise ConfigError(f"{where}{name}: no such field; known are {', '.join(sorted(fields))}")
    hints = typing.get_type_hints(cls)
    return cls(**{name: _typed(hints[name], value, f"{where}{name}.") for name, value in values.items()})


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one level with dotted names: ``{"optim": {"lr": 0.1}}`` → ``{"optim.lr": 0.1}``."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _typed(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where[:-1]} = {value!r}: must be a section of fields")
        return from_dict(hint, value, where)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next((arg for arg in typing.get_args(hint) if arg is not type(None)), hint)
    if typing.get_origin(hint) is tuple and isinstance(value, list):
        return tuple(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


_KINDS = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs", "file")
"""What URIs that pyarrow.fs understands begin with."""


def local_path(field: str, text: str) -> Path:
    """The absolute path that ``text``, the value of ``field``, means on this machine; ~ is a home folder.

    Raises:
        ConfigError: it is a URI, or starts with ~ and the name of a user who is not known here.
    """
    kind, _, rest = text.partition(":")
    if rest.startswith("//"):
        raise ConfigError(f"{field} = {text!r}: must be a path on this machine, not a URI")
    if rest and kind in _KINDS:
        raise ConfigError(f"{field} = {text!r}: a URI begins with {kind}://")
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        user = text.split("/")[0]
        raise ConfigError(f"{field} = {text!r}: there is no such user here as {user}") from None


def storage_path(field: str, text: str) -> str:
    """``text`` if it is a URI, else as an absolute path: workers have working directories of their own.

    Raises:
        ConfigError: see ``local_path``.
    """
    return text if "://" in text else str(local_path(field, text))

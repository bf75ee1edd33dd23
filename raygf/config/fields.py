"""What configurations are made of: sections that check themselves, plain dicts of them, and paths."""

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from raygf.errors import ConfigError

T = TypeVar("T")


class Section:
    """Base of the configuration's dataclasses: each checks its fields against their annotations when built.

    With ``class OptimConfig(Section, name="optim")`` errors name the fields ``optim.lr`` and so on.
    """

    _prefix = ""

    def __init_subclass__(cls, name: str = "") -> None:
        cls._prefix = f"{name}." if name else ""

    def __post_init__(self) -> None:
        for name, hint in _hints(type(self)).items():  # type: ignore[arg-type]
            check(f"{self._prefix}{name}", getattr(self, name), hint)


@dataclasses.dataclass(frozen=True)
class Limits:
    """Numbers from ``low`` to ``high``; with ``above``, ``low`` itself is not one of them."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high and not (self.above and value == self.low)

    def __str__(self) -> str:
        least = f"{'above' if self.above else 'at least'} {self.low:g}" if self.low > -math.inf else ""
        high = str(self.high) if isinstance(self.high, int) else f"{self.high:g}"
        most = f"at most {high}" if self.high < math.inf else ""
        return " and ".join(filter(None, (least, most)))


def check(field: str, value: Any, hint: Any) -> None:
    """Raise ConfigError unless the annotation ``hint`` allows ``value`` for ``field``.

    It may be bool, int, float (finite), str, a dataclass (which checks itself), Literal, ``tuple[X, ...]``,
    ``X | None``, or ``Annotated[X, ...]`` with ``Limits`` of a number and functions of field and value, which
    raise for what they do not allow.
    """
    if value is None and type(None) in typing.get_args(hint):
        return
    kind, notes = _unwrapped(hint)
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value not in options:
            raise refuse(field, value, "one of " + ", ".join(options), options)
    elif origin is tuple:
        if not isinstance(value, tuple):
            raise refuse(field, value, "a list of numbers")
        for item in value:
            check(field, item, options[0])
    elif kind is int or kind is float:
        limits = next((note for note in notes if isinstance(note, Limits)), None)
        number = isinstance(value, kind | int) and not isinstance(value, bool) and abs(value) < math.inf
        if not number or (limits is not None and value not in limits):
            name = "a finite number" if kind is float else "a whole number of" if limits else "a whole number"
            raise refuse(field, value, f"{name} {limits or ''}".strip())
    elif kind in (bool, str) and not isinstance(value, kind):
        raise refuse(field, value, "a text" if kind is str else "True or False")
    for further in filter(callable, notes):
        further(field, value)


def _unwrapped(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """An annotation's type without None, and what is noted beside it."""
    notes: tuple[Any, ...] = ()
    while typing.get_origin(hint) in (Annotated, typing.Union, types.UnionType):
        arguments = typing.get_args(hint)
        notes += getattr(hint, "__metadata__", ())
        hint = next(kind for kind in arguments if kind is not type(None))
    return hint, notes


def refuse(field: str, value: Any, allowed: str, names: Collection[str] = ()) -> ConfigError:
    """The error for ``field`` having ``value``; ``allowed`` ends the sentence "must be …".

    ``names``: those that may have been meant.
    """
    text = repr(value)
    shown = text if len(text) <= 150 else f"{text[:60]}… ({len(text)} characters)"
    return ConfigError(f"{field} = {shown}: must be {allowed}{did_you_mean(str(value), names)}")


def did_you_mean(name: str, names: Collection[str]) -> str:
    """``; did you mean 'metagf'?`` for the one of ``names`` that is most like ``name``; "" if none is."""
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def not_empty(field: str, value: str | tuple[Any, ...]) -> None:
    """Annotation of texts and lists that must not be empty; blanks alone are as good as nothing."""
    if not (value.strip() if isinstance(value, str) else value):
        raise refuse(field, value, f"a {'list' if value == () else 'text'} that is not empty")


def to_dict(config: Any) -> dict[str, Any]:
    """``config`` (a dataclass) as nested dicts of JSON values; tuples become lists."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """The dataclass ``cls`` from what ``to_dict`` gave; fields left out take their defaults.

    Raises ConfigError: a field is unknown, or a value is not allowed.
    """
    hints = _hints(cls)  # type: ignore[arg-type]
    for name in values:
        if name not in hints:
            known = f"known are {', '.join(sorted(hints))}{did_you_mean(name, hints)}"
            raise ConfigError(f"{where}{name}: no such field; {known}")
    return cls(**{name: _typed(hints[name], value, f"{where}{name}") for name, value in values.items()})


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one level with dotted names: ``{"optim": {"lr": 0.1}}`` → ``{"optim.lr": 0.1}``."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def override(config: T, values: Mapping[str, Any]) -> T:
    """The run ``config`` with the fields of the dotted names ``values`` set, checked like any other.

    Raises ConfigError: there is no such field, or its value is not allowed.
    """
    known = flatten(to_dict(config))
    for name in values:
        if name not in known:
            raise _no_field(name, known)
    return _override(config, values, "")


def _override(config: T, values: Mapping[str, Any], prefix: str) -> T:
    changes = {}
    for name, hint in _hints(type(config)).items():  # type: ignore[arg-type]
        full, value = prefix + name, getattr(config, name)
        if dataclasses.is_dataclass(value):
            changes[name] = _override(value, values, f"{full}.")
        elif full in values:
            changes[name] = _typed(hint, values[full], full)
    return dataclasses.replace(config, **changes) if changes else config  # type: ignore[type-var]


def full_name(name: str, config: Any) -> str:
    """The dotted name of the field of the run ``config`` that ``name`` is, or is the last part of.

    Raises ConfigError: there is no such field, or several have this last part.
    """
    known = flatten(to_dict(config))
    alike = [field for field in known if field.rpartition(".")[2] == name]
    if name not in known and len(alike) != 1:
        raise _no_field(name, known)
    return name if name in known else alike[0]


def _no_field(name: str, known: Collection[str]) -> ConfigError:
    last = name.rpartition(".")[2]
    alike = [field for field in known if field.rpartition(".")[2] == last]
    meant = {*known, *(field.rpartition(".")[2] for field in known if "." not in name)}
    hint = f"; there is {' and '.join(alike)}" if alike else did_you_mean(name, meant)
    return ConfigError(f"{name}: a run has no such field{hint}")


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """The annotations of a dataclass's fields; cached, for a sweep builds thousands of runs."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, str):
        return str(value)  # without what a Named carries
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _typed(hint: Any, value: Any, where: str) -> Any:
    """``value`` as the annotation has it where JSON knows no such type: sections, tuples, floats."""
    hint, _ = _unwrapped(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise refuse(where, value, "a section of fields")
        return from_dict(hint, value, f"{where}.")
    if typing.get_origin(hint) is tuple and isinstance(value, list):
        return tuple(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1e300:
        return float(value)
    return value


_KINDS = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs", "file")
"""What URIs that pyarrow.fs understands begin with."""


def local_path(field: str, text: str) -> Path:
    """The absolute path that ``text``, the value of ``field``, means on this machine; ~ is a home folder.

    Raises ConfigError: it is a URI, or starts with ~ and the name of a user who is not known here.
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

    Raises ConfigError: see ``local_path``.
    """
    return text if "://" in text else str(local_path(field, text))

"""Errors that a person reads: one line each, and the exit code that a job ends with."""

import importlib
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, TypeVar


class RaygfError(Exception):
    """Base of all errors that raygf raises on purpose; a job prints its text on one line."""

    exit_code = 1


class UserError(RaygfError):
    """Something asked for can't be done as asked: bad flags, data, paths or resources. Exit code 2."""

    exit_code = 2


class ConfigError(UserError):
    """A configuration value is not allowed."""


class DataError(UserError):
    """A data set is missing, damaged, or does not fit the configuration."""


class CheckpointError(UserError):
    """A checkpoint can't be read, is damaged, or belongs to another run."""


class StorageError(UserError):
    """A storage path can't be written or read."""


class StorageLost(StorageError):
    """The storage stopped working while the run went on; earlier checkpoints stand. Exit code 1."""

    exit_code = 1


class ResourceError(UserError):
    """The cluster can't give what the configuration asks for."""


class TrackingError(UserError):
    """The tracking server can't be reached when the run starts."""


class NonFiniteError(RaygfError):
    """A loss, gradient or weight became NaN or infinite; the last checkpoint stands."""


class RunFailed(RaygfError):
    """The run ended early for a reason outside this process: a lost driver, a wait that ran out."""


class DriverLost(RunFailed):
    """The driver did not come back. ``kind``, the name of a ``Failure``, tells whether to start it again."""

    def __init__(self, cause: str, kind: str = "LOST") -> None:
        super().__init__(cause, kind)
        self.cause, self.kind = cause, kind

    def __str__(self) -> str:
        return self.cause


class PeersLost(RaygfError):
    """Another of the actors that share a training does not answer: the training has to start anew."""


class MemoryExhausted(RaygfError):
    """A process ran out of memory, on the host or the GPU; the same work would end the same way."""


class ExitFailed(RaygfError):
    """The training of one exit could not be completed, after all retries.

    The arguments are kept as they are, so that the error survives pickling between processes.
    """

    def __init__(self, exit: int, round: int, node: str, cause: str, knob: str) -> None:
        super().__init__(exit, round, node, cause, knob)
        self.exit, self.round, self.node, self.cause, self.knob = exit, round, node, cause, knob

    def __str__(self) -> str:
        return (
            f"exit {self.exit + 1} could not be trained in round {self.round} on node {self.node}: "
            f"{self.cause}; {self.knob}"
        )


@contextmanager
def loading() -> Iterator[None]:
    """Around a job's imports, which take seconds: Ctrl-C ends the process at once, without a traceback."""
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_DFL) if in_main else None
    try:
        yield
    finally:
        if in_main:
            signal.signal(signal.SIGINT, before)


T = TypeVar("T")


class Worker(threading.Thread):
    """Makes calls one after the other.

    Unlike the threads of ``concurrent.futures`` it never keeps the program from ending.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self.start()

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Have ``call`` made after those before it."""
        future: Future[T] = Future()
        self._calls.put((future, call))
        return future

    def stop(self) -> None:
        """End the thread after the calls submitted so far."""
        self._calls.put(None)

    def run(self) -> None:
        """Make the calls; what one raises is in its future."""
        while (item := self._calls.get()) is not None:
            future, call = item
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)


def within(limit_s: float, call: Callable[[], T]) -> T:
    """What ``call`` returns or raises, made on a thread of its own and waited for ``limit_s`` at most.

    A call that takes longer is abandoned; it does not keep the program from ending.

    Raises TimeoutError: it takes longer.
    """
    worker = Worker("raygf-limited")
    outcome = worker.submit(call)
    worker.stop()
    try:
        return outcome.result(limit_s)
    except TimeoutError:
        if outcome.done():  # the call's own
            raise
        raise TimeoutError(f"no answer within {limit_s:g} s") from None


_USER = re.compile(r"(://[^:/@\s]*):\S*@")
"""Up to the last @: people write passwords that should have been encoded."""
_OPTION = re.compile(r"(?i)([?&](?:password|passwd|pwd|secret|token)[^=&\s]*=)[^&\s'\"]*")


def without_password(text: str) -> str:
    """``text`` with the passwords of the URIs in it masked."""
    return _OPTION.sub(r"\1***", _USER.sub(r"\1:***@", text))


def without_passwords(values: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration (as ``to_dict`` gives it), fit to be shown."""
    nested = {name: without_passwords(value) for name, value in values.items() if isinstance(value, Mapping)}
    texts = {name: without_password(value) for name, value in values.items() if isinstance(value, str)}
    return {**values, **nested, **texts}


def one_line(error: BaseException, *, kind: bool = True) -> str:
    """The first line of the error's text, after its ``kind`` (the class), with passwords masked.

    An error without a text gives its class alone.
    """
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    name, text = type(error).__name__, without_password(first)[:300]
    return ": ".join(part for part in (name if kind or not text else "", text) if part)


class Named(str):
    """The name of a function ``value`` that is given itself, and so need not be importable by the name."""

    value: Callable[..., Any]

    def __new__(cls, name: str, value: Callable[..., Any]) -> "Named":
        named = super().__new__(cls, name)
        named.value = value
        return named

    def __getnewargs__(self) -> tuple[str, Callable[..., Any]]:  # type: ignore[override]
        return str(self), self.value


def name_function(function: Callable[..., Any]) -> str:
    """``module:function`` for ``function``; one that can't be found by that name goes along with it."""
    kind = function if hasattr(function, "__qualname__") else type(function)
    name = f"{function.__module__}:{kind.__qualname__}{'' if kind is function else '()'}"
    module = sys.modules.get(function.__module__)
    importable = function.__module__ != "__main__" and getattr(module, kind.__qualname__, None) is function
    return name if importable else Named(name, function)


def import_function(field: str, name: str) -> Callable[..., Any]:
    """The function that ``name`` ("package.module:function") in the configuration's ``field`` stands for.

    Raises ConfigError: it can't be imported, or is not a function.
    """
    if isinstance(name, Named):
        return name.value
    if name.endswith("()"):
        raise ConfigError(
            f"{field} = {name!r} was an object in Python: load the run there, and give it again"
        )
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
    return ConfigError(f"{field} = {name!r}: {what}: {one_line(error)}")

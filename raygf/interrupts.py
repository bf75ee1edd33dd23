"""Ctrl-C and SIGTERM: the first ends the run cleanly, the second ends the process at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

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

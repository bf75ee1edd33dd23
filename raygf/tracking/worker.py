"""A background thread for calls that may take long."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue


class Worker(threading.Thread):
    """Makes calls one after the other.

    Unlike the threads of ``concurrent.futures`` it never keeps the program from ending.
    """

    def __init__(self) -> None:
        super().__init__(name="raygf-tracking", daemon=True)
        self._calls: SimpleQueue[tuple[Future[None], Callable[[], None]] | None] = SimpleQueue()

    def submit(self, call: Callable[[], None]) -> Future[None]:
        """Have ``call`` made after those before it."""
        future: Future[None] = Future()
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

"""Delivery in the background: in order, tried again, one note per cause, never waited for too long.

What a store did not take until the run's end is kept in a file, and sent first when the run is resumed.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from queue import SimpleQueue
from typing import Any

from raygf.config.run import StorageConfig
from raygf.errors import StorageError, TrackingError, without_password
from raygf.records import Notify
from raygf.storage.folder import RunFolder
from raygf.tracking.mlflow_run import MLflowRun
from raygf.tracking.store import answering, check_uri, reason


@dataclass(frozen=True, eq=False)
class Parcel:
    """Something to deliver. ``label``: what a person would call it; ``send``: delivers it, or raises.

    ``later``: how another process can send it, as a method of ``MLflowRun`` and its arguments as JSON values;
    None if that makes no sense or can't be written down.
    """

    label: str
    send: Callable[[], None]
    later: tuple[str, dict[str, Any]] | None = None

    @classmethod
    def call(cls, label: str, run: MLflowRun, method: str, arguments: dict[str, Any]) -> Parcel:
        """A call of ``method`` of ``run``, now or later."""
        return cls(label, lambda: getattr(run, method)(**arguments), (method, arguments))


class Delivery:
    """Sends parcels to the store at ``uri``. What is posted before ``open`` or after ``close`` is dropped.

    Args:
        notify: Called with one line when something could not be delivered; maybe from another thread.
        keep: Called at the end with what was not delivered; returns where it was kept, for people.
    """

    def __init__(
        self, uri: str, notify: Notify, keep: Callable[[Sequence[Parcel]], str] | None = None
    ) -> None:
        self._uri, self._store = uri, without_password(uri)
        self._notify, self._keep = notify, keep
        self._worker: Worker
        self._open = False
        # Two threads change this list, by single operations in place, which need no lock.
        self._waiting: list[Parcel] = []
        self._causes_told: set[str] = set()
        self._last_trouble = ""

    @property
    def undelivered(self) -> list[str]:
        """Labels of what has not arrived yet, oldest first."""
        return [parcel.label for parcel in list(self._waiting)]

    def open(self, call: Callable[[], None], limit_s: float) -> None:
        """Have ``call`` made first, and wait for it.

        Raises TrackingError: the store can't be used, or ``call`` fails or takes longer than ``limit_s``.
        """
        with answering(self._uri):
            self._worker = Worker()
            self._worker.start()
            try:
                self._worker.submit(call).result(limit_s)
                self._open = True
            except TimeoutError as error:
                raise TrackingError(f"{self._store} took more than {limit_s:.0f} s to open a run") from error
            finally:
                if not self._open:
                    self._worker.stop()

    def post(self, parcel: Parcel) -> None:
        """Send ``parcel`` after what waits already; returns at once."""
        if self._open:
            self._waiting.append(parcel)
            self._worker.submit(self._deliver)

    def close(self, parcels: Sequence[Parcel], limit_s: float, *, urgent: bool = False) -> None:
        """Send the last ``parcels`` and all that waits, within ``limit_s``; then tell what did not arrive.

        ``urgent`` parcels go before those that wait, others after them.
        """
        if not self._open:
            return
        self._open = False
        place = 0 if urgent else len(self._waiting)
        self._waiting[place:place] = parcels
        try:
            self._worker.submit(self._deliver_rest).result(limit_s)
            cause = self._last_trouble
        except TimeoutError:
            cause = f"no answer within {limit_s:.0f} s"
        self._worker.stop()
        left = list(self._waiting)
        try:
            kept = self._keep(left) if self._keep else ""
        except (OSError, StorageError) as error:
            kept = f"and could not be kept in a file: {reason(error)}"
        if left:
            text = "; ".join(part for part in (listed(self.undelivered), kept) if part)
            self._notify(f"tracking: not delivered to {self._store} ({cause}): {text}")

    def _deliver(self) -> None:
        """Send what waits, oldest first, up to two failures in a row.

        One failure may be that parcel's own; after the second the store is taken to be gone until next time.
        """
        failures = 0
        for parcel in list(self._waiting):
            if failures == 2 or not self._open:
                return
            failures = 0 if self._send(parcel) else failures + 1

    def _deliver_rest(self) -> None:
        """Try everything once, unless the store is gone: then each try would only cost its time limit."""
        try:
            check_uri(self._uri)
        except Exception as error:
            self._last_trouble = reason(error.__cause__ or error)
            return
        for parcel in list(self._waiting):
            self._send(parcel)

    def _send(self, parcel: Parcel) -> bool:
        """Whether it arrived. Each cause of trouble is told once; at the end there is a summary instead."""
        try:
            parcel.send()
        except Exception as error:
            self._last_trouble = trouble = reason(error)
            cause = re.sub(r"\d+", "#", trouble)
            if self._open and cause not in self._causes_told:
                self._causes_told.add(cause)
                self._notify(
                    f"tracking: could not send {parcel.label} to MLflow ({trouble}); training goes on"
                )
            return False
        self._waiting.remove(parcel)
        return True


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


NAME = "undelivered.jsonl"
_METHODS = ("log_metrics", "log_params", "set_tags", "add_note")
"""All that is called from the file."""


class Undelivered:
    """The file ``NAME`` in the folder of the run that ``storage`` names."""

    def __init__(self, storage: StorageConfig) -> None:
        self._storage = storage
        self._taken = False

    def take(self, run: MLflowRun) -> list[Parcel]:
        """What earlier processes could not send to ``run``; it stays in the file until ``keep``."""
        lines: list[str] = []
        with suppress(OSError, StorageError, UnicodeDecodeError):
            lines = self._folder().read(NAME).decode().splitlines()
        self._taken = bool(lines)
        found = []
        for line in lines:
            with suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                if entry["run_id"] == run.id and entry["method"] in _METHODS:
                    arguments = dict(entry["arguments"])
                    found.append(Parcel.call(str(entry["label"]), run, entry["method"], arguments))
        return found

    def keep(self, run_id: str, parcels: Sequence[Parcel]) -> str:
        """Keep those that can be sent later, and nothing else; returns where, and how to have them sent."""
        lines = []
        for parcel in parcels:
            if parcel.later is not None:
                method, arguments = parcel.later
                entry = {"run_id": run_id, "label": parcel.label, "method": method, "arguments": arguments}
                lines.append(json.dumps(entry) + "\n")
        if lines:
            flags = f"--storage.name {self._storage.name} --storage.resume True"
            folder = self._folder()
            folder.write(NAME, "".join(lines).encode())
            place = without_password(folder.path(NAME))
            return f"kept in {place}, sent when the run is resumed with: {flags}"
        if self._taken:
            with suppress(OSError, StorageError):
                self._folder().delete(NAME)
        return ""

    def _folder(self) -> RunFolder:
        return RunFolder(self._storage.path, self._storage.name)


def listed(labels: Sequence[str]) -> str:
    """``labels`` with the rounds first and drawn together: ``rounds 3-5, 8, results``."""
    rounds = [int(label.removeprefix("round ")) for label in labels if label.startswith("round ")]
    others = [label for label in labels if not label.startswith("round ")]
    if not rounds:
        return ", ".join(others)
    # Consecutive rounds differ from their places in the list by the same number.
    grouped = groupby(enumerate(rounds), key=lambda placed: placed[1] - placed[0])
    spans = [[number for _, number in group] for _, group in grouped]
    texts = [str(span[0]) if len(span) == 1 else f"{span[0]}-{span[-1]}" for span in spans]
    return ", ".join([f"{'round' if len(rounds) == 1 else 'rounds'} {', '.join(texts)}", *others])

"""Delivery in the background: in order, tried again, with one remark per cause, never waited for too long."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

from raygf.config.run import StorageConfig
from raygf.errors import StorageError, TrackingError, without_password
from raygf.records import Notify
from raygf.storage.folder import RunFolder
from raygf.tracking.mlflow_run import MLflowRun
from raygf.tracking.store import reason

NAME = "undelivered.jsonl"
_CALLS = ("log_metrics", "log_params", "set_tags", "remark")


@dataclass(frozen=True)
class Call:
    """A call of one of MLflowRun's methods with JSON values: it can be made later, by another process."""

    method: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def make(self, run: MLflowRun) -> None:
        """Make it."""
        getattr(run, self.method)(**self.arguments)


class Labelled(Protocol):
    """What is to be kept; see ``Parcel``."""

    @property
    def label(self) -> str:
        """What people call it."""
        ...

    @property
    def call(self) -> Call | None:
        """How to send it later; None if that makes no sense or can't be written down."""
        ...


class Undelivered:
    """The file of the run that ``storage`` names: in the run's folder, or here if that can't be written.

    Args:
        here: this process's folder.
    """

    def __init__(self, storage: StorageConfig, here: Path) -> None:
        self._storage = storage
        self._here = here / f"{storage.name}-{NAME}"
        self._taken = False

    def take(self, run_id: str) -> list[tuple[str, Call]]:
        """What earlier processes could not send for ``run_id``: labels and calls. Stays until ``keep``."""
        lines = [line for text in (self._read_folder(), self._read_here()) for line in text.splitlines()]
        found = []
        for line in lines:
            with suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                call = Call(str(entry["method"]), dict(entry["arguments"]))
                if entry["run_id"] == run_id and call.method in _CALLS:
                    found.append((str(entry["label"]), call))
        self._taken = bool(lines)
        return found

    def keep(self, run_id: str, parcels: Sequence[Labelled]) -> str:
        """Keep what can be sent later, and nothing else; says where, for people, with the way to send it."""
        entries = [(parcel.label, parcel.call) for parcel in parcels if parcel.call is not None]
        values = [
            {"run_id": run_id, "label": label, "method": call.method, "arguments": call.arguments}
            for label, call in entries
        ]
        if not values:
            self._forget()
            return ""
        place = self._write("".join(json.dumps(value) + "\n" for value in values))
        name = self._storage.name
        return (
            f"kept in {place}, sent when the run is gone on with: --storage.name {name} --storage.resume True"
        )

    def _write(self, text: str) -> str:
        try:
            folder = RunFolder(self._storage.path, self._storage.name)
            folder.write(NAME, text.encode())
            return without_password(folder.path(NAME))
        except (OSError, StorageError):
            self._here.write_text(text)
            return str(self._here)

    def _read_folder(self) -> str:
        with suppress(OSError, StorageError, UnicodeDecodeError):
            return RunFolder(self._storage.path, self._storage.name).read(NAME).decode()
        return ""

    def _read_here(self) -> str:
        with suppress(OSError, UnicodeDecodeError):
            return self._here.read_text()
        return ""

    def _forget(self) -> None:
        """Delete the files, if there were any."""
        if not self._taken:
            return
        self._here.unlink(missing_ok=True)
        with suppress(OSError, StorageError):
            RunFolder(self._storage.path, self._storage.name).delete(NAME)


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


@dataclass(frozen=True, eq=False)
class Parcel:
    """Something to deliver, and what a person would call it; ``call``: how to send it later from a file."""

    label: str
    send: Callable[[], None]
    call: Call | None = None


Keep = Callable[[Sequence[Parcel]], str]


class Delivery:
    """Sends parcels to one store. What is posted before ``open`` or after ``close`` is dropped.

    Args:
        store: the store's name in remarks.
        check: raises, within seconds, if the store is gone.
        say: called with one line when something could not be delivered; maybe from another thread.
        keep: called at the end with what was not delivered; says where it was kept, for people.
    """

    def __init__(
        self, store: str, check: Callable[[], None], notify: Notify, keep: Keep | None = None
    ) -> None:
        self._store, self._check, self._notify, self._keep = store, check, notify, keep
        self._worker = Worker()
        self._open = False
        self._lock = threading.Lock()
        self._waiting: list[Parcel] = []
        self._causes_told: set[str] = set()
        self._last_trouble = ""

    @property
    def undelivered(self) -> list[str]:
        """Labels of what has not arrived yet, oldest first."""
        return [parcel.label for parcel in self._snapshot()]

    def open(self, call: Callable[[], None], limit_s: float) -> None:
        """Have ``call`` made first, and wait for it.

        Raises:
            TrackingError: it takes longer than ``limit_s``.
            Exception: whatever ``call`` raises.
        """
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
            with self._lock:
                self._waiting.append(parcel)
            self._worker.submit(self._deliver)

    def close(self, parcels: Sequence[Parcel], limit_s: float, *, urgent: bool = False) -> None:
        """Send the last ``parcels`` and all that waits, within ``limit_s``; then say what did not arrive.

        ``urgent`` parcels go before those that wait, others after them.
        """
        if not self._open:
            return
        with self._lock:
            self._open = False
            waiting = self._waiting
            self._waiting = [*parcels, *waiting] if urgent else [*waiting, *parcels]
        try:
            self._worker.submit(self._deliver_rest).result(limit_s)
        except TimeoutError:
            cause = f"no answer within {limit_s:.0f} s"
        else:
            cause = self._last_trouble
        self._worker.stop()
        left = self._snapshot()
        place = "" if self._keep is None else self._kept(left)
        if left:
            what = listed([parcel.label for parcel in left])
            self._notify(f"tracking: not delivered to {self._store} ({cause}): {what}{place}")

    def _kept(self, left: Sequence[Parcel]) -> str:
        assert self._keep is not None
        try:
            place = self._keep(left)
        except OSError as error:
            return f"; and could not be kept in a file: {reason(error)}"
        return f"; {place}" if place else ""

    def _snapshot(self) -> list[Parcel]:
        with self._lock:
            return list(self._waiting)

    def _deliver(self) -> None:
        """Send what waits, oldest first, up to two failures in a row.

        One failure may be that parcel's own; after the second the store is taken to be gone until next time.
        """
        failures = 0
        for parcel in self._snapshot():
            if failures == 2 or not self._open:
                return
            failures = 0 if self._send(parcel) else failures + 1

    def _deliver_rest(self) -> None:
        """Try everything once, unless the store is gone: then each try would only cost its time limit."""
        try:
            self._check()
        except Exception as error:
            self._last_trouble = reason(error.__cause__ or error)
            return
        for parcel in self._snapshot():
            self._send(parcel)

    def _send(self, parcel: Parcel) -> bool:
        try:
            parcel.send()
        except Exception as error:
            self._last_trouble = reason(error)
            self._tell(parcel.label, self._last_trouble)
            return False
        with self._lock:
            self._waiting.remove(parcel)
        return True

    def _tell(self, label: str, trouble: str) -> None:
        """Once per cause; at the end there is a summary instead."""
        cause = re.sub(r"\d+", "#", trouble)
        if self._open and cause not in self._causes_told:
            self._causes_told.add(cause)
            self._notify(f"tracking: could not send {label} to MLflow ({trouble}); training goes on")


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

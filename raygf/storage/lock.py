"""One run at a time in a folder: a file that says who trains here, written again every few seconds.

It works wherever files can be written and read. On a local file system (NFS included) only one can create
the file. Elsewhere two may do so at once; each then looks again after a moment, and whoever finds the other's
name gives way. An owner that has stopped is recognised by its process if it was on this machine, else by its
silence. An owner that was silent and wakes up finds the other's name and stops before it writes a checkpoint.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import psutil

from raygf.errors import RunFailed, StorageError, without_password
from raygf.records import Notify, ignore
from raygf.storage.folder import RunFolder, brief

_CLOCK_S = 2.0
"""How far the start of a process, as told at different times, may be off when the clock is set."""


@dataclass(frozen=True)
class Process:
    """A process that can be looked up on its own machine.

    ``space`` tells boots of a machine, and containers on it, apart. ``started``: seconds since 1970.
    """

    host: str
    space: str
    pid: int
    started: float

    @classmethod
    def this(cls) -> Process:
        """The one that asks."""
        pid = os.getpid()
        return cls(socket.gethostname(), _space(), pid, psutil.Process(pid).create_time())

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Process:
        """From its fields.

        Raises:
            KeyError, TypeError, ValueError: they are not fields of a process.
        """
        host, space = str(values["host"]), str(values["space"])
        return cls(host, space, int(values["pid"]), float(values["started"]))

    def alive(self) -> bool | None:
        """Whether it lives; None if that can't be seen from here."""
        if (self.host, self.space) != (socket.gethostname(), _space()):
            return None
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < _CLOCK_S
            return bool(same and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@dataclass(frozen=True)
class Owner:
    """A started job. Its drivers, one after the other, share the ``token``."""

    token: str
    job: Process

    @classmethod
    def new(cls) -> Owner:
        """Of a run that is started in this process."""
        return cls(uuid.uuid4().hex, Process.this())


def _space() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


NAME = "lock.json"


@dataclass(frozen=True)
class Pace:
    """Seconds of everything that has to do with time.

    ``beat``: between two signs of life. ``stale``: of silence, after which an owner elsewhere counts as dead.
    ``settle``: after which everybody who looked before has written. ``poll``: between two looks. ``grace``:
    that an owner has to live on, for it may have been killed this moment.
    """

    beat: float = 5.0
    stale: float = 60.0
    settle: float = 1.0
    poll: float = 0.25
    grace: float = 1.0


@dataclass(frozen=True)
class Held:
    """What the file says: the ``driver`` holds the folder for the ``owner``; ``id`` is this holding's own."""

    id: str
    owner: Owner
    driver: Process
    beats: int = 0

    def json(self) -> bytes:
        """As the file's content."""
        return json.dumps(asdict(self), indent=1).encode()


class Verdict(Enum):
    """Whether a folder that is held can be taken."""

    FREE = "free"
    HELD = "held"
    UNSURE = "unsure"


def judge(token: str, held: Held, beating: bool, silent_s: float, pace: Pace) -> Verdict:
    """Whether the run ``token`` may take the folder from ``held``.

    Args:
        beating: the file has been written again while it was watched.
        silent_s: seconds since it was written.
    """
    driver, job = held.driver.alive(), held.owner.job.alive()
    if token == held.owner.token:
        return Verdict.FREE  # an earlier driver of this run, which was lost
    if job:
        return Verdict.HELD  # a driver that it loses it starts again
    if job is False and driver is not None:
        return Verdict.UNSURE if driver else Verdict.FREE  # Ray ends a driver whose job has died
    if driver or (beating and job is None):
        return Verdict.HELD
    return Verdict.FREE if silent_s >= pace.stale else Verdict.UNSURE


class _Watch:
    """Looks at a lock again and again. Silence from before the first look counts, by the storage's clock."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._first = self._last = read_lock(folder)
        self._started = time.monotonic()
        self._written = self._started - folder.silence_s(NAME)

    def look(self) -> Held | None:
        """What the lock says now."""
        held = read_lock(self._folder)
        if held != self._last:
            self._last, self._written = held, time.monotonic()
        return held

    @property
    def beating(self) -> bool:
        """Whether it has been written again since the first look."""
        return self._first is not None and self._last != self._first

    @property
    def silent_s(self) -> float:
        """Seconds since it was written."""
        return time.monotonic() - self._written

    @property
    def seconds(self) -> float:
        """Since the first look."""
        return time.monotonic() - self._started


class RunLock:
    """The holding of ``folder`` for ``owner``, from ``acquire`` to ``release``."""

    def __init__(
        self, folder: RunFolder, owner: Owner, pace: Pace | None = None, notify: Notify = ignore
    ) -> None:
        """``notify`` is told when an owner is watched for more than a moment."""
        self._folder = folder
        self._notify = notify
        self._shown = without_password(folder.shown)
        self._pace = pace or Pace()
        self._mine = Held(uuid.uuid4().hex, owner, Process.this())
        self._over = threading.Event()
        self._beats: threading.Thread | None = None

    def acquire(self) -> tuple[str, ...]:
        """Take the folder; returns remarks on whom it was taken from.

        Raises:
            StorageError: another run holds it, or it can't be read or written.
        """
        try:
            notes = self._take()
        except OSError as error:
            raise StorageError(f"storage.path: can't use {self._shown}: {brief(error)}") from None
        self._beats = threading.Thread(target=self._beat, name="raygf-lock", daemon=True)
        self._beats.start()
        return notes

    def check(self) -> None:
        """Make sure that the folder is still held, before something is written to it.

        Raises:
            RunFailed: another run has taken it.
        """
        held = None
        with suppress(OSError):  # if the storage is in trouble, what is written next will say so
            held = read_lock(self._folder)
        if held is not None and held.id != self._mine.id:
            raise RunFailed(
                f"{self._shown} was taken over by another run ({held.driver}) while this one was not "
                "heard of; this run stops, the checkpoints are the other's"
            )

    def release(self) -> None:
        """Give the folder back."""
        if self._beats is None:
            return
        self._over.set()
        self._beats.join(timeout=self._pace.beat)
        self._beats = None
        with suppress(OSError):
            held = read_lock(self._folder)
            if held is not None and held.id == self._mine.id:
                self._folder.delete(NAME)

    def _take(self) -> tuple[str, ...]:
        if self._folder.create_only(NAME, self._mine.json()):
            if not self._folder.local:
                self._settle()
            return ()
        held = self._await_free()
        self._folder.write(NAME, self._mine.json())
        if held is not None and held.owner.token == self._mine.owner.token:
            return ()
        self._settle()  # others may have seen it free as well
        return (f"took {self._shown} over: {held.driver} has ended",) if held else ()

    def _settle(self) -> None:
        time.sleep(self._pace.settle)
        held = read_lock(self._folder)
        if held is None or held.id != self._mine.id:
            raise self._refusal(held)

    def _await_free(self) -> Held | None:
        """Watch who holds the folder until it is free; at most as long as silence takes to count."""
        watch, pace, said = _Watch(self._folder), self._pace, False
        while True:
            held = watch.look()
            verdict = self._verdict(held, watch)
            if verdict is Verdict.FREE:
                return held
            if watch.seconds > (pace.grace if verdict is Verdict.HELD else pace.stale + pace.beat):
                raise self._refusal(held)
            if held is not None and watch.seconds > 2 * pace.grace and not said:
                said = True
                self._notify(
                    f"{self._shown} was held by {held.driver}: waiting to see whether it still lives"
                )
            time.sleep(pace.poll)

    def _verdict(self, held: Held | None, watch: _Watch) -> Verdict:
        if held is None:  # gone, or being written at this moment, or no lock at all
            return Verdict.FREE if watch.silent_s >= self._pace.settle else Verdict.UNSURE
        return judge(self._mine.owner.token, held, watch.beating, watch.silent_s, self._pace)

    def _refusal(self, held: Held | None) -> StorageError:
        who = "another run" if held is None else f"another run ({held.driver})"
        return StorageError(
            f"{self._shown} is in use by {who}: wait for its end, or choose another --storage.name"
        )

    def _beat(self) -> None:
        beats = 0
        while not self._over.wait(self._pace.beat):
            with suppress(OSError):
                held = read_lock(self._folder)
                if held is not None and held.id != self._mine.id:
                    return  # ``check`` will find it too
                beats += 1
                self._folder.write(NAME, replace(self._mine, beats=beats).json())


def read_lock(folder: RunFolder) -> Held | None:
    """Who holds ``folder``; None if nobody does, or the file says nothing that can be understood."""
    try:
        values: dict[str, Any] = json.loads(folder.read(NAME))
        owner = Owner(str(values["owner"]["token"]), Process.read(values["owner"]["job"]))
        return Held(str(values["id"]), owner, Process.read(values["driver"]), int(values["beats"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None

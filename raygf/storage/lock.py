"""One run at a time in a folder: a file that says who trains here, written again every few seconds.

It works wherever files can be written and read. On a local file system (NFS included) only one can create
the file. An owner that has stopped is recognised by its processes if they were on this machine, else by a
minute of silence. One that was silent and wakes up, or that found the folder free at the same moment as
another, finds the other's name and stops before it writes a checkpoint.
"""

from __future__ import annotations

import json
import math
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass

import psutil

from raygf.config.fields import from_dict
from raygf.errors import ConfigError, RunFailed, StorageError, without_password
from raygf.storage.folder import RunFolder, brief

NAME = "lock.json"
BEAT_S = 5.0
"""Seconds between two signs of life."""
STALE_S = 60.0
"""Seconds of silence after which an owner on another machine counts as dead."""
MOMENT_S = 1.0
"""Seconds in which an owner that was killed is gone, and one that has created the file has filled it."""
POLL_S = 0.25
_CLOCK_S = 2.0
"""How far the start of a process, as told at different times, may be off when the clock is set."""


@dataclass(frozen=True)
class Process:
    """A process that can be looked up on its own machine; ``started``: seconds since 1970."""

    host: str
    pid: int
    started: float

    @classmethod
    def this(cls) -> Process:
        """The process that asks."""
        return cls(socket.gethostname(), os.getpid(), psutil.Process().create_time())

    def alive(self) -> bool | None:
        """Whether it lives; None if that can't be seen from here."""
        if self.host != socket.gethostname():
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
        """The owner of a run that is started in this process."""
        return cls(uuid.uuid4().hex, Process.this())


@dataclass(frozen=True)
class Held:
    """The content of the file: ``driver`` trains for the job ``owner``; ``id`` is this holding's own."""

    id: str
    owner: Owner
    driver: Process

    def json(self) -> bytes:
        """The file's bytes."""
        return json.dumps(asdict(self), indent=1).encode()


def read_lock(folder: RunFolder) -> Held | None:
    """Who holds ``folder``; None if there is no file, or one that can't be understood."""
    try:
        return from_dict(Held, json.loads(folder.read(NAME)))
    except (FileNotFoundError, ValueError, AttributeError, TypeError, ConfigError):
        return None


def needed_silence_s(held: Held | None, token: str) -> float:
    """Seconds of silence after which a run with ``token`` may take the folder; 0: at once, inf: never."""
    if held is None:  # being written or deleted at this moment, or not a lock at all
        return MOMENT_S / 2
    if held.owner.token == token:  # an earlier driver of this run, which was lost
        return 0.0
    alive = (held.driver.alive(), held.owner.job.alive())
    if any(alive):  # a job starts another driver when it loses one
        return math.inf
    return 0.0 if alive == (False, False) else STALE_S


class RunLock:
    """The holding of ``folder`` for ``owner``, from ``acquire`` to ``release``."""

    def __init__(self, folder: RunFolder, owner: Owner) -> None:
        self._folder = folder
        self._shown = without_password(folder.shown)
        self._mine = Held(uuid.uuid4().hex, owner, Process.this())
        self._over = threading.Event()
        self._beats = threading.Thread(target=self._beat, name="raygf-lock", daemon=True)

    def acquire(self) -> tuple[str, ...]:
        """Take the folder; returns notes on whom it was taken from.

        Raises StorageError: another run holds it, or it can't be read or written.
        """
        try:
            before = self._take()
        except OSError as error:
            raise StorageError(f"storage.path: can't use {self._shown}: {brief(error)}") from None
        self._beats.start()
        if before is None or before.owner.token == self._mine.owner.token:
            return ()
        return (f"took {self._shown} over: {before.driver} has ended",)

    def check(self) -> None:
        """Raise RunFailed if another run has taken the folder; called before something is written to it."""
        with suppress(OSError):  # if the storage is in trouble, what is written next will say so
            held = read_lock(self._folder)
            if held and held.id != self._mine.id:
                raise RunFailed(
                    f"{self._shown} was taken over by another run ({held.driver}) while this one was not "
                    "heard of; this run stops, the checkpoints are the other's"
                )

    def release(self) -> None:
        """Give the folder back, if it is held."""
        if self._over.is_set() or not self._beats.is_alive():
            return
        self._over.set()
        self._beats.join(timeout=BEAT_S)
        with suppress(OSError):
            held = read_lock(self._folder)
            if held and held.id == self._mine.id:
                self._folder.delete(NAME)

    def _take(self) -> Held | None:
        """Write the file as soon as that is allowed; returns who held the folder before."""
        started = time.monotonic()
        while not self._folder.create_only(NAME, self._mine.json()):
            held = read_lock(self._folder)
            needed = needed_silence_s(held, self._mine.owner.token)
            silent = self._folder.silence_s(NAME) if 0 < needed < math.inf else 0.0
            if silent >= needed:
                self._folder.write(NAME, self._mine.json())
                return held
            job_died = held is not None and held.owner.job.alive() is False  # Ray will end its driver
            if time.monotonic() - started > (STALE_S + BEAT_S if job_died else MOMENT_S):
                who = f"another run ({held.driver})" if held else "another run"
                again = (
                    f" (if it has died, try again in {needed - silent:.0f} s)" if needed < math.inf else ""
                )
                raise StorageError(
                    f"{self._shown} is in use by {who}: wait for its end{again}, or choose another "
                    "--storage.name"
                )
            time.sleep(POLL_S)
        return None

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            with suppress(OSError):
                held = read_lock(self._folder)
                if held and held.id != self._mine.id:
                    return  # ``check`` will find it too
                self._folder.write(NAME, self._mine.json())

"""Who a run belongs to: the job that was started, and the process that trains for it."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

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

"""What tests of whole runs share: small flags, waiting, Ray's processes, a driver in this process."""

import socket
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psutil

from raygf.config.run import RunConfig
from raygf.rounds.driver import Driver
from raygf.training.exit_trainer import LocalExecutor

TINY = (
    *("--data.train-limit", "48", "--data.val", "50", "--model.msdnet.base", "1"),
    *("--model.msdnet.step", "1", "--model.msdnet.channels", "8"),
)
"""A network and images with which a round takes a tenth of a second."""
LOCAL = ("--resources.executor", "local")
UNTRACKED = ("--tracking.enabled", "False")
RESUME = ("--storage.resume", "True")


def wait_until(condition: Callable[[], object], seconds: float = 30) -> bool:
    """True as soon as the condition holds; an AssertionError if it does not in time."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, f"not within {seconds:.0f} s"
        time.sleep(0.02)
    return True


def ray_processes(kind: str, of: psutil.Process | None = None) -> list[psutil.Process]:
    """The processes of raygf's actors below ``of`` (this process) whose title has ``kind`` in it."""
    found = []
    for process in (of or psutil.Process()).children(recursive=True):
        try:
            title = (process.cmdline() or [""])[0]
        except psutil.Error:
            continue
        if title.startswith("ray::") and kind in title:
            found.append(process)
    return found


def raygf_actors(of: psutil.Process | None = None) -> list[psutil.Process]:
    """The processes of drivers and exit actors below ``of`` (this process)."""
    return [*ray_processes("ray::DriverActor", of), *ray_processes("ray::ExitActor", of)]


def with_resources(config: RunConfig, **fields: Any) -> RunConfig:
    return replace(config, resources=replace(config.resources, **fields))


def local_driver(config: RunConfig) -> Driver:
    return Driver(config, lambda run, data, exits: LocalExecutor(run, data))


def free_port() -> int:
    """A port at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rounds_shown(err: str) -> list[str]:
    """The numbers of the lines of rounds: "3/4"."""
    return [line.split()[1] for line in err.splitlines() if line.startswith("round ")]

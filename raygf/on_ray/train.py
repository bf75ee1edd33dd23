"""A within-step method trained by several workers under Ray Train, seen from the submitting process.

When a worker is lost, Ray Train ends them all. Then all are started again, by raygf: its are the checkpoints
and the records.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from raygf.config import RunConfig
from raygf.errors import DriverLost, RaygfError, ResourceError, RunFailed
from raygf.on_ray.cluster import fitting
from raygf.on_ray.driver import lost_nodes
from raygf.on_ray.failures import fetch
from raygf.on_ray.restarts import RestartedDriver
from raygf.on_ray.train_host import CLOSE_S, PREPARE_S, Loop, Said, TrainHost, driver_lost, work
from raygf.on_ray.waiting import START_S, Late, Waiting
from raygf.records import RoundRecord, RunEnd, RunStart
from raygf.retry import deadline_s
from raygf.saying import Say, nobody
from raygf.storage.owner import Owner

_TICK_S = 1.0


class TrainDriver(RestartedDriver):
    """Looks like ``Driver``. When a worker is lost, all are started again from the last checkpoint."""

    def __init__(self, config: RunConfig, loop: Loop = work, say: Say = nobody) -> None:
        """Begin to start the workers; each runs ``loop``. ``say`` is told at once of trouble."""
        start = partial(TrainWorkers, loop=loop, owner=Owner.new(), say=say)
        super().__init__(start, config, say, lost_nodes)


class TrainWorkers:
    """The handle of one group of workers; waits have a limit, raygf's errors come back as themselves."""

    def __init__(self, config: RunConfig, loop: Loop, owner: Owner, say: Say) -> None:
        """Begin to start the workers."""
        self._resources = config.resources
        self._say = say
        self._host = ray.remote(TrainHost).options(num_cpus=0, max_concurrency=8).remote()
        self._fit = self._host.fit.remote(config, loop, owner)
        self._workers: list[Any] = []
        self._slowest: float | None = None

    def prepare(self) -> RunStart:
        """See ``Driver.prepare``.

        Raises:
            ResourceError: the workers could not start.
            DriverLost: one of them was lost.
        """
        count, began = self._resources.workers or 1, time.monotonic()
        _get(self._host.ready.remote(), "starting", START_S)
        wait_s = self._resources.wait_for_resources_s
        waiting = Waiting(f"{count} workers ({self._size()} each)", wait_s, self._fits, self._say)
        while len(self._workers) < count:
            message = self._poll()
            if isinstance(message, RunStart):
                return message
            if message is not None:
                self._workers.append(message.actor)
            elif late := waiting.late(began):
                raise self._too_late(late)
        waiting.over()
        start: RunStart = self._next(PREPARE_S, _silent(PREPARE_S, "loading data and network"))
        return start

    def rounds(self, run_id: str) -> Iterator[RoundRecord]:
        """See ``Driver.rounds``; the workers train on while a record is read."""
        _get(self._host.go.remote(run_id), "starting the rounds")
        while True:
            limit = 2 * deadline_s(self._slowest, self._resources.exit_timeout_s)
            text = f"no round ended within {limit:.0f} s; raise resources.exit_timeout_s"
            message = self._next(limit, DriverLost(text, "STUCK"))
            if isinstance(message, RunEnd):
                break
            self._slowest = max(self._slowest or 0.0, message.total_seconds)
            yield message
        self._end = message

    def end(self) -> RunEnd:
        """See ``Driver.end``; to be called after the last of ``rounds``."""
        return self._end

    def close(self) -> None:
        """End the workers, and let Ray Train take note of it and give its placement group back."""
        if not hasattr(self, "_end"):
            for actor in self._workers:
                ray.kill(actor)
        if self._workers:
            ray.wait([self._fit], timeout=CLOSE_S)
        ray.kill(self._host)

    def _size(self) -> str:
        return f"{self._resources.driver_cpus:g} CPUs, {self._resources.driver_gpus or 0:g} GPUs"

    def _fits(self) -> bool:
        resources = self._resources
        return fitting(resources.driver_cpus, resources.driver_gpus or 0) >= (resources.workers or 1)

    def _too_late(self, late: Late) -> ResourceError:
        reason = "the nodes can't hold them" if late.lacking else "the cluster is busy; free it"
        return ResourceError(
            f"{self._resources.workers} workers ({self._size()} each) could not start within "
            f"{late.limit:.0f} s: {reason}, lower resources.workers, or raise resources.wait_for_resources_s"
        )

    def _next(self, limit: float, late: RaygfError) -> Any:
        """The next message; ``late`` is raised if none comes within ``limit`` seconds."""
        until = time.monotonic() + limit
        while time.monotonic() < until:
            message = self._poll()
            if message is not None:
                return message
        raise late

    def _poll(self) -> Any:
        """The next message if it comes within a second; an error is raised, what is said is passed on."""
        over, _ = ray.wait([self._fit], timeout=0)  # asked first: no message is sent after the end
        messages = _get(self._host.receive.remote(0.0 if over else _TICK_S), "training")
        message = messages[0] if messages else None
        if isinstance(message, RaygfError):
            raise message
        if isinstance(message, Said):
            self._say(message.text)
            return None
        if message is None and over:
            _get(self._fit, "training")
            raise RunFailed("the workers ended before the run; the last checkpoint stands")
        return message


def _silent(limit: float, doing: str) -> RunFailed:
    return RunFailed(f"the workers did not answer within {limit:.0f} s while {doing}")


def _get(ref: Any, doing: str, limit: float = CLOSE_S) -> Any:
    try:
        return fetch(ref, limit)
    except RayTaskError:
        raise
    except GetTimeoutError:
        raise _silent(limit, doing) from None
    except RayError as error:
        raise driver_lost(error, f"Ray Train was lost while {doing}") from None

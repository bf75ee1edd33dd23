"""The driver as a Ray actor with its own resources, seen from the submitting process."""

from __future__ import annotations

import gc
import queue
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayError, RayTaskError

from raygf.compute import DRIVER_KNOBS
from raygf.config.run import RunConfig
from raygf.errors import DriverLost, ResourceError, RunFailed
from raygf.on_ray.cluster import fitting
from raygf.on_ray.executor import RayExecutor
from raygf.on_ray.faults import Failure, cause_of, dead_nodes, deadline_s, failure_of, fetch, node_of
from raygf.on_ray.placement import START_S, Bundles, Late, Waiting
from raygf.on_ray.pool import MakeTrainer, Place, this_place
from raygf.on_ray.restarts import RestartedDriver
from raygf.records import Notify, RoundRecord, RunEnd, RunStart, ignore
from raygf.rounds.driver import Driver
from raygf.storage.folder import OpenFolder, RunFolder
from raygf.storage.lock import Owner
from raygf.storage.run_storage import pause_s
from raygf.training.exit_trainer import ExitTrainer


@dataclass(frozen=True)
class Parts:
    """What a driver actor is made of: who trains an exit, and what the checkpoints' folder is."""

    trainer: MakeTrainer = ExitTrainer
    open_folder: OpenFolder = RunFolder


class DriverActor:
    """The plain driver with an Ray executor; ``news`` and ``abandon`` need a thread of their own."""

    def __init__(self, config: RunConfig, bundles: Bundles | None, owner: Owner, parts: Parts) -> None:
        self._config, self._bundles, self._owner, self._parts = config, bundles, owner, parts
        self._news: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._driver: Driver | None = None

    def place(self) -> Place:
        """Where it runs; answered once it does."""
        return this_place()

    def prepare(self) -> RunStart:
        """See ``Driver.prepare``; the driver is made here, as Ray does not hand a constructor's errors on."""
        notify, parts = self._news.put, self._parts
        self._driver = Driver(
            self._config,
            partial(RayExecutor, trainer=parts.trainer, bundles=self._bundles, notify=notify),
            owner=self._owner,
            notify=notify,
            open_folder=parts.open_folder,
        )
        start = self._driver.prepare()
        gc.freeze()  # what is there now stays: ``collect`` need not look at it
        return start

    def rounds(self, run_id: str) -> Iterator[RoundRecord]:
        """See ``Driver.rounds``; called as a streaming generator.

        What a round leaves behind goes at once. A full collection, which also empties Python's free lists,
        comes by itself only after thousands of rounds; until then some 28 small blocks a round stay.
        """
        assert self._driver is not None
        for record in self._driver.rounds(run_id):
            gc.collect()
            yield record

    def end(self) -> RunEnd:
        """See ``Driver.end``."""
        assert self._driver is not None
        return self._driver.end()

    def close(self) -> None:
        """See ``Driver.close``."""
        if self._driver is not None:
            self._driver.close()

    def news(self, limit: float) -> list[str]:
        """What the driver has to say, waited for ``limit`` seconds at most."""
        with suppress(queue.Empty):
            return [self._news.get(timeout=limit)]
        return []

    def abandon(self) -> None:
        """See ``Driver.abandon``."""
        if self._driver is not None:
            self._driver.abandon()


_PREPARE_S = 1800.0
_CLOSE_S = 30.0
_ABANDON_S = 5.0
_TICK_S = 1.0
_NEWS_S = 60.0
_CONTROL = "control"
"""The threads of the actor that answer while another one trains: one for news, one for the rest."""


class DriverProcess:
    """Looks like ``Driver``; every wait has a limit, and errors come back as the driver raised them."""

    def __init__(
        self, config: RunConfig, bundles: Bundles | None, owner: Owner, notify: Notify, parts: Parts
    ) -> None:
        """Begin to start the actor; with ``bundles``, it and its exit actors go into those."""
        resources = config.resources
        self._config, self._resources, self._notify = config, resources, notify
        self._anywhere = bundles is None
        placed = {} if bundles is None else bundles.options(bundles.driver)
        remote = ray.remote(concurrency_groups={_CONTROL: 2})(DriverActor).options(
            num_cpus=resources.driver_cpus, num_gpus=resources.driver_gpus or 0, max_restarts=0, **placed
        )
        self._actor = remote.remote(config, bundles, owner, parts)
        self._asked = f"the driver ({resources.driver_cpus:g} CPUs, {resources.driver_gpus or 0:g} GPUs)"
        self._news: Any = None
        self._node = ""
        self._exits = 1
        self._slowest: float | None = None
        self._training = False
        self._asking = False

    def prepare(self) -> RunStart:
        """See ``Driver.prepare``.

        Raises:
            ResourceError: the actor could not start.
            DriverLost: it was lost.
        """
        self._await_start()
        start: RunStart = self._get(self._actor.prepare.remote(), _PREPARE_S, "loading data and network")
        self._exits = len(start.operations)
        return start

    def rounds(self, run_id: str) -> Iterator[RoundRecord]:
        """See ``Driver.rounds``."""
        # One round ahead of its reader at most: a trial hands each checkpoint on before it is deleted.
        ahead = {"num_returns": "streaming", "_generator_backpressure_num_objects": 1}
        stream = self._actor.rounds.options(**ahead).remote(run_id)
        self._training = True
        while True:
            limit = self._round_limit()
            if not self._await(stream, limit):
                knob = "raise resources.exit_timeout_s"
                raise DriverLost(f"no round ended within {limit:.0f} s; {knob}", "STUCK", self._node)
            try:
                ref = next(stream)
            except StopIteration:
                self._training = False
                return
            record: RoundRecord = self._get(ref, _CLOSE_S, "fetching a record")
            self._slowest = max(self._slowest or 0.0, record.total_seconds)
            yield record

    def end(self) -> RunEnd:
        """See ``Driver.end``."""
        end: RunEnd = self._get(self._actor.end.remote(), _PREPARE_S, "evaluating the test images")
        return end

    def close(self) -> None:
        """End the driver and its exit actors, at once if it is at work."""
        with suppress(RayError):
            if self._training or self._asking:  # ``close`` would wait; exit actors end with their owner
                ray.get(self._control("abandon").remote(), timeout=_ABANDON_S)
            else:
                ray.get(self._actor.close.remote(), timeout=_CLOSE_S)
        ray.kill(self._actor)

    def _await_start(self) -> None:
        """Wait for the process to start.

        Raises:
            ResourceError: it has taken too long.
        """
        waiting = Waiting(self._asked, self._resources.wait_for_resources_s, self._fits, self._notify)
        started, ref = time.monotonic(), self._actor.place.remote()
        while not ray.wait([ref], timeout=_TICK_S)[0]:
            if late := waiting.late(started):
                raise self._too_late(late)
        place: Place = self._get(ref, _CLOSE_S, "starting")
        self._node = place.node
        waiting.over()

    def _fits(self) -> bool:
        resources = self._resources
        return not self._anywhere or fitting(resources.driver_cpus, resources.driver_gpus or 0) > 0

    def _too_late(self, late: Late) -> ResourceError:
        if late.lacking:
            return ResourceError(
                f"no node of the cluster can hold {self._asked}, and none came within {late.limit:.0f} s; "
                "add one, or raise resources.wait_for_resources_s"
            )
        return ResourceError(
            f"{self._asked} could not start within {late.limit:.0f} s: the cluster is busy; free it, lower "
            "resources.driver_cpus, or raise resources.wait_for_resources_s"
        )

    def _get(self, ref: Any, limit: float, doing: str) -> Any:
        """The value of ``ref``.

        Raises:
            RunFailed: none came within ``limit`` seconds.
            DriverLost: the actor was lost.
            RaygfError: the driver raised it.
        """
        self._asking = True
        if not self._await(ref, limit):
            raise RunFailed(f"the driver did not answer within {limit:.0f} s while {doing}")
        self._asking = False
        try:
            return fetch(ref, _CLOSE_S)
        except RayTaskError:
            raise
        except GetTimeoutError:
            raise RunFailed(f"the driver's answer could not be fetched while {doing}") from None
        except RayError as error:
            raise self._lost(error) from None

    def _await(self, ref: Any, limit: float) -> bool:
        """Wait until ``ref`` (or the next of a stream) is there, passing on what the driver has to say."""
        until = time.monotonic() + limit
        while (left := until - time.monotonic()) > 0:
            if self._news is None:
                self._news = self._control("news").remote(_NEWS_S)
            done, _ = ray.wait([ref, self._news], timeout=left)
            if self._news in done:
                self._pass_on()
            if ref in done:
                return True
        return False

    def _pass_on(self) -> None:
        news, self._news = self._news, None
        try:
            for text in ray.get(news, timeout=_CLOSE_S):
                self._notify(text)
        except RayError:
            time.sleep(_TICK_S / 10)  # the actor is gone; whoever waits for it will see it too

    def _lost(self, error: RayError) -> DriverLost:
        kind, cause = failure_of(error), cause_of(error)
        if kind is Failure.MEMORY:
            cause = f"{cause}; it was not started again: {DRIVER_KNOBS}"
        silent = isinstance(error, ActorUnavailableError)
        return DriverLost(cause, kind.name, node_of(error) or self._node, silent)

    def _control(self, method: str) -> Any:
        return getattr(self._actor, method).options(concurrency_group=_CONTROL)

    def _round_limit(self) -> float:
        """Seconds that a round may take at most: all exits on one actor, all retries, the fusion pass."""
        resources, retries = self._resources, self._config.storage.retries
        trainings = self._exits + 2 + resources.max_failures
        starts = (1 + resources.max_failures) * (START_S + resources.wait_for_resources_s)
        pauses = sum(pause_s(failures, retries) or 0.0 for failures in range(retries))
        return trainings * deadline_s(self._slowest, resources.exit_timeout_s) + starts + pauses


NODE_S = 20.0
"""Seconds after which Ray knows for sure that a node is lost."""


class RemoteDriver(RestartedDriver):
    """Looks like ``Driver``. An actor that is lost is replaced, and goes on from the last checkpoint.

    With ``bundles``, it and its exit actors go into those. ``notify`` is told at once of what is lost and
    waited for. ``parts``: what the actor is made of.
    """

    def __init__(
        self,
        config: RunConfig,
        bundles: Bundles | None = None,
        notify: Notify = ignore,
        parts: Parts | None = None,
    ) -> None:
        """Begin to start the actor."""
        start = partial(
            DriverProcess, bundles=bundles, owner=Owner.new(), notify=notify, parts=parts or Parts()
        )
        super().__init__(start, config, notify, lost_nodes)


def lost_nodes(wait: bool) -> set[str]:
    """The nodes that the cluster has lost; with ``wait``, after Ray has had the time to notice."""
    dead = dead_nodes()
    until = time.monotonic() + (NODE_S if wait else 0.0)
    while time.monotonic() < until and not dead_nodes() - dead:
        time.sleep(_TICK_S)
    return dead_nodes()

"""The driver as a Ray actor with its own resources, and the handle of a run in other processes.

A run sends its messages to a ``Mailbox`` in the order of ``DriverHandle``'s methods: a ``Started`` from every
process, the ``RunStart``, a ``RoundRecord`` a round, the ``RunEnd``, and ``Over`` when no more will come.
Between them come notes (plain text) for people.
"""

import gc
import queue
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any, ClassVar

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from raygf.compute import DRIVER_KNOBS
from raygf.config.run import RunConfig
from raygf.errors import DriverLost, RaygfError, ResourceError, RunFailed
from raygf.on_ray.cluster import fetch
from raygf.on_ray.executor import RayExecutor
from raygf.on_ray.faults import Failure, cause_of, deadline_s, failure_of
from raygf.on_ray.placement import START_S, Bundles, Waiting, driver_bundle, fits, idle_nodes, size
from raygf.on_ray.pool import MakeTrainer
from raygf.on_ray.restarts import RestartedDriver
from raygf.records import Notify, RoundRecord, RunEnd, RunStart, ignore
from raygf.rounds.driver import Driver, DriverHandle
from raygf.storage.folder import OpenFolder, RunFolder
from raygf.storage.lock import Owner
from raygf.storage.run_storage import pause_s
from raygf.training.exit_trainer import ExitTrainer

PREPARE_S = 1800.0
"""Seconds for loading data and network, or for the test images."""
CLOSE_S = 30.0
_ABANDON_S = 5.0
_TICK_S = 1.0
_RECEIVE_S = 60.0


@dataclass(frozen=True)
class Started:
    """A process of the run has started; ``actor``: what to kill to end it, if need be."""

    actor: Any = None


class Over:
    """No more messages will come: the run has ended, in one way or the other."""


class Mailbox:
    """Messages of a run to the submitting process. Of an actor whose calls have threads of their own."""

    def __init__(self) -> None:
        self._mail: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._taken: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._run_ids: queue.SimpleQueue[str] = queue.SimpleQueue()

    def send(self, message: Any) -> None:
        """Add a message."""
        self._mail.put(message)

    def hand_over(self, message: Any) -> None:
        """Add a message; returns when the submitting process has received it."""
        self.send(message)
        if isinstance(message, RoundRecord):
            self._taken.get()

    def receive(self, limit: float) -> list[Any]:
        """The oldest message; nothing if none comes within ``limit`` seconds."""
        with suppress(queue.Empty):
            message = self._mail.get(timeout=limit)
            if isinstance(message, RoundRecord):
                self._taken.put(None)
            return [message]
        return []

    def go(self, run_id: str) -> None:
        """Let the rounds begin."""
        self._run_ids.put(run_id)

    def wait_for_run_id(self) -> str:
        """The argument of ``go``, once that has been called."""
        return self._run_ids.get()


def drive(driver: DriverHandle, send: Callable[[Any], None], run_id: Callable[[], str]) -> None:
    """The whole run of ``driver``, its results sent.

    What a round leaves behind is collected at once. A full collection, which also empties Python's free
    lists, comes by itself only after thousands of rounds; until then some 28 small blocks a round stay.
    """
    send(driver.prepare())
    gc.freeze()  # what is there now stays, and need not be looked at again
    for record in driver.rounds(run_id()):
        gc.collect()
        send(record)
    send(driver.end())


@dataclass(frozen=True)
class Parts:
    """What a driver actor is made of: who trains an exit, and what the checkpoints' folder is."""

    trainer: MakeTrainer = ExitTrainer
    open_folder: OpenFolder = RunFolder


class DriverActor(Mailbox):
    """Runs the plain driver with a Ray executor, at most one round ahead of the reader of its records.

    Sweeps need that: a trial hands every checkpoint to Ray Tune before the driver deletes it.
    """

    def run(self, config: RunConfig, bundles: Bundles | None, owner: Owner, parts: Parts) -> None:
        """Run ``config`` from start to end."""
        self.send(Started())
        make = partial(RayExecutor, trainer=parts.trainer, bundles=bundles, notify=self.send)
        try:
            self._driver = Driver(config, make, owner=owner, notify=self.send, open_folder=parts.open_folder)
            try:
                drive(self._driver, self.hand_over, self.wait_for_run_id)
            finally:
                self._driver.close()
        finally:
            self.send(Over())

    def abandon(self) -> None:
        """Give the run's folder back, because this process is about to be killed."""
        if hasattr(self, "_driver"):
            self._driver.abandon()


class ProcessHandle(DriverHandle):
    """One start of a run in other processes. Every wait has a limit, and raygf's errors come as themselves.

    Any call may raise DriverLost (a process was lost) or RunFailed (no answer came in time).
    """

    who: ClassVar[str]
    lost: ClassVar[str] = ""
    """What the cause of a DriverLost begins with."""
    knob: ClassVar[str]
    """The setting to lower where the processes find no room."""

    def __init__(self, config: RunConfig, notify: Notify, mailbox: Any, run: Any, what: str) -> None:
        """
        Args:
            mailbox: the actor with a ``Mailbox``.
            run: the reference of its call that runs ``config``.
            what: the processes and their sizes, for people.
        """
        self._config, self._resources, self._notify = config, config.resources, notify
        self._mailbox, self._run, self._what = mailbox, run, what
        self._mail: Any = None
        self._started: list[Started] = []
        self._exits = 1
        self._slowest: float | None = None
        self._end: RunEnd | None = None

    def prepare(self) -> RunStart:
        """As ``Driver.prepare``; raises ResourceError if the processes could not start."""
        wait_s = self._resources.wait_for_resources_s
        waiting = Waiting(self._what, self.knob, wait_s, self._fits, self._notify)
        began, start = monotonic(), None
        while start is None and len(self._started) < (self._resources.workers or 1):
            if late := waiting.late(began):
                raise ResourceError(late)
            start = self._poll(_TICK_S)
        waiting.over()
        start = start or self._next(PREPARE_S, self._silence(PREPARE_S, "loading data and network"))
        self._exits = len(start.operations)
        return start  # type: ignore[no-any-return]

    def rounds(self, run_id: str) -> Iterator[RoundRecord]:
        """As ``Driver.rounds``; ``end`` is known afterwards."""
        self._get(self._mailbox.go.remote(run_id), "starting the rounds")
        last = min(self._config.rounds, self._config.stop_after or self._config.rounds)
        limit = self._round_limit()
        while True:
            late = f"no round ended within {limit:.0f} s; raise resources.exit_timeout_s"
            message = self._next(limit, DriverLost(late, Failure.STUCK.name))
            if isinstance(message, RunEnd):
                self._end = message
                return
            self._slowest = max(self._slowest or 0.0, message.total_seconds)
            yield message
            limit = self._round_limit() if message.round < last else PREPARE_S

    def end(self) -> RunEnd:
        """As ``Driver.end``; to be called after the last of ``rounds``."""
        assert self._end is not None
        return self._end

    @abstractmethod
    def close(self) -> None:
        """End the processes."""

    @abstractmethod
    def _fits(self) -> bool:
        """Whether the living nodes can hold the processes."""

    @abstractmethod
    def _round_limit(self) -> float:
        """Seconds that a round may take at most."""

    def _next(self, limit: float, late: RaygfError) -> Any:
        """The next message; raises ``late`` if none comes within ``limit`` seconds."""
        until = monotonic() + limit
        while True:
            if (message := self._poll(max(0.0, min(until - monotonic(), _TICK_S)))) is not None:
                return message
            if monotonic() > until:
                raise late

    def _poll(self, limit: float) -> Any:
        """The next RunStart, RoundRecord or RunEnd, waited for ``limit`` seconds; None if another came."""
        self._mail = self._mail or self._mailbox.receive.remote(_RECEIVE_S)
        if not ray.wait([self._mail], timeout=limit)[0]:
            return None
        mail, self._mail = self._mail, None
        for message in self._get(mail, "training"):
            if isinstance(message, RaygfError):
                raise message
            if isinstance(message, Over):
                self._get(self._run, "ending")
                raise RunFailed(f"{self.who} ended before the run; the last checkpoint stands")
            if isinstance(message, Started):
                self._started.append(message)
            elif isinstance(message, str):
                self._notify(message)
            else:
                return message
        return None

    def _get(self, ref: Any, doing: str) -> Any:
        try:
            return fetch(ref, CLOSE_S)
        except RayTaskError:
            raise
        except GetTimeoutError:
            raise self._silence(CLOSE_S, doing) from None
        except RayError as error:
            raise driver_lost(error, self.lost) from None

    def _silence(self, limit: float, doing: str) -> RunFailed:
        return RunFailed(f"{self.who} did not answer within {limit:.0f} s while {doing}")


def driver_lost(error: RayError, begin: str = "") -> DriverLost:
    """``error`` as the loss of the driver; its text begins with ``begin``."""
    kind, cause = failure_of(error), cause_of(error)
    if kind is Failure.MEMORY:
        cause = f"{cause}; it was not started again: {DRIVER_KNOBS}"
    return DriverLost(f"{begin}{cause}", kind.name)


class DriverProcess(ProcessHandle):
    """One driver actor, from its start to its end."""

    who = "the driver"
    knob = "resources.driver_cpus"

    def __init__(
        self, config: RunConfig, bundles: Bundles | None, owner: Owner, notify: Notify, parts: Parts
    ) -> None:
        """Begin to start the actor; with ``bundles``, it and its exit actors go into those."""
        self._anywhere = bundles is None
        self._bundle = driver_bundle(config.resources)
        placed = {} if bundles is None else bundles.options(bundles.driver)
        cpus, gpus = config.resources.driver_cpus, config.resources.driver_gpus or 0
        remote = ray.remote(DriverActor).options(num_cpus=cpus, num_gpus=gpus, max_concurrency=4, **placed)
        actor = remote.remote()
        run = actor.run.remote(config, bundles, owner, parts)
        super().__init__(config, notify, actor, run, f"the driver ({size(self._bundle)})")

    def close(self) -> None:
        """End the driver and its exit actors, at once if it is at work."""
        with suppress(RayError):
            if not ray.wait([self._run], timeout=CLOSE_S if self._end else 0)[0]:
                ray.get(self._mailbox.abandon.remote(), timeout=_ABANDON_S)
        ray.kill(self._mailbox)  # exit actors end with their owner

    def _fits(self) -> bool:
        return not self._anywhere or fits([self._bundle], idle_nodes())

    def _round_limit(self) -> float:
        """All exits on one actor, all retries, the fusion pass."""
        resources, retries = self._resources, self._config.storage.retries
        tries = 1 + resources.max_failures
        trainings = self._exits * tries + 2
        starts = tries * (START_S + resources.wait_for_resources_s)
        pauses = sum(pause_s(failures, retries) or 0.0 for failures in range(retries))
        return trainings * deadline_s(self._slowest, resources.exit_timeout_s) + starts + pauses


class RemoteDriver(RestartedDriver):
    """A run by a driver actor. One that is lost is replaced, and resumes from the last checkpoint."""

    def __init__(
        self,
        config: RunConfig,
        bundles: Bundles | None = None,
        notify: Notify = ignore,
        parts: Parts | None = None,
    ) -> None:
        """Begin to start the actor.

        Args:
            bundles: where it and its exit actors go; by default anywhere.
            notify: called at once with what is lost and waited for.
            parts: what the actor is made of.
        """
        start = partial(
            DriverProcess, bundles=bundles, owner=Owner.new(), notify=notify, parts=parts or Parts()
        )
        super().__init__(start, config, notify)

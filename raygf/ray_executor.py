"""Training the exits on a pool of identical Ray actors."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import ray
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayError, RayTaskError

from raygf.config import ResourceConfig, RunConfig
from raygf.data.base import Dataset
from raygf.errors import ExitFailed, RaygfError, ResourceError, RunFailed
from raygf.executor import Trained
from raygf.exit_trainer import ExitTrainer, ExitUpdate
from raygf.ray_bundles import Bundles
from raygf.ray_cluster import fitting
from raygf.retry import Action, Failure, decide
from raygf.state import NetworkState, Vector

_START_S = 300.0  # an actor imports torch, builds the network and maps the data in this time
_TICK_S = 1.0
_FETCH_S = 120.0
_NO_EXIT = -1

_KNOBS = {
    Failure.LOST: "allow more retries with resources.max_failures",
    Failure.STUCK: "give it more time with resources.exit_timeout_s",
    Failure.MEMORY: "use fewer actors (resources.actors) or smaller batches (batch_size)",
    Failure.RAISED: "this would happen again, so it was not retried",
}


class Trainer(Protocol):
    """What an exit actor runs; see ``ExitTrainer``."""

    def train(
        self, state: NetworkState, exit: int, exits: int, round: int, momentum: Vector | None
    ) -> ExitUpdate:
        """See ``ExitTrainer.train``."""
        ...


MakeTrainer = Callable[[RunConfig, Dataset], Trainer]


class ExitActor:
    """A process that trains exits; ``ray.remote`` is applied by the pool."""

    def __init__(self, make_trainer: MakeTrainer, config: RunConfig, dataset: Dataset) -> None:
        self._make_trainer = partial(make_trainer, config, dataset)
        self._trainer: Trainer

    def start(self) -> str:
        """Build the trainer and say where; not in the constructor, whose errors Ray does not hand on."""
        self._trainer = self._make_trainer()
        return f"{ray.util.get_node_ip_address()} (pid {os.getpid()})"

    def train(
        self, state: NetworkState, exit: int, exits: int, round: int, momentum: Vector | None
    ) -> ExitUpdate:
        """See ``ExitTrainer.train``; arrays in ``state`` are read-only views of the object store."""
        return self._trainer.train(state, exit, exits, round, momentum)


@dataclass
class _Worker:
    """One actor of the pool, the ``slot``-th, started at ``since``; ``node`` is empty until it is ready."""

    slot: int
    actor: Any
    started: Any
    since: float
    node: str = ""


@dataclass
class _Task:
    """One exit's training under way."""

    exit: int
    worker: _Worker
    since: float


@dataclass
class _Round:
    """What a round still has to do and what has come back."""

    round: int
    exits: int
    state: Any
    momenta: Sequence[Vector | None]
    queue: deque[int]
    running: dict[Any, _Task] = field(default_factory=dict)
    updates: dict[int, ExitUpdate] = field(default_factory=dict)
    failures: int = 0
    notes: list[str] = field(default_factory=list)


class RayExecutor:
    """A pool of ``actors`` exit actors. Any free actor takes any exit; a lost one is replaced.

    The data set is put into the object store once and read from there by all actors of a node.
    """

    def __init__(
        self,
        config: RunConfig,
        dataset: Dataset,
        exits: int,
        trainer: MakeTrainer = ExitTrainer,
        bundles: Bundles | None = None,
    ) -> None:
        """Start the actors and wait for the first; each makes a ``trainer`` of its own.

        With ``bundles``, every actor goes into one of theirs, and there are no more actors than those.
        """
        self._trainer = trainer
        self._bundles = bundles
        self._config = config
        self._resources = config.resources
        self._dataset = ray.put(dataset)
        wanted = config.resources.actors or exits
        fit = room(config.resources) if bundles is None else len(bundles.exits)
        self._workers = [self._new_worker(slot) for slot in range(min(wanted, exits, fit))]
        self._await_first(_Round(0, exits, None, [], deque()))

    def train(self, state: NetworkState, round: int, momenta: Sequence[Vector | None]) -> Trained:
        """See ``Executor.train``. The state is broadcast by one ``ray.put``."""
        started = time.perf_counter()
        exits = len(momenta)
        work = _Round(round, exits, ray.put(state), momenta, deque(range(exits)))
        broadcast = time.perf_counter() - started
        while len(work.updates) < exits:
            self._assign(work)
            self._collect(work)
        updates = tuple(work.updates[exit] for exit in range(exits))
        longest = max(update.seconds for update in updates)
        waited = time.perf_counter() - started - broadcast - longest
        return Trained(updates, broadcast, longest, max(0.0, waited), tuple(work.notes))

    def close(self) -> None:
        """End the actors."""
        for worker in self._workers:
            ray.kill(worker.actor)
        self._workers = []

    def _new_worker(self, slot: int) -> _Worker:
        resources = self._resources
        placed = {} if self._bundles is None else self._bundles.options(self._bundles.exits[slot])
        remote = ray.remote(ExitActor).options(
            num_cpus=resources.cpus_per_exit,
            num_gpus=resources.gpus_per_exit or 0,
            max_restarts=0,
            **placed,
        )
        actor = remote.remote(self._trainer, self._config, self._dataset)
        return _Worker(slot, actor, actor.start.remote(), time.monotonic())

    def _await_first(self, work: _Round) -> None:
        """Wait until one actor has started; the others join when they can."""
        while not any(worker.node for worker in self._workers):
            self._collect(work)

    def _assign(self, work: _Round) -> None:
        busy = {id(task.worker) for task in work.running.values()}
        for worker in self._workers:
            if not work.queue:
                return
            if worker.node and id(worker) not in busy:
                exit = work.queue.popleft()
                momentum = work.momenta[exit]
                ref = worker.actor.train.remote(work.state, exit, work.exits, work.round, momentum)
                work.running[ref] = _Task(exit, worker, time.monotonic())

    def _collect(self, work: _Round) -> None:
        """Wait for something to happen, and act on all that has."""
        starting = {worker.started: worker for worker in self._workers if not worker.node}
        done, _ = ray.wait([*work.running, *starting], num_returns=1, timeout=_TICK_S)
        for ref in done:
            if ref in starting:
                self._admit(starting[ref], work)
            else:
                self._settle(ref, work)
        self._end_overdue(work)

    def _end_overdue(self, work: _Round) -> None:
        """Retry trainings that are past their deadline; give up if nothing runs and nothing can start."""
        now = time.monotonic()
        for ref, task in list(work.running.items()):
            if now - task.since > self._resources.exit_timeout_s:
                del work.running[ref]
                cause = f"no result within {self._resources.exit_timeout_s:.0f} s"
                self._fail(task, Failure.STUCK, cause, work)
        limit = _START_S + self._resources.wait_for_resources_s
        waiting = [not worker.node and now - worker.since > limit for worker in self._workers]
        if not work.running and all(waiting):
            raise ResourceError(
                f"no exit actor ({_asked(self._resources)}) could start within {limit:.0f} s: the cluster is "
                "busy; free it, lower resources.cpus_per_exit, or raise resources.wait_for_resources_s"
            )

    def _admit(self, worker: _Worker, work: _Round) -> None:
        """An actor is ready, or could not start."""
        task = _Task(_NO_EXIT, worker, 0.0)
        try:
            worker.node = _fetch(worker.started)
        except RayTaskError as error:
            self._fail(task, Failure.RAISED, _cause(error), work)
        except RayError as error:
            self._fail(task, Failure.LOST, _cause(error), work)

    def _settle(self, ref: Any, work: _Round) -> None:
        """A training has ended: keep its update, or act on its failure."""
        task = work.running.pop(ref)
        try:
            work.updates[task.exit] = _fetch(ref)
        except (OutOfMemoryError, MemoryError) as error:
            self._fail(task, Failure.MEMORY, _cause(error), work)
        except RayTaskError as error:
            self._fail(task, Failure.RAISED, _cause(error), work)
        except RayError as error:
            self._fail(task, Failure.LOST, _cause(error), work)

    def _fail(self, task: _Task, failure: Failure, cause: str, work: _Round) -> None:
        """Retry the exit on a new actor, or end the run."""
        work.failures += 1
        node = task.worker.node or "unknown"
        if decide(failure, work.failures, self._resources.max_failures) is Action.STOP:
            if task.exit == _NO_EXIT:
                raise RunFailed(f"an exit actor could not start: {cause}; {_KNOBS[failure]}")
            raise ExitFailed(task.exit, work.round, node, cause, _KNOBS[failure])
        self._workers.remove(task.worker)
        ray.kill(task.worker.actor)
        self._workers.append(self._new_worker(task.worker.slot))
        if task.exit != _NO_EXIT:
            work.queue.appendleft(task.exit)
            work.notes.append(f"exit {task.exit + 1} retried in round {work.round}: {cause} on {node}")


def room(resources: ResourceConfig) -> int:
    """How many exit actors the cluster's nodes can hold beside the driver; at least 1.

    Raises:
        ResourceError: no node could ever hold one, and none is waited for.
    """
    if resources.wait_for_resources_s > 0:
        return 1 << 16  # nodes may still come
    fits = fitting(resources.cpus_per_exit, resources.gpus_per_exit or 0)
    if not fits:
        raise ResourceError(
            f"no node of the cluster can hold an exit actor ({_asked(resources)}): lower "
            "resources.cpus_per_exit or resources.gpus_per_exit, or add nodes and set "
            "resources.wait_for_resources_s"
        )
    driver_takes = resources.driver_cpus / resources.cpus_per_exit if resources.cpus_per_exit else 0
    return max(1, fits - math.ceil(driver_takes))


def _asked(resources: ResourceConfig) -> str:
    return f"{resources.cpus_per_exit:g} CPUs, {resources.gpus_per_exit or 0:g} GPUs"


def fetch(ref: Any, limit: float) -> Any:
    """The value of ``ref``, waited for ``limit`` seconds at most.

    Raises:
        RaygfError: the remote code raised it on purpose; it comes back as itself, not wrapped by Ray.
        RayError: in one of its forms: the wait ran out, the process was lost, another error in the code.
    """
    try:
        return ray.get(ref, timeout=limit)
    except RayTaskError as error:
        if isinstance(error.cause, RaygfError):
            raise error.cause from None
        raise


def _fetch(ref: Any) -> Any:
    """The value of a finished call."""
    try:
        return fetch(ref, _FETCH_S)
    except GetTimeoutError as error:
        raise RayError(f"the result could not be fetched within {_FETCH_S:.0f} s") from error


def _cause(error: BaseException) -> str:
    inner = error.cause if isinstance(error, RayTaskError) else error
    lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
    return f"{type(inner).__name__}: {lines[0] if lines else ''}".rstrip(": ")

"""Training the exits on a pool of identical Ray actors."""

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from time import monotonic, perf_counter
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayError

from raygf.compute import EXIT_KNOBS, sizes
from raygf.config.run import RunConfig
from raygf.data.base import Dataset
from raygf.errors import ExitFailed, NonFiniteError, PeersLost, RunFailed
from raygf.on_ray.cluster import fetch
from raygf.on_ray.faults import Failure, cause_of, deadline_s, failure_of, may_retry
from raygf.on_ray.placement import Bundles
from raygf.on_ray.pool import ExitPool, MakeTrainer, RemoteShares, ShareLost, Worker
from raygf.records import Notify, ignore
from raygf.training.exit_trainer import Executor, ExitTrainer, ExitUpdate, PassTask, Trained
from raygf.training.network import NetworkState, Vector
from raygf.training.shares import FusionShares

T = TypeVar("T")

_TICK_S = 1.0
_FETCH_S = 120.0
_PATIENCE_S = 30.0
"""Seconds that replicas wait for an actor that is starting, before one actor does the work of all."""
_CLOSE_S = 30.0

_KNOBS = {
    Failure.LOST: "allow more retries with resources.max_failures",
    Failure.STUCK: "give it more time with resources.exit_timeout_s",
    Failure.MEMORY: EXIT_KNOBS,
    Failure.RAISED: "this would happen again, so it was not retried",
}


@dataclass(eq=False)
class _Task:
    """One exit's training, under way since (``monotonic``); without an ``exit``, other work of the worker.

    ``what``: that work, for people. ``unit``: the tasks of all replicas that share the training.
    """

    exit: int | None
    worker: Worker
    since: float = 0.0
    what: str = "an exit actor could not start"
    ref: Any = None
    unit: list["_Task"] = field(default_factory=list)


@dataclass
class _Round:
    """What a round still has to do and what has come back. Round 0 is the start of the pool."""

    round: int
    exits: int
    state: Any
    momenta: Sequence[Vector | None]
    parameters: int
    queue: deque[int]
    running: dict[Any, _Task] = field(default_factory=dict)
    updates: dict[int, ExitUpdate] = field(default_factory=dict)
    handed_in: dict[int, Any] = field(default_factory=dict)  # the updates in the object store
    diverged: dict[int, NonFiniteError] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    @property
    def over(self) -> bool:
        """Whether every exit has come to its end."""
        return len(self.updates) + len(self.diverged) == self.exits


class RayExecutor(Executor):
    """A pool of ``actors`` exit actors. Any free actor takes any exit; a lost one is replaced."""

    def __init__(
        self,
        config: RunConfig,
        dataset: Dataset,
        exits: int,
        trainer: MakeTrainer = ExitTrainer,
        bundles: Bundles | None = None,
        notify: Notify = ignore,
    ) -> None:
        """Start the actors and wait for the first; each makes a ``trainer`` of its own.

        With ``bundles``, every actor goes into one of theirs, and there are no more actors than those.
        ``notify`` is called when the cluster has no room and that is waited for.
        """
        self._config = config
        self._resources = config.resources
        self._slowest: float | None = None
        self._lasted: dict[int, float] = {}
        self._begun: tuple[_Round, Future[None]] | None = None
        self._closed = False
        self._trained: _Round | None = None
        seats = config.resources.seats(exits)
        size = min(config.resources.actors or seats, seats)
        self._pool = ExitPool(config, dataset, size, trainer, bundles, notify)
        start = _Round(0, exits, None, [], 0, deque())
        while not self._pool.ready():  # the others join when they can
            self._collect(start)

    def begin(self, state: NetworkState, round: int, momenta: Sequence[Vector | None]) -> None:
        """As ``Executor.begin``. The state is broadcast by one ``ray.put``."""
        self._trained = None  # its updates may leave the object store
        queue = deque(longest_first(len(momenta), self._lasted))
        work = _Round(round, len(momenta), ray.put(state), momenta, state.vector.size, queue)
        # In a thread of its own: while the driver evaluates, an actor that is free gets its next exit.
        threads = ThreadPoolExecutor(1, "exits")
        self._begun = work, threads.submit(self._train_all, work)
        threads.shutdown(wait=False)

    def train(self, state: NetworkState, round: int, momenta: Sequence[Vector | None]) -> Trained:
        """As ``Executor.train``."""
        started = perf_counter()
        if self._begun is None:
            self.begin(state, round, momenta)
        assert self._begun is not None
        (work, training), self._begun = self._begun, None
        assert work.round == round
        broadcast = perf_counter() - started
        training.result()
        if work.diverged:
            raise work.diverged[min(work.diverged)]
        updates = tuple(work.updates[exit] for exit in range(work.exits))
        self._lasted = {update.exit: update.seconds for update in updates}
        self._trained = work
        waited = perf_counter() - started - broadcast
        longest = min(waited, max(self._lasted.values()))  # it may have begun before
        return Trained(updates, broadcast, longest, waited - longest, tuple(work.notes))

    def fuse(self, task: PassTask, run: Callable[[FusionShares], T]) -> tuple[T, tuple[str, ...]]:
        """As ``Executor.fuse``, on the actors that are ready; fewer than shares run several each."""
        trained = self._trained
        assert trained is not None and trained.round == task.round
        work = _Round(task.round, 0, None, [], trained.parameters, deque())
        while True:
            while not (ready := self._pool.ready()):
                self._collect(work)
            limit = deadline_s(self._slowest, self._resources.exit_timeout_s)
            shares = RemoteShares(ready[: self._config.fusion.shards], limit)
            updates = [trained.handed_in[exit] for exit in range(trained.exits)]
            try:
                shares.start(self._config.fusion.shards, trained.state, task, updates)
                return run(shares), tuple(work.notes)
            except ShareLost as lost:
                what = f"round {task.round}: a share of the fusion pass was lost"
                self._fail_by(lost.error, _Task(None, lost.worker, what=what), work)

    def close(self) -> None:
        """End the actors."""
        self._closed = True
        if self._begun is not None:
            wait([self._begun[1]], timeout=_CLOSE_S)
        self._pool.close()

    def _train_all(self, work: _Round) -> None:
        while not work.over and not self._closed:
            self._assign(work)
            self._collect(work)

    def _assign(self, work: _Round) -> None:
        while work.queue:
            busy = {id(task.worker) for task in work.running.values()}
            free = [worker for worker in self._pool.ready() if id(worker) not in busy]
            seats = self._seats(work.queue[0])
            if len(free) < seats:
                return
            self._train(work.queue.popleft(), free[:seats], work)

    def _seats(self, exit: int) -> int:
        """Actors that ``exit`` is trained on: its replicas, or one that does the work of all of them.

        Those that are starting are waited for, but not for long.
        """
        wanted, now = self._resources.replicas_of(exit), monotonic()
        coming = sum(now - worker.since < _PATIENCE_S for worker in self._pool.starting().values())
        return wanted if len(self._pool.ready()) + coming >= wanted else 1

    def _train(self, exit: int, workers: Sequence[Worker], work: _Round) -> None:
        training = (work.state, exit, work.exits, work.round, work.momenta[exit])
        tasks = [_Task(exit, worker, monotonic()) for worker in workers]
        meeting = workers[0].actor.meet.remote() if len(workers) > 1 else None
        for rank, task in enumerate(tasks):
            task.unit = tasks
            task.ref = task.worker.actor.train.remote(meeting, rank, len(workers), *training)
            work.running[task.ref] = task

    def _collect(self, work: _Round) -> None:
        """Wait for something to happen, and act on all that has."""
        starting = self._pool.starting()
        waited = [*work.running, *starting]
        ray.wait(waited, num_returns=1, timeout=_TICK_S)
        done, _ = ray.wait(waited, num_returns=len(waited), timeout=0)  # all, before any is called late
        for ref in done:
            if ref in starting:
                self._admit(starting[ref], work)
            elif ref in work.running:  # else it is a replica of one that has failed
                self._finish(ref, work)
        self._end_overdue(work)
        if work.running or self._pool.ready():
            self._pool.busy()
        else:
            self._pool.stalled(work.round)

    def _end_overdue(self, work: _Round) -> None:
        """Retry trainings that are past their deadline."""
        limit, now = deadline_s(self._slowest, self._resources.exit_timeout_s), monotonic()
        for ref, task in list(work.running.items()):
            if ref in work.running and now - task.since > limit:
                del work.running[ref]
                self._fail(task, Failure.STUCK, f"no result within {limit:.0f} s", work)

    def _admit(self, worker: Worker, work: _Round) -> None:
        """An actor is ready, or could not start."""
        try:
            worker.place = _fetch(worker.started)
        except RayError as error:
            self._fail_by(error, _Task(None, worker), work)

    def _finish(self, ref: Any, work: _Round) -> None:
        """A training has ended: keep its update, or act on its failure."""
        task = work.running.pop(ref)
        assert task.exit is not None
        try:
            update = _fetch(ref)
            if update is not None:
                work.updates[task.exit], work.handed_in[task.exit] = update, ref
            self._slowest = max(self._slowest or 0.0, monotonic() - task.since)
        except NonFiniteError as error:
            if self._config.on_divergence == "stop":
                raise
            work.diverged[task.exit] = error  # the others end first: the next round finds the actors free
        except (RayError, PeersLost) as error:
            lost = isinstance(error, RayError) or not any(other.ref in work.running for other in task.unit)
            if lost:  # else the one that was lost says why
                self._fail_by(error, task, work)

    def _fail_by(self, error: RayError | PeersLost, task: _Task, work: _Round) -> None:
        """Act on what ``error`` says."""
        known = sizes(self._config.batch_size, work.parameters)
        self._fail(task, failure_of(error), cause_of(error, known), work)

    def _fail(self, task: _Task, failure: Failure, cause: str, work: _Round) -> None:
        """Retry the exit on a new actor, or end the run."""
        whose = f"actor {task.worker.slot}" if task.exit is None else f"exit {task.exit}"
        work.failures[whose] += 1
        place = task.worker.place or "unknown"
        if not may_retry(failure, work.failures[whose], self._resources.max_failures):
            if task.exit is None:
                raise RunFailed(f"{task.what}: {cause}; {_KNOBS[failure]}")
            raise ExitFailed(task.exit, work.round, place, cause, _KNOBS[failure])
        unfinished = [other for other in task.unit if work.running.pop(other.ref, None)]
        for each in (task, *unfinished):
            self._pool.replace(each.worker)
        if task.exit in work.updates:
            return  # the first of its replicas had ended already
        if task.exit is not None:
            work.queue.appendleft(task.exit)
        who = "fusion pass" if task.exit is None else f"exit {task.exit + 1}"
        work.notes.append(f"{who} retried in round {work.round}: {cause} on {place}")


def longest_first(exits: int, seconds: Mapping[int, float]) -> list[int]:
    """The exits, those first whose training lasted longest; where that is not known, the deepest first.

    Then fewer actors than exits end almost together (Graham's rule, "Bounds on Multiprocessing Timing
    Anomalies", 1969).
    """
    return sorted(range(exits), key=lambda exit: (seconds.get(exit, 0.0), exit), reverse=True)


def _fetch(ref: Any) -> Any:
    """The value of a finished call."""
    try:
        return fetch(ref, _FETCH_S)
    except GetTimeoutError as error:
        raise RayError(f"the result could not be fetched within {_FETCH_S:.0f} s") from error

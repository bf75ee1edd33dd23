"""Ray Train's side of a data-parallel run: what its workers run, and the actor that starts them.

Every worker of Ray Train's ``TorchTrainer`` runs the plain driver; the first one evaluates, writes
checkpoints and sends what the submitting process waits for. Ray Train places the workers, joins them in a
process group of torch.distributed and ends them all when one fails.
"""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayError, RayTaskError

from raygf.config.run import RunConfig
from raygf.errors import DriverLost, RaygfError, ResourceError, RunFailed
from raygf.on_ray.cluster import fitting
from raygf.on_ray.driver import lost_nodes
from raygf.on_ray.executor import RayExecutor
from raygf.on_ray.faults import cause_of, deadline_s, failure_of, fetch, node_of
from raygf.on_ray.placement import START_S, Late, Waiting
from raygf.on_ray.restarts import RestartedDriver
from raygf.records import Notify, RoundRecord, RunEnd, RunStart, ignore
from raygf.rounds.driver import Driver
from raygf.storage.lock import Owner
from raygf.training.peers import TorchPeers

PREPARE_S = 1800.0
CLOSE_S = 30.0

_ENVIRONMENT = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean the same as everywhere else
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # by default a failure is noticed after 2 s
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # it would start the workers again, from the beginning
}
"""For Ray Train, which reads it where ``fit`` is called and hands it on to its controller and workers."""

Loop = Callable[[dict[str, Any]], None]
"""What a worker runs; see ``work``."""


@dataclass(frozen=True)
class Joined:
    """A worker runs; ``actor`` is its handle, by which it can be ended."""

    rank: int
    actor: Any


@dataclass(frozen=True)
class Said:
    """What a worker has to say to people, at once."""

    text: str


class TrainHost:
    """Runs Ray Train, and holds the mail between the first worker and the submitting process.

    An actor with several threads. With it end Ray Train's controller, which it owns, and the workers.
    """

    def __init__(self) -> None:
        os.environ.update(_ENVIRONMENT)
        self._mail: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._run_ids: queue.SimpleQueue[str] = queue.SimpleQueue()

    def ready(self) -> bool:
        """Answered once the actor runs."""
        return True

    def fit(self, config: RunConfig, loop: Loop, owner: Owner) -> None:
        """Run the workers; returns when all of them are through.

        Raises:
            DriverLost: a worker was lost.
            TrainingFailedError: a worker raised an error.
        """
        from ray.train import WorkerGroupError

        job = {"config": config, "owner": owner, "host": ray.get_runtime_context().current_actor}
        try:
            with TemporaryDirectory(prefix="raygf-") as folder:
                _trainer(loop, job, folder).fit()
        except WorkerGroupError as error:
            raise _lost(error.worker_failures) or error from None

    def send(self, message: Any) -> None:
        """Take a worker's message: Joined, Said, RunStart, RoundRecord, RunEnd, or an error to be raised."""
        self._mail.put(message)

    def receive(self, limit: float) -> list[Any]:
        """The oldest message; nothing if none comes within ``limit`` seconds."""
        with suppress(queue.Empty):
            return [self._mail.get(timeout=limit)]
        return []

    def go(self, run_id: str) -> None:
        """Let the first worker begin its rounds."""
        self._run_ids.put(run_id)

    def wait_for_run_id(self) -> str:
        """What ``go`` was given, once it has been called."""
        return self._run_ids.get()


def _trainer(loop: Loop, job: dict[str, Any], folder: str) -> Any:
    """Ray Train's trainer; ``folder``: for its own files, nothing that is needed later."""
    from ray.train import RunConfig as TrainRunConfig
    from ray.train import ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    config: RunConfig = job["config"]
    resources = config.resources
    gpus = resources.driver_gpus or 0
    timeout_s = int(deadline_s(None, resources.exit_timeout_s)) + 1
    # NCCL refuses two workers on one GPU.
    backend = "nccl" if gpus >= 1 and config.compute.device != "cpu" else "gloo"
    return TorchTrainer(
        loop,
        train_loop_config=job,
        torch_config=TorchConfig(backend=backend, timeout_s=timeout_s),
        scaling_config=ScalingConfig(
            num_workers=resources.workers or 1,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": resources.driver_cpus, **({"GPU": gpus} if gpus else {})},
        ),
        run_config=TrainRunConfig(name="train", storage_path=folder, failure_config=_never_again()),
    )


def _never_again() -> Any:
    """Ray Train's failure configuration for: a lost worker ends all of them. raygf starts them again."""
    from ray.train import FailureConfig

    never = FailureConfig(max_failures=0)
    if hasattr(never, "max_preemption_failures"):  # a limit of its own in newer versions of Ray
        never.max_preemption_failures = 0
    return never


def work(job: dict[str, Any]) -> None:
    """One worker of Ray Train, from start to end.

    Args:
        job: ``config``, the RunConfig, ``owner``, and ``host``, the TrainHost's handle.
    """
    host, peers = job["host"], TorchPeers()
    _tell(host, Joined(peers.rank, ray.get_runtime_context().current_actor))
    driver = Driver(
        job["config"], RayExecutor, peers, owner=job["owner"], notify=lambda text: _tell(host, Said(text))
    )
    try:
        start = driver.prepare()
        run_id = ""
        if peers.first:
            _tell(host, start)
            run_id = ray.get(host.wait_for_run_id.remote(), timeout=PREPARE_S)
        for record in driver.rounds(run_id):
            if peers.first:
                _tell(host, record)
        if peers.first:
            _tell(host, driver.end())
    except RaygfError as error:
        _tell(host, error)  # before Ray Train has wrapped it and ended the others
        raise
    finally:
        driver.close()


def _tell(host: Any, message: Any) -> None:
    ray.get(host.send.remote(message), timeout=CLOSE_S)


def _lost(failures: dict[int, Exception]) -> DriverLost | None:
    """The first worker whose process was lost; None if all failures are errors in the code.

    Args:
        failures: what Ray Train reports of each worker, by rank.
    """
    for rank, failure in sorted(failures.items()):
        cause = getattr(failure, "health_check_failure", failure)
        if isinstance(cause, RayError) and not isinstance(cause, RayTaskError):
            return driver_lost(cause, f"worker {rank + 1} was lost")
    return None


def driver_lost(error: RayError, what: str) -> DriverLost:
    """``error`` as the loss of the driver; ``what`` begins the sentence."""
    silent = isinstance(error, ActorUnavailableError)
    return DriverLost(f"{what}: {cause_of(error)}", failure_of(error).name, node_of(error), silent)


_TICK_S = 1.0


class TrainDriver(RestartedDriver):
    """Looks like ``Driver``. When a worker is lost, all are started again from the last checkpoint."""

    def __init__(self, config: RunConfig, loop: Loop = work, notify: Notify = ignore) -> None:
        """Begin to start the workers; each runs ``loop``. ``notify`` is told at once of trouble."""
        start = partial(TrainWorkers, loop=loop, owner=Owner.new(), notify=notify)
        super().__init__(start, config, notify, lost_nodes)


class TrainWorkers:
    """The handle of one group of workers; waits have a limit, raygf's errors come back as themselves."""

    def __init__(self, config: RunConfig, loop: Loop, owner: Owner, notify: Notify) -> None:
        """Begin to start the workers."""
        self._resources = config.resources
        self._notify = notify
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
        waiting = Waiting(f"{count} workers ({self._size()} each)", wait_s, self._fits, self._notify)
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
            self._notify(message.text)
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

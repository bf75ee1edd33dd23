"""A within-step method trained by several workers under Ray Train, and its handle in the submitting process.

Every worker of Ray Train's ``TorchTrainer`` runs the plain driver; the first one evaluates, writes
checkpoints and sends what the submitting process waits for. Ray Train places the workers, joins them in a
process group of torch.distributed and ends them all when one fails. Checkpoints and records are raygf's own.
"""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from raygf.config import RunConfig
from raygf.driver import Driver
from raygf.errors import RaygfError, ResourceError, RunFailed
from raygf.peers import TorchPeers
from raygf.ray_executor import RayExecutor, fetch
from raygf.records import RoundRecord, RunEnd, RunStart

_START_S = 300.0
_PREPARE_S = 1800.0
_CLOSE_S = 30.0
_TICK_S = 1.0

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

    def fit(self, config: RunConfig, loop: Loop) -> None:
        """Run the workers; returns when all of them are through.

        Raises:
            RunFailed: a worker was lost.
            TrainingFailedError: a worker raised an error.
        """
        from ray.train import WorkerGroupError

        host = ray.get_runtime_context().current_actor
        try:
            with TemporaryDirectory(prefix="raygf-") as folder:
                _trainer(loop, config, host, folder).fit()
        except WorkerGroupError as error:
            raise _lost(error.worker_failures) or error from None

    def send(self, message: Any) -> None:
        """Take a worker's message: ``Joined``, a RunStart, RoundRecord, RunEnd, or an error to be raised."""
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


def _trainer(loop: Loop, config: RunConfig, host: Any, folder: str) -> Any:
    """Ray Train's trainer; ``folder``: for its own files, nothing that is needed later."""
    from ray.train import RunConfig as TrainRunConfig
    from ray.train import ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    resources = config.resources
    gpus = resources.driver_gpus or 0
    # NCCL refuses two workers on one GPU.
    backend = "nccl" if gpus >= 1 and config.compute.device != "cpu" else "gloo"
    return TorchTrainer(
        loop,
        train_loop_config={"config": config, "host": host},
        torch_config=TorchConfig(backend=backend, timeout_s=int(resources.exit_timeout_s) + 1),
        scaling_config=ScalingConfig(
            num_workers=resources.workers or 1,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": resources.driver_cpus, **({"GPU": gpus} if gpus else {})},
        ),
        run_config=TrainRunConfig(name="train", storage_path=folder, failure_config=_never_again()),
    )


def _never_again() -> Any:
    """Ray Train's failure configuration for: a lost worker ends the run, which can be resumed."""
    from ray.train import FailureConfig

    never = FailureConfig(max_failures=0)
    if hasattr(never, "max_preemption_failures"):  # a limit of its own in newer versions of Ray
        never.max_preemption_failures = 0
    return never


def work(job: dict[str, Any]) -> None:
    """One worker of Ray Train, from start to end.

    Args:
        job: ``config``, the RunConfig, and ``host``, the TrainHost's handle.
    """
    host, peers = job["host"], TorchPeers()
    _tell(host, Joined(peers.rank, ray.get_runtime_context().current_actor))
    try:
        driver = Driver(job["config"], RayExecutor, peers)
        start = driver.prepare()
        run_id = ""
        if peers.first:
            _tell(host, start)
            run_id = ray.get(host.wait_for_run_id.remote(), timeout=_PREPARE_S)
        for record in driver.rounds(run_id):
            if peers.first:
                _tell(host, record)
        if peers.first:
            _tell(host, driver.end())
    except RaygfError as error:
        _tell(host, error)  # before Ray Train has wrapped it and ended the others
        raise


def _tell(host: Any, message: Any) -> None:
    ray.get(host.send.remote(message), timeout=_CLOSE_S)


class TrainDriver:
    """Looks like ``Driver``; every wait has a limit, and raygf's errors come back as a worker raised them."""

    def __init__(self, config: RunConfig, loop: Loop = work) -> None:
        """Begin to start the workers; each runs ``loop``."""
        self._resources = config.resources
        self._host = ray.remote(TrainHost).options(num_cpus=0, max_concurrency=8).remote()
        self._fit = self._host.fit.remote(config, loop)
        self._workers: list[Any] = []

    def prepare(self) -> RunStart:
        """See ``Driver.prepare``.

        Raises:
            ResourceError: the workers could not start.
        """
        count = self._resources.workers or 1
        _get(self._host.ready.remote(), "starting", _START_S)
        while True:
            started = len(self._workers) >= count
            limit = _PREPARE_S if started else _START_S + self._resources.wait_for_resources_s
            late = _silent(limit, "loading data and network") if started else self._busy(limit)
            message = self._next(limit, late)
            if isinstance(message, RunStart):
                return message
            self._workers.append(message.actor)

    def _busy(self, limit: float) -> ResourceError:
        cpus, gpus = self._resources.driver_cpus, self._resources.driver_gpus or 0
        return ResourceError(
            f"{self._resources.workers} workers ({cpus:g} CPUs, {gpus:g} GPUs each) could not start within "
            f"{limit:.0f} s: the cluster is busy; free it, lower resources.workers, or raise "
            "resources.wait_for_resources_s"
        )

    def rounds(self, run_id: str) -> Iterator[RoundRecord]:
        """See ``Driver.rounds``; the workers train on while a record is read."""
        _get(self._host.go.remote(run_id), "starting the rounds")
        limit = 2 * self._resources.exit_timeout_s
        late = RunFailed(f"no round ended within {limit:.0f} s; raise resources.exit_timeout_s")
        while not isinstance(message := self._next(limit, late), RunEnd):
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
            ray.wait([self._fit], timeout=_CLOSE_S)
        ray.kill(self._host)

    def _next(self, limit: float, late: RaygfError) -> Any:
        """The next message; ``late`` is raised if none comes within ``limit`` seconds."""
        until = time.monotonic() + limit
        while time.monotonic() < until:
            over, _ = ray.wait([self._fit], timeout=0)  # asked first: no message is sent after the end
            messages = _get(self._host.receive.remote(0.0 if over else _TICK_S), "training")
            if messages and isinstance(messages[0], RaygfError):
                raise messages[0]
            if messages:
                return messages[0]
            if over:
                _get(self._fit, "training")
                raise RunFailed("the workers ended before the run; the last checkpoint stands")
        raise late


def _silent(limit: float, doing: str) -> RunFailed:
    return RunFailed(f"the workers did not answer within {limit:.0f} s while {doing}")


def _lost(failures: dict[int, Exception]) -> RunFailed | None:
    """One line on the first worker whose process was lost; None if all failures are errors in the code.

    Args:
        failures: what Ray Train reports of each worker, by rank.
    """
    for rank, failure in sorted(failures.items()):
        cause = getattr(failure, "health_check_failure", failure)
        if isinstance(cause, RayError) and not isinstance(cause, RayTaskError):
            first = str(cause).strip().split("\n")[0].rstrip(".")
            return RunFailed(f"worker {rank + 1} was lost: {first}; the last checkpoint stands")
    return None


def _get(ref: Any, doing: str, limit: float = _CLOSE_S) -> Any:
    try:
        return fetch(ref, limit)
    except RayTaskError:
        raise
    except GetTimeoutError:
        raise _silent(limit, doing) from None
    except RayError as error:
        first = str(error).strip().split("\n")[0]
        raise RunFailed(f"Ray Train was lost while {doing}: {first}; the last checkpoint stands") from None

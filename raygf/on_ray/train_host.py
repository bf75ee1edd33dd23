"""Ray Train's side of a data-parallel run: what its workers run, and the actor that starts them.

Every worker of Ray Train's ``TorchTrainer`` runs the plain driver; the first one evaluates, writes
checkpoints and sends what the submitting process waits for. Ray Train places the workers, joins them in a
process group of torch.distributed and ends them all when one fails.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError

from raygf.config import RunConfig
from raygf.driver import Driver
from raygf.errors import DriverLost, RaygfError
from raygf.on_ray.executor import RayExecutor
from raygf.on_ray.failures import cause_of, failure_of, node_of
from raygf.retry import deadline_s
from raygf.storage.owner import Owner
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
        job["config"], RayExecutor, peers, owner=job["owner"], say=lambda text: _tell(host, Said(text))
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

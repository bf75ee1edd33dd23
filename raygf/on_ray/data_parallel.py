"""Ray Train's side of a data-parallel run: what its workers run, and the actor that starts them.

Every worker of Ray Train's ``TorchTrainer`` runs the plain driver; the first one evaluates, writes
checkpoints and sends what the submitting process waits for. Ray Train places the workers, joins them in a
process group of torch.distributed and ends them all when one fails.
"""

import os
from collections import deque
from collections.abc import Callable
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from raygf.config.run import RunConfig
from raygf.errors import DriverLost, RaygfError
from raygf.on_ray.driver import CLOSE_S, PREPARE_S, Mailbox, Over, ProcessHandle, Started, drive, driver_lost
from raygf.on_ray.executor import RayExecutor
from raygf.on_ray.faults import deadline_s
from raygf.on_ray.placement import START_S, driver_bundle, fits, idle_nodes, size
from raygf.on_ray.restarts import RestartedDriver
from raygf.records import Notify, RunStart, ignore
from raygf.rounds.driver import Driver
from raygf.storage.lock import Owner
from raygf.training.peers import TorchPeers

_ENVIRONMENT = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean the same as everywhere else
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # by default a failure is noticed after 2 s
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # it would start the workers again, from the beginning
}
"""For Ray Train, which reads it where ``fit`` is called and hands it on to its controller and workers."""

Loop = Callable[[dict[str, Any]], None]
"""What a worker runs; see ``work``."""


class TrainHost(Mailbox):
    """Runs Ray Train, and holds the mail between the first worker and the submitting process.

    With it end Ray Train's controller, which it owns, and the workers.
    """

    def __init__(self) -> None:
        super().__init__()
        os.environ.update(_ENVIRONMENT)

    def fit(self, config: RunConfig, loop: Loop, owner: Owner) -> None:
        """Run the workers; returns when all of them have ended.

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
        finally:
            self.send(Over())


def _trainer(loop: Loop, job: dict[str, Any], folder: str) -> Any:
    """Ray Train's trainer; ``folder``: for its own files, nothing that is needed later."""
    from ray.train import FailureConfig, ScalingConfig
    from ray.train import RunConfig as TrainRunConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    never = FailureConfig(max_failures=0)  # a lost worker ends all of them; raygf starts them again
    if hasattr(never, "max_preemption_failures"):  # a limit of its own in newer versions of Ray
        never.max_preemption_failures = 0
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
        run_config=TrainRunConfig(name="train", storage_path=folder, failure_config=never),
    )


def work(job: dict[str, Any]) -> None:
    """One worker of Ray Train, from start to end.

    Args:
        job: ``config``, the RunConfig, ``owner``, and ``host``, the TrainHost's handle.
    """
    host, peers = job["host"], TorchPeers()
    tell = partial(_tell, host)
    tell(Started(actor=ray.get_runtime_context().current_actor))
    driver = Driver(job["config"], RayExecutor, peers, owner=job["owner"], notify=tell)
    try:
        if peers.first:
            drive(driver, tell, lambda: str(ray.get(host.wait_for_run_id.remote(), timeout=PREPARE_S)))
        else:
            driver.prepare()
            deque(driver.rounds(""), maxlen=0)
    except RaygfError as error:
        tell(error)  # before Ray Train has wrapped it and ended the others
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
            return driver_lost(cause, f"worker {rank + 1} was lost: ")
    return None


class TrainDriver(RestartedDriver):
    """A run by workers of Ray Train. When one is lost, all are started again from the last checkpoint."""

    def __init__(self, config: RunConfig, loop: Loop = work, notify: Notify = ignore) -> None:
        """Begin to start the workers; each runs ``loop``. ``notify`` is called at once in case of trouble."""
        start = partial(TrainWorkers, loop=loop, owner=Owner.new(), notify=notify)
        super().__init__(start, config, notify)


class TrainWorkers(ProcessHandle):
    """One group of workers, from its start to its end. They train on while a record is read."""

    who = "the workers"
    lost = "Ray Train was lost: "
    knob = "resources.workers"

    def __init__(self, config: RunConfig, loop: Loop, owner: Owner, notify: Notify) -> None:
        """Begin to start the workers."""
        self._bundles = [driver_bundle(config.resources)] * (config.resources.workers or 1)
        host = ray.remote(TrainHost).options(num_cpus=0, max_concurrency=8).remote()
        run = host.fit.remote(config, loop, owner)
        what = f"{len(self._bundles)} workers ({size(self._bundles[0])} each)"
        super().__init__(config, notify, host, run, what)

    def prepare(self) -> RunStart:
        """As ``Driver.prepare``; workers are waited for as soon as the host runs, which needs no room."""
        ray.wait([self._mailbox.__ray_ready__.remote()], timeout=START_S)
        return super().prepare()

    def close(self) -> None:
        """End the workers, and let Ray Train take note of it and give its placement group back."""
        if self._end is None:
            for worker in self._started:
                ray.kill(worker.actor)
        if self._started:
            ray.wait([self._run], timeout=CLOSE_S)
        ray.kill(self._mailbox)

    def _fits(self) -> bool:
        return fits(self._bundles, idle_nodes())

    def _round_limit(self) -> float:
        return 2 * deadline_s(self._slowest, self._resources.exit_timeout_s)

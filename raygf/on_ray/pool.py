"""Exit actors: their processes are started, replaced and ended here, and room for them is waited for."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import GetTimeoutError, RayError
from torch import Tensor

from raygf.compute import torch_threads
from raygf.config.run import ResourceConfig, RunConfig
from raygf.data.base import Dataset
from raygf.errors import ResourceError, RunFailed
from raygf.fusion.fusion_pass import SharesHere, pass_batches
from raygf.on_ray.cluster import fetch
from raygf.on_ray.faults import deadline_s
from raygf.on_ray.placement import (
    Bundles,
    Waiting,
    driver_bundle,
    exit_bundle,
    fits,
    idle_nodes,
    size,
)
from raygf.records import Notify
from raygf.training.exit_trainer import ExitTrainer, ExitUpdate, PassTask
from raygf.training.network import Arrays, NetworkState, as_tensor, to_numpy
from raygf.training.peers import joined, meeting_place
from raygf.training.shares import ShareStep

MakeTrainer = Callable[[RunConfig, Dataset], ExitTrainer]


class ExitActor:
    """Trains exits, one at a time, and runs shares of fusion passes."""

    def __init__(self, make_trainer: MakeTrainer, config: RunConfig, dataset: Dataset) -> None:
        self._config = config
        self._make_trainer = partial(make_trainer, config, dataset)
        self._trainer: ExitTrainer
        self._shares: SharesHere

    def start(self) -> str:
        """Build the trainer and say where; not in the constructor, whose errors Ray does not hand on."""
        self._trainer = self._make_trainer()
        return f"{ray.util.get_node_ip_address()} (pid {os.getpid()})"

    def meet(self) -> str:
        """Let replicas meet here; returns the address."""
        self._meeting, address = meeting_place(ray.util.get_node_ip_address())
        return address

    def train(self, meeting: str | None, rank: int, count: int, *training: Any) -> ExitUpdate | None:
        """As ``ExitTrainer.train``; arrays in the state are read-only views of the object store.

        ``count`` replicas meet at ``meeting``, if there are several; only the first has the update.
        """
        train: Callable[..., ExitUpdate] = partial(self._trainer.train, *training)
        resources = self._config.resources
        if meeting is None:
            return train()
        cuda = (resources.gpus_per_exit or 0) >= 1 and self._config.compute.device != "cpu"
        limit = deadline_s(None, resources.exit_timeout_s)
        with joined(meeting, rank, count, "nccl" if cuda else "gloo", limit) as peers:
            update = train(peers=peers)
        return update if rank == 0 else None

    def start_pass(self, state: NetworkState, task: PassTask, ranks: list[int], *updates: ExitUpdate) -> None:
        """Begin with the shares ``ranks`` of a fusion pass over the exits' ``updates``."""
        trainer = self._trainer
        deltas = [trainer.whole(update).to(trainer.bound.compute.device) for update in updates]
        batches = pass_batches(self._config, trainer.batches, task.round)
        self._shares = SharesHere(self._config, trainer.bound, batches, state, deltas, task, ranks)

    def step_pass(self, weights: np.ndarray, learn: bool) -> list[ShareStep]:
        """As ``FusionShares.step``, on the CPU."""
        with torch_threads(self._config.resources.cpus_per_exit):
            steps = self._shares.step(torch.tensor(weights, device=self._trainer.bound.compute.device), learn)
        return [step.to("cpu") for step in steps]

    def end_pass(self) -> list[Arrays]:
        """The buffers of the shares."""
        buffers = self._shares.buffers()
        del self._shares
        return [{name: to_numpy(tensor) for name, tensor in share.items()} for share in buffers]


@dataclass
class Worker:
    """The ``slot``-th actor of the pool, started at ``since`` (``monotonic``); ``place``: once ready."""

    slot: int
    actor: Any
    started: Any
    since: float
    place: str = ""


class ExitPool:
    """As many actors as there is room for, ``most`` at most; a lost one is replaced by hand."""

    def __init__(
        self,
        config: RunConfig,
        dataset: Dataset,
        most: int,
        trainer: MakeTrainer,
        bundles: Bundles | None,
        notify: Notify,
    ) -> None:
        """Begin to start the actors. The data set is put into the object store once for all of them."""
        self._trainer = trainer
        self._bundles = bundles
        self._config = config
        self._resources = config.resources
        self.here = ray.get_runtime_context().get_node_id()
        what = f"an exit actor ({size(exit_bundle(config.resources))})"
        wait_s = config.resources.wait_for_resources_s
        self._waiting = Waiting(what, "resources.cpus_per_exit", wait_s, self._fits, notify)
        self.dataset = ray.put(dataset)
        count = room(config.resources, most, self.here) if bundles is None else min(most, len(bundles.exits))
        self.workers = [self._start(slot) for slot in range(count)]

    def starting(self) -> dict[Any, Worker]:
        """The workers that are not ready yet, by the reference that tells when they are."""
        return {worker.started: worker for worker in self.workers if not worker.place}

    def ready(self) -> list[Worker]:
        """The workers that can train."""
        return [worker for worker in self.workers if worker.place]

    def replace(self, worker: Worker) -> None:
        """End ``worker`` and start another in its place."""
        self.workers.remove(worker)
        ray.kill(worker.actor)
        self.workers.append(self._start(worker.slot))

    def close(self) -> None:
        """End the actors."""
        for worker in self.workers:
            ray.kill(worker.actor)
        self.workers = []

    def busy(self) -> None:
        """To be called while there is an actor that can train, or does."""
        self._waiting.over()

    def stalled(self, round: int) -> None:
        """To be called again and again while there is none.

        Raises:
            ResourceError, RunFailed: none could start in time, before the first ``round`` or in one.
        """
        late = self._waiting.late(max(worker.since for worker in self.workers))
        if late and round:
            raise RunFailed(f"round {round}: {late}; the last checkpoint stands")
        if late:
            raise ResourceError(late)

    def _start(self, slot: int) -> Worker:
        resources = self._resources
        placed = {} if self._bundles is None else self._bundles.options(self._bundles.exits[slot])
        remote = ray.remote(ExitActor).options(
            num_cpus=resources.cpus_per_exit, num_gpus=resources.gpus_per_exit or 0, **placed
        )
        actor = remote.remote(self._trainer, self._config, self.dataset)
        return Worker(slot, actor, actor.start.remote(), monotonic())

    def _fits(self) -> bool:
        """Whether the living nodes can hold an actor beside the driver, which runs here."""
        resources = self._resources
        beside = {self.here: driver_bundle(resources)}
        return self._bundles is not None or fits([exit_bundle(resources)], idle_nodes(beside))


class ShareLost(Exception):
    """The actor ``worker`` did not do its part of a pass, because of ``error``."""

    def __init__(self, worker: Worker, error: RayError) -> None:
        super().__init__(str(error))
        self.worker, self.error = worker, error


class RemoteShares:
    """All shares of a pass, divided among ``workers``. A ``raygf.training.shares.FusionShares``.

    Every call raises ShareLost if an actor is lost, or has not answered within ``limit`` seconds.
    """

    def __init__(self, workers: Sequence[Worker], limit: float) -> None:
        self._workers = workers
        self._limit = limit

    def start(self, shards: int, state: Any, task: PassTask, updates: Sequence[Any]) -> None:
        """Begin a pass of so many shares from ``state`` and the exits' ``updates``, in the object store."""
        ranks = torch.arange(shards).tensor_split(len(self._workers))
        seats = zip(self._workers, ranks, strict=True)
        self._ask([w.actor.start_pass.remote(state, task, mine.tolist(), *updates) for w, mine in seats])

    def step(self, weights: Tensor, learn: bool) -> list[ShareStep]:
        """As ``FusionShares.step``."""
        array = weights.cpu().numpy()
        answers = self._ask([worker.actor.step_pass.remote(array, learn) for worker in self._workers])
        return [step.to(weights.device) for steps in answers for step in steps]

    def buffers(self) -> list[dict[str, Tensor]]:
        """As ``FusionShares.buffers``, on the CPU."""
        answers = self._ask([worker.actor.end_pass.remote() for worker in self._workers])
        return [{name: as_tensor(a) for name, a in share.items()} for shares in answers for share in shares]

    def _ask(self, refs: list[Any]) -> list[Any]:
        """What the workers answer, in their order."""
        ray.wait(refs, num_returns=len(refs), timeout=self._limit)
        answers = []
        for worker, ref in zip(self._workers, refs, strict=True):
            try:
                answers.append(fetch(ref, 0.0))
            except GetTimeoutError:
                late = GetTimeoutError(f"no answer within {self._limit:.0f} s")
                raise ShareLost(worker, late) from None
            except RayError as error:
                raise ShareLost(worker, error) from error
        return answers


def room(resources: ResourceConfig, most: int, here: str) -> int:
    """How many exit actors, ``most`` at most, the cluster can hold beside the driver; at least 1.

    Args:
        here: id of the node that the driver runs on.

    Raises ResourceError: no node could ever hold one, and none is waited for.
    """
    if resources.wait_for_resources_s > 0:
        return most  # nodes may still come
    bundle = exit_bundle(resources)
    if not fits([bundle], idle_nodes()):
        raise ResourceError(
            f"no node of the cluster can hold an exit actor ({size(bundle)}): lower resources.cpus_per_exit "
            "or resources.gpus_per_exit, or add nodes and set resources.wait_for_resources_s"
        )
    nodes = idle_nodes({here: driver_bundle(resources)})
    return next((count for count in range(most, 1, -1) if fits([bundle] * count, nodes)), 1)

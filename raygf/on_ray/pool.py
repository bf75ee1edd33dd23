"""The processes of the exit actors: starting, replacing and ending them, and waiting for room for them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import ray
from ray.exceptions import GetTimeoutError, RayError

from raygf.config.run import ResourceConfig, RunConfig
from raygf.data.base import Dataset
from raygf.errors import ResourceError, RunFailed
from raygf.on_ray.cluster import fitting
from raygf.on_ray.faults import fetch
from raygf.on_ray.placement import Bundles, Late, Waiting
from raygf.records import Notify
from raygf.training.exit_trainer import ExitUpdate
from raygf.training.network import NetworkState, Vector


class Trainer(Protocol):
    """What an exit actor runs; see ``ExitTrainer``."""

    def train(
        self, state: NetworkState, exit: int, exits: int, round: int, momentum: Vector | None
    ) -> ExitUpdate:
        """See ``ExitTrainer.train``."""
        ...


MakeTrainer = Callable[[RunConfig, Dataset], Trainer]


@dataclass(frozen=True)
class Place:
    """Where an actor runs: the ``node``'s id, and for people its address and process."""

    node: str
    shown: str


def this_place() -> Place:
    """Where the actor that asks runs."""
    node = ray.get_runtime_context().get_node_id()
    return Place(node, f"{ray.util.get_node_ip_address()} (pid {os.getpid()})")


class ExitActor:
    """Trains exits, one at a time."""

    def __init__(self, make_trainer: MakeTrainer, config: RunConfig, dataset: Dataset) -> None:
        self._make_trainer = partial(make_trainer, config, dataset)
        self._trainer: Trainer

    def start(self) -> Place:
        """Build the trainer and say where; not in the constructor, whose errors Ray does not hand on."""
        self._trainer = self._make_trainer()
        return this_place()

    def train(
        self, state: NetworkState, exit: int, exits: int, round: int, momentum: Vector | None
    ) -> ExitUpdate:
        """See ``ExitTrainer.train``; arrays in ``state`` are read-only views of the object store."""
        return self._trainer.train(state, exit, exits, round, momentum)


_FETCH_S = 120.0


@dataclass
class Worker:
    """One actor of the pool, the ``slot``-th, started at ``since``; without a ``place`` until it is ready."""

    slot: int
    actor: Any
    started: Any
    since: float
    place: Place | None = None


class ExitPool:
    """``size`` actors, or as many as ``bundles`` has; a lost one is replaced by hand."""

    def __init__(
        self,
        config: RunConfig,
        dataset: Dataset,
        size: int,
        trainer: MakeTrainer,
        bundles: Bundles | None,
        notify: Notify,
    ) -> None:
        """Begin to start the actors. The data set is put into the object store once for all of them."""
        self._trainer = trainer
        self._bundles = bundles
        self._config = config
        self._resources = config.resources
        self._here = ray.get_runtime_context().get_node_id()
        what = f"an exit actor ({asked(config.resources)})"
        self._waiting = Waiting(what, config.resources.wait_for_resources_s, self._fits, notify)
        self.dataset = ray.put(dataset)
        fit = room(config.resources, self._here) if bundles is None else len(bundles.exits)
        self.workers = [self._start(slot) for slot in range(min(size, fit))]

    def starting(self) -> dict[Any, Worker]:
        """The workers that are not ready yet, by the reference that tells when they are."""
        return {worker.started: worker for worker in self.workers if worker.place is None}

    def ready(self) -> list[Worker]:
        """The workers that can train."""
        return [worker for worker in self.workers if worker.place is not None]

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
        if late := self._waiting.late(max(worker.since for worker in self.workers)):
            raise self._too_late(late, round)

    def unclear(self, nodes: Collection[str]) -> bool:
        """Whether one of ``nodes`` may yet turn out to be lost; this one is not."""
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        return bool(alive.intersection(nodes) - {self._here})

    def _start(self, slot: int) -> Worker:
        resources = self._resources
        placed = {} if self._bundles is None else self._bundles.options(self._bundles.exits[slot])
        remote = ray.remote(ExitActor).options(
            num_cpus=resources.cpus_per_exit,
            num_gpus=resources.gpus_per_exit or 0,
            max_restarts=0,
            **placed,
        )
        actor = remote.remote(self._trainer, self._config, self.dataset)
        return Worker(slot, actor, actor.start.remote(), time.monotonic())

    def _fits(self) -> bool:
        """Whether the living nodes can hold an actor beside the driver, which runs here."""
        resources = self._resources
        size = resources.cpus_per_exit, resources.gpus_per_exit or 0
        return self._bundles is not None or fitting(*size, beside(resources, self._here)) > 0

    def _too_late(self, late: Late, round: int) -> ResourceError | RunFailed:
        size, limit = asked(self._resources), f"{late.limit:.0f} s"
        if not late.lacking:
            text = f"no exit actor ({size}) could start within {limit}: the cluster is busy; free it, "
        elif round:
            text = f"the nodes that could hold an exit actor ({size}) were lost, none came within {limit}; "
        else:
            text = f"no node of the cluster can hold an exit actor ({size}) beside the driver; add one, "
        text += "lower resources.cpus_per_exit, or raise resources.wait_for_resources_s"
        if not round:
            return ResourceError(text)
        return RunFailed(f"round {round}: {text}; the last checkpoint stands")


def room(resources: ResourceConfig, here: str) -> int:
    """How many exit actors the cluster's nodes can hold beside the driver; at least 1.

    Args:
        here: id of the node that the driver runs on.

    Raises:
        ResourceError: no node could ever hold one, and none is waited for.
    """
    if resources.wait_for_resources_s > 0:
        return 1 << 16  # nodes may still come
    size = resources.cpus_per_exit, resources.gpus_per_exit or 0
    if not fitting(*size):
        raise ResourceError(
            f"no node of the cluster can hold an exit actor ({asked(resources)}): lower "
            "resources.cpus_per_exit or resources.gpus_per_exit, or add nodes and set "
            "resources.wait_for_resources_s"
        )
    return max(1, fitting(*size, beside(resources, here)))


def beside(resources: ResourceConfig, here: str) -> dict[str, tuple[float, float]]:
    """What the driver takes on the node with the id ``here``; see ``fitting``."""
    return {here: (resources.driver_cpus, resources.driver_gpus or 0)}


def asked(resources: ResourceConfig) -> str:
    """What an exit actor takes, for people."""
    return f"{resources.cpus_per_exit:g} CPUs, {resources.gpus_per_exit or 0:g} GPUs"


def fetch_done(ref: Any) -> Any:
    """The value of a finished call."""
    try:
        return fetch(ref, _FETCH_S)
    except GetTimeoutError as error:
        raise RayError(f"the result could not be fetched within {_FETCH_S:.0f} s") from error

"""The process that trains exits; a plain class, to which the pool applies ``ray.remote``."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import ray

from raygf.config import RunConfig
from raygf.data.base import Dataset
from raygf.training.exit_trainer import ExitUpdate
from raygf.training.state import NetworkState, Vector


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

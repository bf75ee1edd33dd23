"""Who trains the exits: the interface, and the executor that does it in this process, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from raygf.config import RunConfig
from raygf.data.base import Dataset
from raygf.exit_trainer import ExitTrainer, ExitUpdate
from raygf.state import NetworkState, Vector


@dataclass(frozen=True)
class Trained:
    """One round's updates in the order of the exits; how long it took, and what went wrong on the way.

    ``broadcast_s`` is the time to hand the state out, ``train_s`` the longest training, ``wait_s`` the rest:
    queueing, transfers, retries.
    """

    updates: tuple[ExitUpdate, ...]
    broadcast_s: float
    train_s: float
    wait_s: float
    notes: tuple[str, ...] = ()


class Executor(Protocol):
    """Trains all exits of a round from one state."""

    def train(self, state: NetworkState, round: int, momenta: Sequence[Vector | None]) -> Trained:
        """Train exits 0 … len(momenta) − 1 from ``state``; returns only when all are there.

        Raises:
            ExitFailed: an exit could not be trained.
        """
        ...

    def close(self) -> None:
        """Give back what the executor holds."""
        ...


class LocalExecutor:
    """Trains the exits in this process."""

    def __init__(self, config: RunConfig, dataset: Dataset) -> None:
        self._trainer = ExitTrainer(config, dataset)

    def train(self, state: NetworkState, round: int, momenta: Sequence[Vector | None]) -> Trained:
        """See ``Executor.train``; the exits' times add up."""
        exits = len(momenta)
        updates = tuple(
            self._trainer.train(state, exit, exits, round, momenta[exit]) for exit in range(exits)
        )
        return Trained(updates, 0.0, sum(update.seconds for update in updates), 0.0)

    def close(self) -> None:
        """Nothing to give back."""

"""Who trains the exits: the interface, and the executor that does it in this process, one after the other."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from raygf.config import RunConfig
from raygf.data.base import Dataset
from raygf.errors import ExitFailed
from raygf.memory import EXIT_KNOBS, is_out_of_memory, memory_cause, sizes
from raygf.training.exit_trainer import ExitTrainer, ExitUpdate
from raygf.training.state import NetworkState, Vector


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
            NonFiniteError: a loss or weight is not finite.
        """
        ...

    def close(self) -> None:
        """Give back what the executor holds."""
        ...


class LocalExecutor:
    """Trains the exits in this process."""

    def __init__(self, config: RunConfig, dataset: Dataset) -> None:
        self._trainer = ExitTrainer(config, dataset)
        self._batch_size = config.batch_size

    def train(self, state: NetworkState, round: int, momenta: Sequence[Vector | None]) -> Trained:
        """See ``Executor.train``; the exits' times add up."""
        updates = tuple(self._train(state, exit, round, momenta) for exit in range(len(momenta)))
        return Trained(updates, 0.0, sum(update.seconds for update in updates), 0.0)

    def _train(
        self, state: NetworkState, exit: int, round: int, momenta: Sequence[Vector | None]
    ) -> ExitUpdate:
        try:
            return self._trainer.train(state, exit, len(momenta), round, momenta[exit])
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            cause = memory_cause(error, sizes(self._batch_size, state.vector.size))
            raise ExitFailed(exit, round, socket.gethostname(), cause, EXIT_KNOBS) from error

    def close(self) -> None:
        """Nothing to give back."""

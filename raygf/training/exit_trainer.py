"""Training one exit for one round, and the executor that trains all of them in this process.

A training is a pure function of the broadcast state, the exit and the round.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from raygf.compute import (
    make_repeatable,
    naming_out_of_memory,
    resolve_compute,
    seeded_globals,
    sizes,
    torch_threads,
)
from raygf.config.run import RunConfig
from raygf.data.augment import mixed
from raygf.data.base import Dataset
from raygf.models.build import build_model
from raygf.training.losses import decay_factor, exit_loss_weights, loss_coefficients, make_losses
from raygf.training.network import Arrays, BoundNetwork, NetworkState, Vector, as_tensor, to_numpy
from raygf.training.peers import Peers
from raygf.training.prefix import Part, parts_of, whole
from raygf.training.sgd import FlatOptimizer, train_epoch
from raygf.training.shares import FusionShares, Turns

T = TypeVar("T")


@dataclass(frozen=True)
class ExitUpdate:
    """What training one exit gave.

    ``delta``: W_i − W, the expected gradient (paper, Eq. 13), of the tensors that the exit owns, or (P,).
    ``buffers``: those that have changed, as they are after it. ``momentum`` (P,): only if it is carried.
    ``loss`` and ``accuracy``: of this exit, in train mode. ``fisher``: with delta-fisher, of every element of
    ``delta`` the squares of its batches' gradients, added up.
    """

    exit: int
    delta: Vector
    buffers: Arrays
    loss: float
    accuracy: float
    seconds: float
    momentum: Vector | None = None
    fisher: Vector | None = None


class ExitTrainer:
    """Trains any exit of one network on one data set; keeps nothing between calls but memory to work in."""

    def __init__(self, config: RunConfig, dataset: Dataset) -> None:
        self._config = config
        self._losses = make_losses(config.loss)
        compute = resolve_compute(config.compute)
        make_repeatable(compute)
        self.bound = BoundNetwork(build_model(config.model, dataset.spec, config.seed), compute)
        self._parts: list[Part] = []
        if config.loss.aux_exits != "all":
            example = dataset.spec.blank(2, compute.device)
            self._parts = parts_of(self.bound, example, config.loss.aux_exits)
        self.batches = dataset.open(compute, config.batch_size, config.eval_batch_size)

    def train(
        self,
        state: NetworkState,
        exit: int,
        exits: int,
        round: int,
        momentum: Vector | None = None,
        order: int | None = None,
        peers: Peers | None = None,
    ) -> ExitUpdate:
        """One round of ``exit`` (from 0) from ``state``: paper, Eq. 12, on ``c_i (CE_i + λ Σ_{j≠i} CE_j)``.

        Shuffling, augmentation and dropout are seeded by (seed, round, exit), and the number of threads is
        set from the configuration, so equal arguments give equal bits in any process.

        Args:
            state: W and the buffers that all exits start from; not written to.
            exits: number of exits n.
            momentum: (P,) this exit's momentum of the round before, if it is carried.
            order: the exit whose order of the images, and whose other draws, it takes; by default its own.
            peers: those that share the training, which get the same update; by default this trainer runs the
                shares of all ``resources.replicas`` itself, with the same bits.

        Raises:
            PeersLost: another of the peers was lost.
            NonFiniteError: a loss or weight is not finite.
        """
        config, bound, started = self._config, self.bound, time.perf_counter()
        peers = bound.peers = peers or Peers(config.resources.replicas_of(exit))
        part = self._parts[exit] if self._parts else whole(bound, exits)
        weights = self._loss_weights(exit, exits, round, part)
        lr = config.optim.lr * decay_factor(round, config.rounds, config.optim)
        start = None if momentum is None else {"momentum": bound.tensor(momentum)}
        key = ("exit", round, exit if order is None else order)
        with torch_threads(config.resources.cpus_per_exit), seeded_globals(config.seed, *key):
            bound.load(state)
            turns = Turns(bound, peers.ranks, peers.count, config.seed, *key)
            optimizer = FlatOptimizer(bound, config.optim, lr, start, part.trained)
            squares = torch.zeros_like(bound.grad) if config.method == "delta-fisher" else None
            score = train_epoch(
                bound,
                optimizer,
                mixed(self.batches, config, *key),
                partial(_backward, weights, bound),
                where=f"{config.method}, exit {exit + 1}, round {round}",
                losses_of=self._losses,
                part=part,
                turns=turns,
                squares=squares,
            )
            turns.combine(peers)
            delta = part.owned.pack(bound.vector) - part.owned.pack(bound.tensor(state.vector))
        carried = optimizer.state.get("momentum") if config.optim.carry_momentum else None
        return ExitUpdate(
            exit,
            delta.cpu().numpy(),
            self._changed_buffers(state),
            score.loss[part.exits.index(exit)],
            score.accuracy[part.exits.index(exit)],
            time.perf_counter() - started,
            None if carried is None else to_numpy(carried),
            None if squares is None else to_numpy(part.owned.pack(squares)),
        )

    def _loss_weights(self, exit: int, exits: int, round: int, part: Part) -> Tensor:
        """Weights of the losses of ``part.exits`` while ``exit`` trains."""
        coefficients = loss_coefficients(round, self._config.rounds, exits, self._config.loss)
        weights = exit_loss_weights(exit, coefficients, self._config.loss.aux)
        return torch.tensor([weights[seen] for seen in part.exits], device=self.bound.compute.device)

    def whole(self, update: ExitUpdate) -> Tensor:
        """The update's delta as a vector (P,), 0 where the exit owns nothing."""
        delta = as_tensor(update.delta)
        return self._parts[update.exit].owned.unpack(delta) if self._parts else delta

    def _changed_buffers(self, state: NetworkState) -> Arrays:
        """The buffers that the training has changed; those of deeper exits may have stayed."""
        arrays = self.bound.buffer_arrays()
        return {name: new for name, new in arrays.items() if not np.array_equal(new, state.buffers[name])}


def _backward(weights: Tensor, bound: BoundNetwork, losses: list[Tensor]) -> None:
    """Add the gradient of the exits' ``losses`` times ``weights`` (n,) to that of the whole batch."""
    torch.autograd.backward(torch.stack(losses) @ weights)
    bound.peers.sum_(bound.grad)


@dataclass(frozen=True)
class Trained:
    """One round's updates in the order of the exits; how long it took, and what went wrong on the way.

    ``broadcast_s`` is the time to hand the state out, ``train_s`` the longest training as far as it was
    waited for, ``wait_s`` the rest: queueing, transfers, retries.
    """

    updates: tuple[ExitUpdate, ...]
    broadcast_s: float
    train_s: float
    wait_s: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PassTask:
    """The fusion pass of ``round``, on ``F = Σ_i c_i CE_i`` (``coefficients`` c), from ``base`` (P,) or W."""

    round: int
    coefficients: Sequence[float]
    base: Vector | None = None


class Executor(ABC):
    """Trains all exits of a round from one state."""

    def begin(  # noqa: B027 - only where others do it
        self, state: NetworkState, round: int, momenta: Sequence[Vector | None]
    ) -> None:
        """Let others start on what ``train`` will be called with next, and return at once."""

    @abstractmethod
    def train(self, state: NetworkState, round: int, momenta: Sequence[Vector | None]) -> Trained:
        """Train exits 0 … len(momenta) − 1 from ``state``; returns only when all are there.

        Raises:
            ExitFailed: an exit could not be trained.
            NonFiniteError: a loss or weight is not finite.
        """

    def fuse(self, task: PassTask, run: Callable[[FusionShares], T]) -> tuple[T, tuple[str, ...]] | None:
        """What ``run`` makes of the fusion pass after ``train``, whose shares others run; None: nobody can.

        ``run`` starts anew when one of them is lost; returned with what went wrong on the way.
        """
        return None

    def close(self) -> None:  # noqa: B027 - not every executor holds something
        """Give back what the executor holds."""


class LocalExecutor(Executor):
    """Trains the exits in this process."""

    def __init__(self, config: RunConfig, dataset: Dataset) -> None:
        self._trainer = ExitTrainer(config, dataset)
        self._batch_size = config.batch_size

    def train(self, state: NetworkState, round: int, momenta: Sequence[Vector | None]) -> Trained:
        """Train the exits one after the other; their times add up."""
        known, updates = sizes(self._batch_size, state.vector.size), list[ExitUpdate]()
        for exit, momentum in enumerate(momenta):
            with naming_out_of_memory(f"exit {exit + 1}, in round {round},", known):
                updates.append(self._trainer.train(state, exit, len(momenta), round, momentum))
        return Trained(tuple(updates), 0.0, sum(update.seconds for update in updates), 0.0)

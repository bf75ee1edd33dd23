"""One epoch of SGD on a bound network; shared by exit trainings and within-step methods."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from raygf.compute import call_own
from raygf.config.run import OptimConfig
from raygf.data.base import Batch
from raygf.errors import ConfigError, NonFiniteError
from raygf.records import ExitScore
from raygf.training.losses import ExitLosses, Tally, exit_hits, exit_losses
from raygf.training.network import BoundNetwork, not_finite
from raygf.training.prefix import Part
from raygf.training.shares import Turns, shares_of
from raygf.training.space import Stretches

Backward = Callable[[list[Tensor]], None]
"""Takes the n exits' losses of one batch, scalars, and leaves the update direction in the network's ``grad``.

Where several workers train the network, the losses are of one share and weighed by it: gradients are to be
added to ``grad`` and summed over ``bound.peers``, and the direction is the same on all.
"""


def train_epoch(
    bound: BoundNetwork,
    optimizer: FlatSGD,
    batches: Iterable[Batch],
    backward: Backward,
    where: str,
    losses_of: ExitLosses = exit_losses,
    part: Part | None = None,
    turns: Turns | None = None,
    squares: Tensor | None = None,
) -> ExitScore:
    """Run ``batches`` through the network in train mode, one update each; return the exits' mean scores.

    Losses stay on the device until the end of the epoch, so that no step waits for the one before. Where
    ``bound`` is trained by several workers, each runs its shares of every batch. Scores, and so errors, are
    those of all workers together.

    Args:
        backward: turns the losses of a batch into an update direction.
        where: names the training in errors, such as "metagf, exit 2, round 7".
        losses_of: what the exits train on.
        part: what of the network is run; losses and scores are then those of its exits.
        turns: keeps the shares that this worker runs apart; needed if there are several.
        squares: (P,) gets the squares of every batch's gradient added.

    Raises NonFiniteError: a loss, a gradient or the final vector is not finite; names the step.
    """
    bound.network.train()
    peers, tally = bound.peers, Tally(bound.peers, part.exits if part else None)
    for batch in batches:
        optimizer.zero_grad()
        scores = []
        for share in shares_of(batch, peers.ranks, peers.count):
            with turns.of(share.rank, len(tally)) if turns else nullcontext():
                logits = bound.forward(share.images, part.forward if part else None)
                losses = [loss * share.weight for loss in losses_of(logits, share.labels)]
                try:
                    backward(losses)
                except NonFiniteError as error:
                    raise NonFiniteError(f"{where}, step {len(tally) + 1}: {error}; lower optim.lr") from None
            hits = exit_hits(logits, share.labels) * (share.weight > 0)
            scores.append((torch.stack(losses).detach(), hits))
        if squares is not None:
            squares.addcmul_(bound.grad, bound.grad)
        optimizer.step()
        tally.add_shares(scores, len(batch[1]))
    return tally.finite_score(where, not_finite(bound.space, bound.vector))


class FlatSGD:
    """SGD with momentum and weight decay on a bound network's flat vector: one fused kernel a step.

    By the function behind ``torch.optim.SGD``: to make one of its objects takes a second the first time,
    for PyTorch then loads its compiler, and every exit actor would wait for that.
    """

    def __init__(
        self,
        bound: BoundNetwork,
        optim: OptimConfig,
        lr: float,
        momentum: Tensor | None = None,
        trained: Stretches | None = None,
    ) -> None:
        """
        Args:
            momentum: (P,) the buffer to start from, which is copied; by default it starts from zero.
            trained: what is updated; by default all.
        """
        self._bound = bound
        self._optim = optim
        self._lr = lr
        self._trained = trained or Stretches.of(bound.space)
        self._vectors, self._grads = self._trained.cut(bound.vector), self._trained.cut(bound.grad)
        self._buffers: list[Tensor | None] = []
        self._own: torch.optim.Optimizer | None = None
        if optim.optimizer:
            self._own = _own_optimizer(optim.optimizer, self._vectors, self._grads, lr)
        elif optim.momentum:
            none: list[Tensor | None] = [None] * len(self._vectors)
            self._buffers = none if momentum is None else [*self._trained.cut(momentum.clone())]

    def zero_grad(self) -> None:
        """Clear the gradients, keeping their memory."""
        self._bound.grad.zero_()

    @torch.no_grad()
    def step(self) -> None:
        """One update."""
        if self._own is not None:
            self._own.step()
            return
        sgd(
            self._vectors,
            self._grads,
            self._buffers,
            fused=True,
            weight_decay=self._optim.weight_decay,
            momentum=self._optim.momentum,
            lr=self._lr,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )

    @property
    def momentum(self) -> Tensor | None:
        """The momentum buffer (P,); None before the first step or without momentum."""
        buffers = [buffer for buffer in self._buffers if buffer is not None]
        return self._trained.unpack(torch.cat(buffers)) if buffers else None


def _own_optimizer(
    name: str, vectors: Sequence[Tensor], grads: Sequence[Tensor], lr: float
) -> torch.optim.Optimizer:
    """The user's ``optim.optimizer`` on ``vectors``, each with its gradient; ConfigError if it is none."""
    for vector, grad in zip(vectors, grads, strict=True):
        vector.grad = grad
    made = call_own("optim.optimizer", name, [*vectors], lr)
    if not isinstance(made, torch.optim.Optimizer):
        raise ConfigError(f"optim.optimizer = {name!r}: must return a torch.optim.Optimizer")
    return made

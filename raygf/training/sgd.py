"""One epoch of training on a bound network, shared by exit trainings and within-step methods; optimisers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from raygf.compute import call_own
from raygf.config.run import OPTIMIZERS, OptimConfig
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
    optimizer: FlatOptimizer,
    batches: Iterable[Batch],
    backward: Backward,
    where: str,
    losses_of: ExitLosses = exit_losses,
    part: Part | None = None,
    turns: Turns | None = None,
    squares: Tensor | None = None,
    after: Callable[[], None] = lambda: None,
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
        after: called after every update.

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
        after()
        tally.add_shares(scores, len(batch[1]))
    return tally.finite_score(where, not_finite(bound.space, bound.vector))


STATE = ("momentum", "square", "steps")
"""What an optimiser keeps: momentum (P,), AdamW's second moment (P,), the number of steps ()."""


class FlatOptimizer:
    """SGD, AdamW or Muon on a bound network's flat vector, by one fused kernel a step where all decays alike.

    sgd: with momentum, as ``torch.optim.SGD``. adamw: Loshchilov, Hutter, ICLR 2019, with β2 = 0.999. muon:
    Jordan et al. 2024, a step of momentum made orthogonal, for matrices and for kernels as matrices
    (out, in·k·k), as long as AdamW's (Liu et al., arXiv 2502.16982); AdamW for all else.

    By the functions behind ``torch.optim``: to make one of its objects takes a second the first time, for
    PyTorch then loads its compiler, and every exit actor would wait for that. Muon has none of its own.
    """

    def __init__(
        self,
        bound: BoundNetwork,
        optim: OptimConfig,
        lr: float,
        state: Mapping[str, Tensor] | None = None,
        trained: Stretches | None = None,
    ) -> None:
        """
        Args:
            state: that of the optimiser which this one continues, copied; by default all starts from zero.
            trained: what is updated; by default all.

        Raises ConfigError: the user's optimiser is none.
        """
        self._bound, self._optim, self._lr = bound, optim, lr
        kept = {"sgd": STATE[: int(optim.momentum > 0)], "adamw": STATE, "muon": STATE}
        sizes = {
            name: () if name == "steps" else bound.vector.shape for name in kept.get(optim.optimizer, ())
        }
        self.state = {name: bound.vector.new_zeros(size) for name, size in sizes.items()}
        """Those of ``STATE`` that it keeps; nothing of the user's own."""
        for name, start in (state or {}).items():
            self.state[name].copy_(start)
        trained = trained or Stretches.of(bound.space)
        rest, matrices = trained.among(matrices=False), trained.among(matrices=True)
        self._object: torch.optim.Optimizer | None = None
        self._groups = [(trained, optim.weight_decay)]
        if not optim.decay_norms:
            self._groups = [(matrices, optim.weight_decay), (rest, 0.0)]
        if optim.optimizer == "muon":
            self._object = _muon(bound, optim, lr, self.state["momentum"], matrices)
            self._groups = [(rest, optim.weight_decay * optim.decay_norms)]
        elif optim.optimizer not in OPTIMIZERS:
            vectors, grads = trained.cut(bound.vector), trained.cut(bound.grad)
            self._object, self._groups = _own_optimizer(optim.optimizer, vectors, grads, lr), []

    def zero_grad(self) -> None:
        """Clear the gradients, keeping their memory."""
        self._bound.grad.zero_()

    @torch.no_grad()
    def step(self) -> None:
        """One update."""
        if self._object is not None:
            self._object.step()
        momentum = self._optim.momentum
        for part, decay in self._groups:
            shared: dict[str, Any] = {"lr": self._lr, "weight_decay": decay, "maximize": False, "fused": True}
            moved = part.cut(self._bound.vector), part.cut(self._bound.grad)
            kept = [part.cut(self.state[name]) for name in STATE[:2] if name in self.state]
            if self._optim.optimizer == "sgd":
                shared |= {"momentum": momentum, "dampening": 0.0, "nesterov": False}
                sgd(*moved, [*kept[0]] if kept else [], **shared)
            else:
                shared |= {"beta1": momentum, "beta2": 0.999, "eps": 1e-8, "amsgrad": False}
                steps = [*self.state["steps"].repeat(len(part.spans))]
                adamw(*moved, kept[0], kept[1], [], steps, **shared)
        if "steps" in self.state:
            self.state["steps"] += 1


def check_optimizer(optim: OptimConfig) -> None:
    """Raise ConfigError if ``optim.optimizer`` is one that this version of torch has not."""
    if optim.optimizer == "muon" and not hasattr(torch.optim, "Muon"):
        raise ConfigError(f"optim.optimizer = 'muon': torch {torch.__version__} has none; take 2.9, or adamw")


def _muon(
    bound: BoundNetwork, optim: OptimConfig, lr: float, momentum: Tensor, trained: Stretches
) -> torch.optim.Optimizer:
    """Torch's Muon on the matrices ``trained``, its momentum living in ``momentum`` (P,)."""
    weights = [slot.matrix(bound.vector) for slot in trained.slots]
    made = torch.optim.Muon(weights, lr, optim.weight_decay, optim.momentum, adjust_lr_fn="match_rms_adamw")
    for slot, weight in zip(trained.slots, weights, strict=True):
        weight.grad = slot.matrix(bound.grad)
        made.state[weight]["momentum_buffer"] = slot.matrix(momentum)
    return made


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

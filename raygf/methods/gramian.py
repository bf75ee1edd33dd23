"""Within-step methods that weigh the exits' gradients by their Gramian."""

from __future__ import annotations

import torch
from torch import Tensor

from raygf.fusion.flat import FlatSpace
from raygf.methods.base import StepMethod
from raygf.methods.weighting import Weighting, merged_ranges, weigh
from raygf.training.bound import BoundNetwork
from raygf.training.peers import ALONE, Peers


class GramianMethod(StepMethod):
    """Shared parameters get ``Σ_i w_i g_i``, parameters owned by one exit its plain gradient.

    ``w`` comes from the Gramian of the gradients of the shared parameters, all of them taken as one vector.
    """

    def __init__(self, weighting: Weighting, owned: Tensor, space: FlatSpace) -> None:
        """``owned`` (n, T): which exit depends on which tensor of ``space``."""
        self._weighting = weighting
        shared = (owned.sum(dim=0) > 1).tolist()
        slots = list(zip(space.slots, shared, strict=True))
        self._shared = merged_ranges([(slot.start, slot.stop) for slot, is_shared in slots if is_shared])

    def backward(self, losses: Tensor, bound: BoundNetwork) -> None:
        """See ``StepMethod.backward``: one backward pass an exit; holds an (n, P) matrix meanwhile."""
        rows = bound.peers.sum_(exit_gradients(losses, bound))
        combine(rows, self._shared, self._weighting, bound.grad, bound.peers)


def exit_gradients(losses: Tensor, bound: BoundNetwork) -> Tensor:
    """The gradient of every exit's loss (n, P), on this worker alone."""
    rows = bound.grad.new_empty(len(losses), bound.grad.numel())
    for exit, loss in enumerate(losses):
        bound.grad.zero_()
        torch.autograd.backward(loss, retain_graph=exit + 1 < len(losses))
        rows[exit] = bound.grad
    return rows


def combine(
    rows: Tensor, shared: list[tuple[int, int]], weighting: Weighting, out: Tensor, peers: Peers = ALONE
) -> None:
    """Write the weighted gradient into ``out`` (P,).

    Args:
        rows: gradients (n, P).
        shared: stretches of the vector that more than one exit owns.
        peers: workers that have the same ``rows``; all take the first one's weights, for some weightings
            draw at random, and solvers may round differently on another machine.
    """
    torch.sum(rows, dim=0, out=out)  # where one exit owns a parameter the others' gradients are 0
    if not shared:
        return
    gramian = torch.stack([rows[:, a:b] @ rows[:, a:b].T for a, b in shared]).sum(dim=0)
    weights = peers.first_(weigh(weighting, gramian))
    for start, stop in shared:
        torch.mv(rows[:, start:stop].T, weights, out=out[start:stop])

"""The interface of within-step methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raygf.config.run import MethodConfig
from raygf.errors import ConfigError, NonFiniteError
from raygf.training.network import BoundNetwork
from raygf.training.peers import ALONE, Peers
from raygf.training.space import FlatSpace


@dataclass(frozen=True)
class Setting:
    """What a method may want to know of the network that it trains.

    ``owned`` (n, T), bool: which of the n exits depends on which tensor of ``space``.
    """

    config: MethodConfig
    network: nn.Module
    owned: Tensor
    space: FlatSpace


class StepMethod(ABC):
    """Turns the exits' losses of one batch into one update direction. Made anew for every round."""

    @abstractmethod
    def backward(self, losses: Tensor, bound: BoundNetwork) -> None:
        """Leave the direction in ``bound.grad`` (P,), which is zero on entry.

        Args:
            losses: c_i·CE_i of every exit (n,), attached to the graph. Summed over ``bound.peers`` they are
                the batch's; so gradients have to be summed before anything is made of them.

        Raises:
            NonFiniteError: a gradient is not finite.
        """

    def close(self) -> None:  # noqa: B027 - most methods leave nothing behind
        """Take back what the method has changed in the network."""


class JointSGD(StepMethod):
    """``g = Σ_i ∇(c_i CE_i)``."""

    def backward(self, losses: Tensor, bound: BoundNetwork) -> None:
        """See ``StepMethod.backward``: one backward pass of the sum."""
        torch.autograd.backward(losses.sum())
        bound.peers.sum_(bound.grad)


Weighting = Callable[[Tensor], Tensor]
"""From ``G_ij = g_i·g_j`` (n, n), float32 on the CPU, to the weights (n,) of ``Σ_i w_i g_i``."""


def usable(name: str, make: Callable[[], Weighting], exits: int) -> Weighting:
    """The weighting ``name``, tried once on a harmless Gramian.

    Raises:
        ConfigError: it needs a package that is not installed; names the command that brings it.
    """
    try:
        make()(torch.eye(max(2, exits)) + 0.5)
        return make()
    except ImportError:
        raise ConfigError(
            f"method = {name!r} needs solvers that are not installed: pip install 'raygf[methods]'"
        ) from None


def weigh(weighting: Weighting, gramian: Tensor) -> Tensor:
    """``weighting`` of ``gramian`` (n, n), on the Gramian's device; a lone exit has weight 1.

    Raises:
        NonFiniteError: the Gramian is not finite, which some weightings would silently turn into ordinary
            weights; names the exit.
    """
    finite = torch.isfinite(gramian.diagonal())
    if not finite.all():
        exits = (~finite).nonzero()[:, 0] + 1
        raise NonFiniteError(f"the gradient of exit {exits[0]} is not finite")
    if len(gramian) == 1:
        return torch.ones_like(gramian[0])
    if not gramian.diagonal().any():
        return torch.zeros_like(gramian[0])  # there is nothing to weigh, and solvers would fail
    weights = weighting(gramian.float().cpu()).to(gramian)
    if not torch.isfinite(weights).all():
        raise NonFiniteError("the weights of the exits' gradients are not finite")
    return weights


def scaled(gramian: Tensor) -> tuple[Tensor, Tensor]:
    """The Gramian (n, n) of the gradients divided by their root mean square length, and that length ().

    For TorchJD's solvers: their tolerances are fixed numbers, so that with short gradients they would stop
    too early or take them for zero.
    """
    length = gramian.diagonal().mean().sqrt()
    return gramian / length**2, length


def scale_free(solve: Weighting) -> Weighting:
    """``solve``, whose weights do not depend on the gradients' scale, on gradients of ordinary length."""
    return lambda gramian: solve(scaled(gramian)[0])


def merged_ranges(stretches: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted stretches [start, stop) with neighbours that touch made one."""
    merged: list[tuple[int, int]] = []
    for start, stop in stretches:
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return merged


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

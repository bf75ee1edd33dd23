"""Within-step methods: the interface, joint SGD, and weighing the exits' gradients by their Gramian."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raygf.config.run import MethodConfig
from raygf.errors import NonFiniteError, RaygfError, one_line
from raygf.training.network import BoundNetwork
from raygf.training.peers import ALONE, Peers
from raygf.training.space import FlatSpace, Stretches


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
    def backward(self, losses: list[Tensor], bound: BoundNetwork) -> None:
        """Leave the direction in ``bound.grad`` (P,), which is zero on entry.

        Args:
            losses: c_i·CE_i of every exit, n scalars attached to the graph, each by itself. Summed over
                ``bound.peers`` they are the batch's; so gradients have to be summed before anything is made
                of them.

        Raises NonFiniteError: a gradient is not finite, or no weights were found.
        """

    @staticmethod
    def operations(costs: Sequence[int]) -> int:
        """Of a step for one image: forward, and backward, which counts twice; ``costs``: F (n,), forward."""
        return 3 * costs[-1]

    def close(self) -> None:  # noqa: B027 - most methods leave nothing behind
        """Take back what the method has changed in the network."""


class JointSGD(StepMethod):
    """``g = Σ_i ∇(c_i CE_i)``: the exits' losses are added (the paper's MSDNet and SDN baselines)."""

    def __init__(self, setting: Setting) -> None:
        """Nothing of ``setting`` is needed."""

    def backward(self, losses: list[Tensor], bound: BoundNetwork) -> None:
        """One backward pass of the sum."""
        torch.autograd.backward(torch.stack(losses).sum())
        bound.peers.sum_(bound.grad)


Weighting = Callable[[Tensor], Tensor]
"""From ``G_ij = g_i·g_j`` (n, n), float32 on the CPU, to the weights (n,) of ``Σ_i w_i g_i``."""


class GramianMethod(StepMethod):
    """Shared parameters get ``Σ_i w_i g_i``, parameters owned by one exit its plain gradient.

    ``w`` comes from the Gramian of the gradients of the shared parameters, all of them taken as one vector.
    """

    def __init__(self, weighting: Weighting, setting: Setting) -> None:
        self._weighting = weighting
        self._shared = Stretches.of(setting.space, (setting.owned.sum(dim=0) > 1).tolist())

    def backward(self, losses: list[Tensor], bound: BoundNetwork) -> None:
        """One backward pass an exit, each as deep as the exit; holds an (n, P) matrix meanwhile."""
        rows = bound.peers.sum_(exit_gradients(losses, bound))
        combine(rows, self._shared, self._weighting, bound.grad, bound.peers)

    @staticmethod
    def operations(costs: Sequence[int]) -> int:
        """Once forward, and backward from every exit by itself."""
        return costs[-1] + 2 * sum(costs)


def exit_gradients(losses: list[Tensor], bound: BoundNetwork) -> Tensor:
    """The gradient of every exit's loss (n, P), on this worker alone."""
    rows = bound.grad.new_empty(len(losses), bound.grad.numel())
    for exit, loss in enumerate(losses):
        bound.grad.zero_()
        if loss.requires_grad:  # else no tensor that the exit depends on is trained
            torch.autograd.backward(loss, retain_graph=exit + 1 < len(losses))
        rows[exit] = bound.grad
    return rows


def combine(rows: Tensor, shared: Stretches, weighting: Weighting, out: Tensor, peers: Peers = ALONE) -> None:
    """Write the weighted gradient into ``out`` (P,).

    Args:
        rows: gradients (n, P).
        shared: what of the vector more than one exit owns.
        peers: workers that have the same ``rows``; all take the first one's weights, for some weightings
            draw at random, and solvers may round differently on another machine.
    """
    torch.sum(rows, dim=0, out=out)  # where one exit owns a parameter the others' gradients are 0
    if not shared.size:
        return
    gramian = torch.stack([rows[:, span] @ rows[:, span].T for span in shared.spans]).sum(dim=0)
    weights = peers.first_(weigh(weighting, gramian))
    for span in shared.spans:
        torch.mv(rows[:, span].T, weights, out=out[span])


def weigh(weighting: Weighting, gramian: Tensor) -> Tensor:
    """``weighting`` of ``gramian`` (n, n), on the Gramian's device; a lone exit has weight 1.

    Raises NonFiniteError: the Gramian is not finite, which some weightings would silently turn into ordinary
    weights; or the weighting's solver failed. Names the exits.
    """
    bad = (~torch.isfinite(gramian.diagonal())).nonzero()
    if len(bad):
        raise NonFiniteError(f"the gradient of exit {int(bad[0]) + 1} is not finite")
    if len(gramian) == 1:
        return torch.ones_like(gramian[0])
    if not gramian.diagonal().any():
        return torch.zeros_like(gramian[0])  # there is nothing to weigh, and solvers would fail
    try:
        weights = weighting(gramian.float().cpu()).to(gramian)
    except (RaygfError, ImportError, MemoryError):
        raise
    except Exception as error:  # every solver has errors of its own
        raise NonFiniteError(f"no weights of the exits' gradients were found: {one_line(error)}") from error
    if not torch.isfinite(weights).all():
        raise NonFiniteError("the weights of the exits' gradients are not finite")
    return weights

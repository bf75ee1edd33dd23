"""Gradient Equilibrium: Li, Zhang, Qi, Yang, Huang, "Improved Techniques for Training Adaptive Deep
Networks", ICCV 2019.

At the branch of exit i (from 1, of n) the gradient that comes from its head is scaled by ``1/(n − i +
1)`` and the one that comes from deeper by ``(n − i)/(n − i + 1)``: the backbone receives a mean of the
exits' gradients, not their sum, so its gradients keep their scale at every depth. One exit alone is plain
SGD.
"""

from __future__ import annotations

from torch import nn

from raygf.methods.branches import Branch, BranchMethod, Change
from raygf.models.multi_exit import MultiExitNetwork


class GradientEquilibrium(BranchMethod):
    """Both gradients of every branch scaled, so that what goes on is a mean."""

    def __init__(self, network: nn.Module) -> None:
        """See ``BranchMethod``."""
        super().__init__("ge", network, equilibrium)


def equilibrium(network: MultiExitNetwork, exit: int) -> Branch:
    """The factors at the branch of ``exit`` (from 0)."""
    left = len(network.heads) - exit
    return Branch(_scaled(1 / left), _scaled((left - 1) / left))


def _scaled(factor: float) -> Change:
    return lambda gradient: gradient * factor


class BoostNetRescaling(BranchMethod):
    """The mean over the exits behind a stage, taken branch by branch."""

    def __init__(self, network: nn.Module) -> None:
        """See ``BranchMethod``."""
        super().__init__("boostnet", network, equilibrium)

"""Gradient Equilibrium: Li, Zhang, Qi, Yang, Huang, "Improved Techniques for Training Adaptive Deep
Networks", ICCV 2019; and BoostNet's gradient rescaling, which is the same rule.

At the branch of exit i (from 1, of n) the gradient that comes from its head is scaled by ``1/(n − i +
1)`` and the one that comes from deeper by ``(n − i)/(n − i + 1)``: the backbone receives a mean of the
exits' gradients, not their sum, so its gradients keep their scale at every depth. One exit alone is plain
SGD.
"""

from raygf.methods.base import Setting
from raygf.methods.branches import Branch, BranchMethod, Change
from raygf.models.multi_exit import MultiExitNetwork


class GradientEquilibrium(BranchMethod):
    """Both gradients of every branch scaled, so that what goes on is a mean."""

    def __init__(self, setting: Setting) -> None:
        super().__init__("ge", setting.network, equilibrium)


class BoostNetRescaling(BranchMethod):
    """Yu, Li, Hua, Huang, Shi, "Boosted Dynamic Neural Networks", AAAI 2023: a mean over the exits.

    ``dL/db_i = 1/(n − i + 1) · Σ_{j ≥ i} dL_j/db_i`` for the features ``b_i`` of stage i (Eq. 7). That is
    what Gradient Equilibrium's two factors multiply out to, and the authors' program uses those very factors.
    What else BoostNet does, every exit adding to the shallower ones' logits, changes the network and is not
    part of it.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__("boostnet", setting.network, equilibrium)


def equilibrium(network: MultiExitNetwork, exit: int) -> Branch:
    """The factors at the branch of ``exit`` (from 0)."""
    left = len(network.heads) - exit
    return Branch(_scaled(1 / left), _scaled((left - 1) / left))


def _scaled(factor: float) -> Change:
    return lambda gradient: gradient * factor

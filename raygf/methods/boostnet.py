"""BoostNet's gradient rescaling: Yu, Li, Hua, Huang, Shi, "Boosted Dynamic Neural Networks", AAAI 2023.

``dL/db_i = 1/(n − i + 1) · Σ_{j ≥ i} dL_j/db_i`` for the features ``b_i`` of stage i (from 1, of n): a mean
over the exits behind it (Eq. 7). That is what Gradient Equilibrium's two factors multiply out to, and the
authors' program uses those very factors: the rule is that of ``ge`` under its other name. What else BoostNet
does, every exit adding to what the shallower ones say, changes the network and is not part of it.
"""

from __future__ import annotations

from torch import nn

from raygf.methods.branches import BranchMethod
from raygf.methods.ge import equilibrium


class BoostNetRescaling(BranchMethod):
    """The mean over the exits behind a stage, taken branch by branch."""

    def __init__(self, network: nn.Module) -> None:
        """See ``BranchMethod``."""
        super().__init__("boostnet", network, equilibrium)

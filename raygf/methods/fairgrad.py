"""FairGrad: Ban, Ji, "Fair Resource Allocation in Multi-Task Learning", ICML 2024.

``G w = w^(-1/α)`` with α = 1 (proportional fairness). The scale falls with the gradients' length: for n
equal unit gradients each weight is ``1/√n``.
"""

from __future__ import annotations

from torch import Tensor

from raygf.config import MethodConfig
from raygf.methods.weighting import Weighting, scaled


def weighting(config: MethodConfig) -> Weighting:
    """The weighting; solves n nonlinear equations."""
    from torchjd.aggregation import FairGradWeighting

    solve = FairGradWeighting(alpha=1.0)

    def weights(gramian: Tensor) -> Tensor:
        normalised, length = scaled(gramian)
        found: Tensor = solve(normalised) / length
        return found

    return weights

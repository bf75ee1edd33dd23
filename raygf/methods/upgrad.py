"""UPGrad: Quinton, Rey, "Jacobian Descent for Multi-Objective Optimization", 2024.

Every gradient is projected onto the dual cone of all of them, so that no loss rises to first order, and
the projections are averaged. Equal gradients: the weights sum to 1.
"""

from __future__ import annotations

from raygf.config import MethodConfig
from raygf.methods.weighting import Weighting, scale_free


def weighting(config: MethodConfig) -> Weighting:
    """The weighting; solves n small quadratic programs."""
    from torchjd.aggregation import UPGradWeighting

    return scale_free(UPGradWeighting())

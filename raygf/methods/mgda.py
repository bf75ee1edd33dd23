"""MGDA: Désidéri, "Multiple-Gradient Descent Algorithm (MGDA)", 2012; Sener, Koltun, NeurIPS 2018.

The shortest vector of the gradients' convex hull: ``min_w ‖Σ_i w_i g_i‖²``, ``w ≥ 0``, ``Σ w = 1``.
"""

from __future__ import annotations

from raygf.config import MethodConfig
from raygf.methods.weighting import Weighting


def weighting(config: MethodConfig) -> Weighting:
    """The weighting, by Frank-Wolfe steps; its weights sum to 1."""
    from torchjd.aggregation import MGDAWeighting

    made: Weighting = MGDAWeighting()
    return made

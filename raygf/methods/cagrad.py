"""CAGrad: Liu, Liu, Jin, Stone, Liu, "Conflict-Averse Gradient Descent for Multi-task Learning", NeurIPS
2021.

``max_d min_i g_i·d`` subject to ``‖d − g_0‖ ≤ c ‖g_0‖``, ``g_0`` the mean gradient. With ``c = 0`` it is
the mean; for equal gradients the weights sum to 1 + c.
"""

from __future__ import annotations

from raygf.config import MethodConfig
from raygf.methods.weighting import Weighting, scale_free


def weighting(config: MethodConfig) -> Weighting:
    """The weighting with the configured radius c."""
    from torchjd.aggregation import CAGradWeighting

    return scale_free(CAGradWeighting(c=config.cagrad_c))

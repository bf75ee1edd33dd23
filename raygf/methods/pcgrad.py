"""PCGrad: Yu, Kumar, Gupta, Levine, Hausman, Finn, "Gradient Surgery for Multi-Task Learning", NeurIPS
2020.

Every gradient is projected onto the normal plane of each other that it conflicts with, in random order,
and the results are added (Meta-GF paper, Eq. 3): ``ĝ_i = g_i − (g_i·g_j / ‖g_j‖²) g_j`` where ``g_i·g_j <
0``. Equal or orthogonal gradients are left alone: the weights are then all 1 and sum to n.
"""

from __future__ import annotations

from raygf.config import MethodConfig
from raygf.methods.weighting import Weighting


def weighting(config: MethodConfig) -> Weighting:
    """The weighting; its order of projections comes from torch's global generator."""
    from torchjd.aggregation import PCGradWeighting

    made: Weighting = PCGradWeighting()
    return made

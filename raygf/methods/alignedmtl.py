"""Aligned-MTL: Senushkin, Patakin, Kuznetsov, Konushin, "Independent Component Alignment for Multi-Task
Learning", CVPR 2023.

The gradients' principal components are given equal singular values (the smallest one) and the mean is
taken.
"""

from __future__ import annotations

from raygf.config import MethodConfig
from raygf.methods.weighting import Weighting


def weighting(config: MethodConfig) -> Weighting:
    """The weighting; for orthogonal gradients of equal length the weights sum to 1."""
    from torchjd.aggregation import AlignedMTLWeighting

    made: Weighting = AlignedMTLWeighting()
    return made

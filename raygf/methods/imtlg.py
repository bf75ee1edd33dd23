"""IMTL-G: Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021.

The combination whose projections onto all unit gradients are equal: ``d·g_i/‖g_i‖`` is the same for all
i, ``Σ w = 1``.
"""

from __future__ import annotations

from raygf.config import MethodConfig
from raygf.methods.weighting import Weighting


def weighting(config: MethodConfig) -> Weighting:
    """The weighting; its weights sum to 1 and may be negative."""
    from torchjd.aggregation import IMTLGWeighting

    made: Weighting = IMTLGWeighting()
    return made

"""ConFIG: Liu, Chu, Thuerey, "ConFIG: Towards Conflict-free Training of Physics Informed Neural
Networks", ICLR 2025.

The direction that has the same cosine with every gradient, as long as the sum of the gradients'
projections on it: ``u = pinv(U) 1`` for unit gradients U, ``d = (Σ_i g_i·u) u / ‖u‖²``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raygf.config import MethodConfig
from raygf.methods.weighting import Weighting


def weighting(config: MethodConfig) -> Weighting:
    """The weighting, worked out from the Gramian alone; for equal gradients the weights sum to n."""
    return _weights


def _weights(gramian: Tensor) -> Tensor:
    lengths = gramian.diagonal().sqrt()
    cosines = gramian / torch.outer(lengths, lengths)
    raw = torch.linalg.pinv(cosines, hermitian=True) @ torch.ones_like(lengths) / lengths
    unit = raw / (raw @ gramian @ raw).sqrt()
    weights: Tensor = unit * (gramian @ unit).sum()
    return weights

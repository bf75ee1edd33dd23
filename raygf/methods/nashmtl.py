"""Nash-MTL: Navon et al., "Multi-Task Learning as a Bargaining Game", ICML 2022.

``G w = 1/w``, the Nash bargaining solution; the update's length, √n, is clipped to 1.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from raygf.config import MethodConfig
from raygf.methods.weighting import Weighting, scaled


def weighting(config: MethodConfig) -> Weighting:
    """The weighting; it warm-starts from the step before within a round."""
    return _NashMTL()


class _NashMTL:
    """TorchJD's solver takes gradients; any matrix with the same Gramian serves: its Cholesky factor."""

    def __init__(self) -> None:
        self._solver: Any = None

    def __call__(self, gramian: Tensor) -> Tensor:
        from torchjd.aggregation import NashMTL

        if self._solver is None:
            self._solver = NashMTL(n_tasks=len(gramian)).weighting
        normalised, length = scaled(gramian)
        ridge = 1e-6 * torch.eye(len(gramian)).to(gramian)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the solver's advice to its own authors
            weights: Tensor = self._solver(torch.linalg.cholesky(normalised + ridge))
        return weights / length

"""Joint SGD: the exits' losses are simply added (the paper's MSDNet and SDN baselines)."""

from __future__ import annotations

import torch
from torch import Tensor

from raygf.methods.base import StepMethod
from raygf.training.bound import BoundNetwork


class JointSGD(StepMethod):
    """``g = Σ_i ∇(c_i CE_i)``."""

    def backward(self, losses: Tensor, bound: BoundNetwork) -> None:
        """See ``StepMethod.backward``: one backward pass of the sum."""
        torch.autograd.backward(losses.sum())
        bound.peers.sum_(bound.grad)

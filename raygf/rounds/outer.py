"""The outer step: what is made of the merged delta of a round before it is added to the weights."""

import numpy as np
import torch
from torch import Tensor

from raygf.config.run import FusionConfig
from raygf.training.network import Arrays, as_tensor, to_numpy

LEARNING_RATES = {"momentum": 1.0, "nesterov": 0.7, "adam": 0.01}
"""By default: FedAvgM's and DiLoCo's; FedAdam's is one of those that its paper tries."""
_SQUARE_DECAY, _LEAST_ROOT = 0.99, 1e-3  # β₂ and τ of FedAdam


class OuterStep:
    """An optimiser along the merged delta, D = merged W − W; keeps its moments from round to round.

    - momentum: ``v ← βv + D``, ``W ← W + lr·v`` (FedAvgM: Hsu, Qi, Brown, "Measuring the Effects of
      Non-Identical Data Distribution for Federated Visual Classification", 2019).
    - nesterov: with the same v, ``W ← W + lr·(D + βv)`` (DiLoCo: Douillard et al., "DiLoCo: Distributed
      Low-Communication Training of Language Models", 2023).
    - adam: ``v ← βv + (1 − β)D``, ``s ← β₂s + (1 − β₂)D²``, ``W ← W + lr·v̂ / (√ŝ + τ)`` (FedAdam: Reddi et
      al., "Adaptive Federated Optimization", ICLR 2021), where v̂ = v / (1 − βᵗ) and ŝ are Adam's corrected
      moments, which the paper leaves out.
    """

    def __init__(self, fusion: FusionConfig, like: Tensor) -> None:
        """``like``: a vector (P,), on the device where the steps are made."""
        self._kind, self._beta = fusion.outer, fusion.outer_momentum
        self._lr = fusion.outer_lr or LEARNING_RATES[fusion.outer]
        self._momentum = torch.zeros_like(like)
        self._square = torch.zeros_like(like) if fusion.outer == "adam" else like.new_zeros(0)
        self._steps = 0

    @torch.no_grad()
    def step(self, base: Tensor, merged: Tensor) -> Tensor:
        """Where to go (P,) from W, ``base`` (P,), when fusing goes to ``merged`` (P,)."""
        delta, beta, self._steps = merged - base, self._beta, self._steps + 1
        if self._kind != "adam":
            self._momentum.mul_(beta).add_(delta)
            ahead = delta.add_(self._momentum, alpha=beta) if self._kind == "nesterov" else self._momentum
            return base.add(ahead, alpha=self._lr)
        self._momentum.lerp_(delta, 1 - beta)
        self._square.lerp_(delta.square_(), 1 - _SQUARE_DECAY)
        root = (self._square / (1 - _SQUARE_DECAY**self._steps)).sqrt_().add_(_LEAST_ROOT)
        return base.addcdiv(self._momentum, root, value=self._lr / (1 - beta**self._steps))

    def arrays(self) -> Arrays:
        """The moments (P,), and how many steps there were."""
        moments = {"outer_momentum": to_numpy(self._momentum), "outer_square": to_numpy(self._square)}
        return {**moments, "outer_steps": np.array(self._steps)}

    def restore(self, arrays: Arrays) -> None:
        """Take back what ``arrays`` gave; KeyError if one is missing."""
        self._momentum.copy_(as_tensor(arrays["outer_momentum"]))
        self._square.copy_(as_tensor(arrays["outer_square"]))
        self._steps = int(arrays["outer_steps"])

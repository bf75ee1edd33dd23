"""Fusion weights α from their logits η."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Normalisation = Literal["softmax", "sigmoid"]


def fusion_weights(eta: Tensor, owned: Tensor, normalise: Normalisation = "softmax") -> Tensor:
    """The weights α (n, S) of n exits in S segments; every column that has an owner sums to 1.

    Paper, Eq. 10, restricted to the exits that own the segment:
    ``α_i = m_i e^{η_i} / Σ_j m_j e^{η_j}``; with "sigmoid" σ(η) stands in place of e^η.

    Args:
        eta: logits (n, S).
        owned: mask m (n, S), bool. A segment that no exit owns gets weight 0 from all.
        normalise: "softmax" (the paper) or "sigmoid".
    """
    if normalise == "sigmoid":
        eta = F.logsigmoid(eta)  # then σ(η) / Σ σ(η) is its softmax, and safe for any η
    # In an orphaned column all are let in, so that its softmax is finite; the product then clears it.
    allowed = owned | ~owned.any(dim=0)
    return torch.softmax(eta.masked_fill(~allowed, -torch.inf), dim=0) * owned


def carry(old: Tensor, fitted: Tensor, ema: float) -> Tensor:
    """What the next round starts from: ``ema·η_old + (1 − ema)·η_fitted``, detached from any graph."""
    return (ema * old + (1 - ema) * fitted).detach()

"""Do the exits pull apart? Cosines between their expected gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from raygf.fusion.flat import FlatSpace
from raygf.fusion.segments import Segments


def tensor_gramians(deltas: Sequence[Tensor], space: FlatSpace) -> Tensor:
    """``⟨Δ_i, Δ_j⟩`` within every parameter tensor: (T, n, n), float64, on the CPU.

    Args:
        deltas: n vectors Δ_i (P,).
        space: the flat space that they live in.
    """
    grams = torch.zeros(len(space.slots), len(deltas), len(deltas), dtype=torch.float64)
    for block in Segments("tensor", space).blocks:
        rows = torch.stack([delta[block.start : block.stop] for delta in deltas])
        grams[block.first] += (rows @ rows.T).double().cpu()
    return grams


def shared_cosine(grams: Tensor, owned: Tensor) -> Tensor:
    """Cosine between every two exits' deltas over the tensors that both own (n, n).

    Args:
        grams: (T, n, n), from ``tensor_gramians``.
        owned: mask (n, T), bool.

    A pair without a common tensor, or with a zero delta, gets NaN.
    """
    both = (owned[:, None, :] & owned[None, :, :]).to(grams.dtype)  # (n, n, T)
    dot = torch.einsum("ijt,tij->ij", both, grams)
    square = torch.einsum("ijt,tii->ij", both, grams)  # ‖Δ_i‖² over what i shares with j
    return dot / (square * square.T).sqrt()


def delta_norms(grams: Tensor, owned: Tensor) -> Tensor:
    """L2 norm of every exit's delta over the tensors that it owns (n,)."""
    return torch.einsum("it,tii->i", owned.to(grams.dtype), grams).sqrt()

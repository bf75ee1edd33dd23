"""What a round reports of its fusion: weights, and how far the exits' expected gradients pull apart.

Cosines between the deltas, and with the update that fuses them. Throughout: n exits, T tensors; Gramians
(T, n, n), float64 on the CPU; ``owned`` (n, T), bool: which exit depends on which tensor.
"""

from collections.abc import Sequence
from operator import mul

import torch
from torch import Tensor

from raygf.fusion.fuse import Fused, FusionTask
from raygf.records import FusionReport
from raygf.training.space import FlatSpace, Segments


def fusion_report(
    task: FusionTask, fused: Fused, segments: Segments, owned: Tensor, coefficients: Sequence[float]
) -> FusionReport:
    """The report on what was ``fused`` in ``task``; ``coefficients`` (n,): c in F."""
    per_tensor = segments.slot_means(fused.alpha.detach().double()).masked_fill(~owned, torch.nan)
    shared = owned & (owned.sum(dim=0) > 1)
    with_update = tensor_gramians([*task.deltas, fused.vector - task.base], segments.space)
    grams = with_update[:, :-1, :-1]
    return FusionReport(
        weights=per_tensor.numpy(),
        mean_weight=tuple(per_tensor.masked_fill(~shared, torch.nan).nanmean(dim=1).tolist()),
        cosine=shared_cosine(grams, owned).numpy(),
        delta_norm=tuple(delta_norms(grams, owned).tolist()),
        loss=sum(map(mul, coefficients, fused.score.loss)),
        accuracy=fused.score.accuracy,
        tensor_cosine=tensor_cosines(grams, owned).numpy(),
        conflict_before=share_before(grams, owned),
        conflict_after=share_after(with_update, owned),
    )


def tensor_gramians(vectors: Sequence[Tensor], space: FlatSpace) -> Tensor:
    """``⟨v_i, v_j⟩`` within every tensor (T, n, n) of n vectors (P,); no more is copied at a time."""
    grams = torch.zeros(len(space.slots), len(vectors), len(vectors), dtype=torch.float64)
    for block in Segments("tensor", space).blocks:
        rows = torch.stack([vector[block.start : block.stop] for vector in vectors])
        grams[block.first] += (rows @ rows.T).double().cpu()
    return grams


def shared_cosine(grams: Tensor, owned: Tensor) -> Tensor:
    """Cosine between every two exits' deltas over the tensors that both own (n, n).

    A pair without a common tensor, or with a zero delta, gets NaN.
    """
    both = (owned[:, None, :] & owned[None, :, :]).to(grams.dtype)  # (n, n, T)
    dot = torch.einsum("ijt,tij->ij", both, grams)
    square = torch.einsum("ijt,tii->ij", both, grams)  # ‖Δ_i‖² over what i shares with j
    return dot / (square * square.T).sqrt()


def shared_gramian(grams: Tensor, owned: Tensor) -> Tensor:
    """``⟨Δ_i, Δ_j⟩`` (n, n) over the tensors that at least two exits own, 0 where an exit owns nothing."""
    mask = (owned & (owned.sum(dim=0) > 1)).to(grams.dtype)
    return torch.einsum("it,jt,tij->ij", mask, mask, grams)


def delta_norms(grams: Tensor, owned: Tensor) -> Tensor:
    """L2 norm of every exit's delta over the tensors that it owns (n,)."""
    return torch.einsum("it,tii->i", owned.to(grams.dtype), grams).sqrt()


def tensor_cosines(grams: Tensor, owned: Tensor) -> Tensor:
    """Mean cosine of all pairs of exits within each tensor that both own (T,).

    Pairs with a zero delta are left out; NaN where no pair is left, as where fewer than two own the tensor.
    """
    return _pair_cosines(grams, owned).nanmean(dim=1)


def share_before(grams: Tensor, owned: Tensor) -> float:
    """Share of negative cosines (0–1) over all pairs of exits and all tensors that both own; NaN if none.

    The paper (Section 1) calls two gradients in conflict when their cosine is negative.
    """
    return _negative_share(_pair_cosines(grams, owned))


def share_of_repeats(grams: Tensor, owned: Tensor) -> float:
    """``share_before`` where both deltas of every pair are of one exit, trained twice: its noise floor.

    An exit's cosine counts in a tensor as often as the exit has others there to be paired with, so that both
    shares are over the same pairs and tensors.

    Args:
        grams: (T, 2n, 2n) of the n exits' deltas, then of their second ones.
    """
    exits = len(owned)
    dot = grams[:, :exits, exits:].diagonal(dim1=1, dim2=2).T  # (n, T)
    square = grams.diagonal(dim1=1, dim2=2).T  # (2n, T)
    known = (square[:exits] > 0) & (square[exits:] > 0)
    pairs = (owned * (owned.sum(dim=0) - 1) * known).double()
    return float((pairs * (dot < 0)).sum() / pairs.sum())


def share_after(grams: Tensor, owned: Tensor) -> float:
    """Share of (exit, tensor) whose delta has a negative cosine with the fused update (0–1); NaN if none.

    Counted are the tensors that at least two exits own: where one is alone, the update is its own delta.

    Args:
        grams: (T, n + 1, n + 1) of the deltas, and last of the update.
    """
    dot, square = grams[:, :-1, -1].T, grams.diagonal(dim1=1, dim2=2).T[:-1]
    counted = owned & (owned.sum(dim=0) > 1) & (square > 0)
    return _negative_share(dot.masked_fill(~counted, torch.nan))


def _pair_cosines(grams: Tensor, owned: Tensor) -> Tensor:
    """Cosine of every pair i < j in every tensor (T, pairs), NaN where one does not own it or is zero."""
    first, second = torch.triu_indices(grams.shape[1], grams.shape[2], offset=1)
    square = grams.diagonal(dim1=1, dim2=2)  # (T, n)
    cosine = grams[:, first, second] / (square[:, first] * square[:, second]).sqrt()
    both = (owned[first] & owned[second]).T
    return cosine.masked_fill(~both, torch.nan)


def _negative_share(values: Tensor) -> float:
    known = values[~values.isnan()]
    return float((known < 0).double().mean())  # the mean of nothing is NaN

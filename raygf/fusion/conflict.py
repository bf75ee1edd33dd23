"""What a round reports of its fusion: weights, and how far the exits' expected gradients pull apart.

Cosines between the deltas, and with the update that fuses them. Throughout: n exits, T tensors, S segments;
Gramians per tensor (T, n, n) or segment (S, n, n), float64 on the CPU; ``owned`` (n, T), bool: which exit
depends on which tensor.
"""

from collections.abc import Sequence
from operator import mul

import torch
from torch import Tensor

from raygf.fusion.fuse import Fused
from raygf.records import FusionReport
from raygf.training.space import Block, Segments


def fusion_report(
    deltas: Sequence[Tensor], fused: Fused, segments: Segments, owned: Tensor, coefficients: Sequence[float]
) -> FusionReport:
    """The report on ``fused``, made of ``deltas``, n vectors (P,); ``coefficients`` (n,): c in F."""
    # The conflict is measured on never more than one tensor at a time.
    fine = segments if segments.kind == "channel" else Segments("tensor", segments.space)
    alpha = fused.alpha.detach().double()
    fine_alpha = alpha if alpha.shape[1] == fine.count else alpha.expand(-1, fine.count)
    per_tensor = segments.slot_means(alpha).masked_fill(~owned, torch.nan)
    shared = owned & (owned.sum(dim=0) > 1)
    fine_grams = segment_gramians(deltas, fine)
    grams = slot_gramians(fine_grams, fine)
    return FusionReport(
        weights=per_tensor.numpy(),
        mean_weight=tuple(per_tensor.masked_fill(~shared, torch.nan).nanmean(dim=1).tolist()),
        cosine=shared_cosine(grams, owned).numpy(),
        delta_norm=tuple(delta_norms(grams, owned).tolist()),
        loss=sum(map(mul, coefficients, fused.score.loss)),
        accuracy=fused.score.accuracy,
        tensor_cosine=tensor_cosines(grams, owned).numpy(),
        conflict_before=share_before(grams, owned),
        conflict_after=share_after(fine_grams, fine_alpha, fine, owned),
    )


def segment_gramians(deltas: Sequence[Tensor], segments: Segments) -> Tensor:
    """``⟨Δ_i, Δ_j⟩`` within every segment (S, n, n) for n vectors Δ_i (P,)."""
    grams = torch.zeros(segments.count, len(deltas), len(deltas), dtype=torch.float64)
    for block in segments.blocks:
        grams[block.first : block.last] += _block_gramians(deltas, block).double().cpu()
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


def share_after(grams: Tensor, alpha: Tensor, segments: Segments, owned: Tensor) -> float:
    """Share of (exit, tensor) whose delta has a negative cosine with the fused update (0–1); NaN if none.

    Counted are the tensors that at least two exits own: where one is alone, the update is its own delta.
    ``⟨Δ_i, Σ_j α_j Δ_j⟩ = Σ_j α_j ⟨Δ_i, Δ_j⟩`` segment by segment, so no vector of length P is needed.
    ``grams`` are those of the segments, none of which reaches over several tensors; ``alpha`` (n, S).
    """
    dot = _slot_sums(torch.einsum("js,sij->is", alpha.to(grams.dtype), grams), segments)
    square = _slot_sums(grams.diagonal(dim1=1, dim2=2).T, segments)
    counted = owned & (owned.sum(dim=0) > 1) & (square > 0)
    return _negative_share(dot.masked_fill(~counted, torch.nan))


def slot_gramians(grams: Tensor, segments: Segments) -> Tensor:
    """Gramians per segment (S, n, n) → per tensor (T, n, n)."""
    return torch.stack([grams[part].sum(dim=0) for part in segments.of_slots])


def _block_gramians(deltas: Sequence[Tensor], block: Block) -> Tensor:
    """The Gramians of one block's parts (parts, n, n)."""
    rows = torch.stack([delta[block.start : block.stop] for delta in deltas])
    if block.parts == 1:
        return (rows @ rows.T).unsqueeze(0)
    cube = rows.view(len(deltas), block.parts, -1).transpose(0, 1)
    return torch.bmm(cube, cube.transpose(1, 2))


def _pair_cosines(grams: Tensor, owned: Tensor) -> Tensor:
    """Cosine of every pair i < j in every tensor (T, pairs), NaN where one does not own it or is zero."""
    first, second = torch.triu_indices(grams.shape[1], grams.shape[2], offset=1)
    square = grams.diagonal(dim1=1, dim2=2)  # (T, n)
    cosine = grams[:, first, second] / (square[:, first] * square[:, second]).sqrt()
    both = (owned[first] & owned[second]).T
    return cosine.masked_fill(~both, torch.nan)


def _slot_sums(values: Tensor, segments: Segments) -> Tensor:
    """Values per segment (n, S) → their sum over each tensor's segments (n, T)."""
    return torch.stack([values[:, part].sum(dim=1) for part in segments.of_slots], dim=1)


def _negative_share(values: Tensor) -> float:
    known = values[~values.isnan()]
    return float((known < 0).double().mean())  # the mean of nothing is NaN

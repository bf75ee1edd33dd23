"""Rules without learning: the exits' deltas averaged with equal weights, or weighed by their Gramian."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from raygf.data.base import Batch
from raygf.errors import NonFiniteError
from raygf.fusion.conflict import shared_gramian, tensor_gramians
from raygf.fusion.fuse import Fused, fuse
from raygf.methods.base import Weighting, weigh
from raygf.records import ExitScore
from raygf.training.losses import ExitLosses, Tally, exit_hits
from raygf.training.network import Arrays, BoundNetwork
from raygf.training.space import Segments


class WeighedFusion:
    """``α_i^s = m_i^s w_i / Σ_j m_j^s w_j`` with one ``w_i`` an exit.

    ``w`` comes from a weighting of the Gramian of the deltas over the tensors that exits share. Dividing by
    the owners' sum makes the step a mean of deltas, as in Meta-GF: equal deltas give that delta, whatever
    the weighting's own scale. Where the owners' weights add up to nothing positive, their plain mean is
    taken.
    """

    def __init__(
        self,
        weighting: Weighting,
        bound: BoundNetwork,
        segments: Segments,
        owned: Tensor,
        epsilon: float,
        losses_of: ExitLosses,
    ) -> None:
        """``owned`` (n, T): which exit depends on which tensor."""
        self._weighting = weighting
        self._bound = bound
        self._segments = segments
        self._owned = owned
        self._epsilon = epsilon
        self._losses = losses_of

    def fuse(
        self,
        base: Tensor,
        deltas: Sequence[Tensor],
        buffers: dict[str, Tensor],
        batches: Iterable[Batch],
        lr: float,
        where: str,
    ) -> Fused:
        """See ``FusionRule.fuse``; nothing is learned, so ``lr`` is not used."""
        gramian = shared_gramian(tensor_gramians(deltas, self._bound.space), self._owned)
        try:
            weights = weigh(self._weighting, gramian.float())
        except NonFiniteError as error:
            raise NonFiniteError(f"{where}: {error}; lower optim.lr") from None
        alpha = owner_shares(weights, self._segments.spread(self._owned))
        vector = fuse(base, deltas, self._epsilon * alpha.to(base.device), self._segments)
        return Fused(alpha, vector, buffers, self._recalibrate(vector, buffers, batches, where))

    def arrays(self) -> Arrays:
        """Nothing is kept."""
        return {}

    def restore(self, arrays: Arrays) -> None:
        """Nothing to take back."""

    @torch.no_grad()
    def _recalibrate(
        self, vector: Tensor, buffers: dict[str, Tensor], batches: Iterable[Batch], where: str
    ) -> ExitScore:
        """Let BatchNorm statistics gather in ``buffers``, in train mode at the fused weights."""
        named = {**self._bound.space.views(vector), **buffers}
        self._bound.network.train()
        tally = Tally()
        for images, labels in batches:
            with self._bound.compute.autocast():
                logits = functional_call(self._bound.network, named, (images,))
            tally.add(self._losses(logits, labels), exit_hits(logits, labels), len(labels))
        return tally.finite_score("", where)


def owner_shares(weights: Tensor, owned: Tensor) -> Tensor:
    """One weight an exit (n,) → fusion weights (n, S) that sum to 1 over the owners of every segment.

    Args:
        weights: w (n,), of any sign.
        owned: mask (n, S), bool; a segment without an owner gets weight 0 from all.
    """
    raw = weights[:, None] * owned
    total = raw.sum(dim=0)
    alone = owned.sum(dim=0) == 1
    usable = (total > 1e-3 * weights.abs().max()) & ~alone
    mean = owned / owned.sum(dim=0).clamp_min(1)
    return torch.where(usable, raw / torch.where(usable, total, 1.0), mean.to(weights))

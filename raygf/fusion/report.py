"""What is told of a fusion: weights, conflict between the deltas, loss of the fused network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from raygf.evaluation.conflict import (
    delta_norms,
    segment_gramians,
    share_after,
    share_before,
    shared_cosine,
    slot_gramians,
    tensor_cosines,
)
from raygf.fusion.rules import Fused
from raygf.fusion.segments import Segments
from raygf.records import FusionReport


class FusionReporter:
    """Reports on fusions of one network; ``owned`` (n, T): which exit depends on which tensor."""

    def __init__(self, segments: Segments, owned: Tensor) -> None:
        self._segments = segments
        self._owned = owned
        # What the conflict is measured on: never more than one tensor at a time.
        self._fine = segments if segments.kind == "channel" else Segments("tensor", segments.space)

    def report(self, deltas: Sequence[Tensor], fused: Fused) -> FusionReport:
        """The report on ``fused``, made of ``deltas``, n vectors (P,)."""
        alpha, owned = fused.alpha.detach().double(), self._owned
        per_tensor = self._segments.slot_means(alpha).masked_fill(~owned, torch.nan)
        shared = owned & (owned.sum(dim=0) > 1)
        fine_alpha = alpha if alpha.shape[1] == self._fine.count else alpha.expand(-1, self._fine.count)
        fine_grams = segment_gramians(deltas, self._fine)
        grams = slot_gramians(fine_grams, self._fine)
        return FusionReport(
            weights=per_tensor.numpy(),
            mean_weight=tuple(per_tensor.masked_fill(~shared, torch.nan).nanmean(dim=1).tolist()),
            cosine=shared_cosine(grams, owned).numpy(),
            delta_norm=tuple(delta_norms(grams, owned).tolist()),
            loss=sum(fused.score.loss),
            accuracy=fused.score.accuracy,
            tensor_cosine=tensor_cosines(grams, owned).numpy(),
            conflict_before=share_before(grams, owned),
            conflict_after=share_after(fine_grams, fine_alpha, self._fine, owned),
        )

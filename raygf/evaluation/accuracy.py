"""Anytime accuracy: every exit on every image of a split."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from raygf.bound import BoundNetwork
from raygf.data.base import Batch
from raygf.losses import exit_hits, exit_losses
from raygf.records import ExitScore
from raygf.stepping import mean_score


@torch.inference_mode()
def evaluate(bound: BoundNetwork, batches: Iterable[Batch]) -> ExitScore:
    """Mean cross-entropy and top-1 accuracy of every exit over ``batches``, in evaluation mode."""
    bound.network.eval()
    losses, hits, sizes = [], [], []
    for images, labels in batches:
        with bound.compute.autocast():
            logits = bound.network(images)
        losses.append(exit_losses(logits, labels))
        hits.append(exit_hits(logits, labels))
        sizes.append(len(labels))
    return mean_score(torch.stack(losses).cpu(), torch.stack(hits).cpu(), sizes)

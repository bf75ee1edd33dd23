"""Anytime accuracy: every exit on every image of a split."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from raygf.data.base import Batch
from raygf.records import ExitScore
from raygf.training.bound import BoundNetwork
from raygf.training.losses import exit_hits, exit_losses
from raygf.training.tally import Tally


@torch.inference_mode()
def evaluate(bound: BoundNetwork, batches: Iterable[Batch]) -> ExitScore:
    """Mean cross-entropy and top-1 accuracy of every exit over ``batches``, in evaluation mode."""
    bound.network.eval()
    tally = Tally()
    for images, labels in batches:
        with bound.compute.autocast():
            logits = bound.network(images)
        tally.add(exit_losses(logits, labels), exit_hits(logits, labels), len(labels))
    return tally.score()

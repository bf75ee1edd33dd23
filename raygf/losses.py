"""Cross-entropy and accuracy of all exits at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def exit_losses(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Mean cross-entropy of every exit (n,), in float32.

    Args:
        logits: n tensors (B, classes), shallow to deep.
        labels: (B,), int64.
    """
    stacked = torch.stack(list(logits)).float()
    n, batch, classes = stacked.shape
    losses = F.cross_entropy(stacked.view(n * batch, classes), labels.repeat(n), reduction="none")
    return losses.view(n, batch).mean(dim=1)


def exit_hits(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Number of images that each exit classifies rightly (n,), int64."""
    return (torch.stack(list(logits)).argmax(dim=2) == labels).sum(dim=1)

"""Cross-entropy and accuracy of all exits at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from raygf.config import LossConfig

ExitLosses = Callable[[Sequence[Tensor], Tensor], Tensor]
"""From n logits (B, classes) and labels (B,) to the n exits' losses."""


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


def distilled_losses(logits: Sequence[Tensor], labels: Tensor, gamma: float, temperature: float) -> Tensor:
    """Losses (n,) of exits that learn from the deepest one: ``(1 − γ)·CE + γ·T²·KL``, itself plain CE.

    Hinton, Vinyals, Dean 2015, with the network's own last exit as teacher (Phuong, Lampert, ICCV 2019): KL
    from its softened output, which gets no gradient, to the exit's (the paper's KD, Table 5).

    Args:
        logits: n tensors (B, classes), shallow to deep.
        labels: (B,), int64.
        gamma: γ, share of the softened output.
        temperature: T.
    """
    plain = exit_losses(logits, labels)
    if len(logits) == 1:
        return plain
    students = torch.stack(list(logits[:-1])).float() / temperature
    teacher = (logits[-1].detach().float() / temperature).log_softmax(dim=-1).expand_as(students)
    divergence = F.kl_div(students.log_softmax(dim=-1), teacher, reduction="none", log_target=True)
    soft = divergence.sum(dim=2).mean(dim=1) * temperature**2
    return torch.cat([(1 - gamma) * plain[:-1] + gamma * soft, plain[-1:]])


def make_losses(config: LossConfig) -> ExitLosses:
    """The losses that exits train on."""
    if not config.distill:
        return exit_losses
    return partial(distilled_losses, gamma=config.gamma, temperature=config.temperature)


def exit_hits(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Number of images that each exit classifies rightly (n,), int64."""
    return (torch.stack(list(logits)).argmax(dim=2) == labels).sum(dim=1)

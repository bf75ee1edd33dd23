"""A network that answers at several depths."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn


class MultiExitNetwork(nn.Module):
    """Stages in a row, each followed by a classifier head.

    The state that stage ``k`` hands to head ``k`` and to stage ``k + 1`` is whatever the stage returns: a
    tensor, or a tuple or list of tensors. So a caller may walk the stages itself and stop at any exit.

    Args:
        stages: The parts of the backbone, shallow to deep. The first one gets the images.
        heads: One classifier per stage, from its state to logits (B, classes).

    Raises:
        ValueError: there are no stages, or not as many heads as stages.
    """

    branch: int = -1
    """Which part of a state of several tensors the heads read; the other parts only go on."""
    stages: nn.ModuleList
    heads: nn.ModuleList

    def __init__(self, stages: Iterable[nn.Module], heads: Iterable[nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.heads = nn.ModuleList(heads)
        if not len(self.stages) or len(self.stages) != len(self.heads):
            raise ValueError(
                f"{len(self.stages)} stages and {len(self.heads)} heads: there must be one head per stage"
            )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Logits of every exit.

        Args:
            x: Images (B, C, H, W).

        Returns:
            One tensor (B, classes) per exit, shallow to deep.
        """
        state: Any = x
        logits = []
        for stage, head in zip(self.stages, self.heads, strict=True):
            state = stage(state)
            logits.append(head(state))
        return logits

"""The interface of fusion rules: how n deltas become one update of the network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from raygf.data.base import Batch
from raygf.records import ExitScore
from raygf.training.state import Arrays


@dataclass(frozen=True)
class Fused:
    """The outcome of a rule.

    ``alpha`` (n, S): the fusion weights. ``vector`` (P,): W + ε Σ_i α_i Δ_i. ``buffers``: with BatchNorm
    statistics gathered in a pass over the training set in train mode; ``score``: of the network in that pass.
    """

    alpha: Tensor
    vector: Tensor
    buffers: dict[str, Tensor]
    score: ExitScore


class FusionRule(Protocol):
    """Fuses once a round; may keep arrays from round to round."""

    def fuse(
        self,
        base: Tensor,
        deltas: Sequence[Tensor],
        buffers: dict[str, Tensor],
        batches: Iterable[Batch],
        lr: float,
        where: str,
    ) -> Fused:
        """Fuse ``deltas``, n vectors (P,), into ``base`` (P,).

        Args:
            buffers: the network's buffers, fresh copies that may be written to.
            batches: one shuffled, augmented pass over the training set.
            lr: learning rate of what the rule learns.
            where: names the pass in errors.

        Raises:
            NonFiniteError: a loss or weight is not finite.
        """
        ...

    def arrays(self) -> Arrays:
        """What belongs to the checkpoint."""
        ...

    def restore(self, arrays: Arrays) -> None:
        """Take back what ``arrays`` gave.

        Raises:
            KeyError: one is missing.
            CheckpointError: they belong to another network.
        """
        ...

"""The interface of what makes one round: Meta-GF's exits and fusion pass, or one epoch of joint training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from raygf.records import ExitScore, FusionReport
from raygf.training.state import Arrays, NetworkState


@dataclass(frozen=True)
class RoundOutcome:
    """The network after a round and what is to be told of it; ``seconds`` by phase.

    ``skipped``: the round came to nothing, and the network is what it was before.
    """

    state: NetworkState
    train: ExitScore
    seconds: dict[str, float]
    fusion: FusionReport | None = None
    notes: tuple[str, ...] = field(default=())
    skipped: bool = False


class RoundMethod(Protocol):
    """One round of training; may keep arrays (fusion weights, momentum) that belong to the checkpoint."""

    passes: int
    """Passes over the training set that a round costs."""

    def run(self, state: NetworkState, round: int) -> RoundOutcome:
        """Train round ``round`` (from 1) starting from ``state``.

        Raises:
            NonFiniteError: a loss or weight is not finite; ``restore`` takes back what has changed.
        """
        ...

    def arrays(self) -> Arrays:
        """What must be stored so that the next round goes on as if nothing had happened."""
        ...

    def restore(self, arrays: Arrays) -> None:
        """Take back what ``arrays`` gave."""
        ...

    def close(self) -> None:
        """Give back processes and memory."""
        ...

"""The interface of what makes one round: Meta-GF's exits and fusion pass, or one epoch of joint training."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

from raygf.config.run import RunConfig
from raygf.errors import NonFiniteError
from raygf.records import ExitScore, FusionReport
from raygf.training.network import Arrays, NetworkState, as_tensor, buffers_not_finite, not_finite
from raygf.training.space import FlatSpace


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


def require_finite(state: NetworkState, space: FlatSpace, round: int) -> None:
    """Raise NonFiniteError, naming the layer, unless the merged ``state`` of ``round`` is finite."""
    layer = not_finite(as_tensor(state.vector), space) or buffers_not_finite(state.buffers)
    if layer:
        raise NonFiniteError(
            f"round {round}: the weights became infinite or NaN: {layer}; nothing was stored; lower optim.lr"
        )


def skip_or_raise(error: NonFiniteError, round: int, config: RunConfig, skipped: int) -> str:
    """A remark on why ``round`` is skipped, if it may be.

    Args:
        skipped: rounds before that were skipped, in a row.

    Raises:
        NonFiniteError: ``error``, with what can be done about it, or why it was not skipped.
    """
    if config.on_divergence == "stop":
        raise NonFiniteError(f"{error}; --on-divergence skip-round goes on without such rounds")
    if skipped >= config.max_skipped_rounds:
        raise NonFiniteError(f"{error}; as many rounds in a row as allowed were skipped before: {skipped}")
    return f"round {round} skipped, the network is as it was before: {error}"


def skipped(state: NetworkState, exits: int, seconds: float, note: str) -> RoundOutcome:
    """The outcome of a skipped round that started from ``state`` and took ``seconds``."""
    unknown = ExitScore((math.nan,) * exits, (math.nan,) * exits)
    return RoundOutcome(state, unknown, {"train": seconds}, notes=(note,), skipped=True)

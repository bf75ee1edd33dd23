"""What to do with a round in which something became NaN or infinite: stop, or leave it out."""

from __future__ import annotations

import math

from raygf.config import RunConfig
from raygf.errors import NonFiniteError
from raygf.fusion.flat import FlatSpace
from raygf.records import ExitScore
from raygf.training.bound import as_tensor
from raygf.training.finite import buffers_not_finite, not_finite
from raygf.training.rounds import RoundOutcome
from raygf.training.state import NetworkState


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

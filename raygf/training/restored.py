"""What has to hold of a network's state that comes from a file."""

from __future__ import annotations

from raygf.errors import CheckpointError
from raygf.training.bound import BoundNetwork, as_tensor
from raygf.training.finite import buffers_not_finite, not_finite
from raygf.training.state import NetworkState


def check_restored(bound: BoundNetwork, state: NetworkState) -> None:
    """Raise CheckpointError unless ``state`` belongs to the network of ``bound`` and is finite throughout."""
    bound.check(state)
    where = not_finite(as_tensor(state.vector), bound.space) or buffers_not_finite(state.buffers)
    if where:
        raise CheckpointError(f"the checkpoint's weights are not finite: {where}; take an earlier checkpoint")

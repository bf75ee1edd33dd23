"""Whether a checkpoint and a configuration belong to the same run."""

from __future__ import annotations

from typing import Any

from raygf.config import RunConfig
from raygf.config_dict import flatten, to_dict
from raygf.errors import CheckpointError
from raygf.storage.checkpoint import Checkpoint

FREE_ON_RESUME = (
    *("resources", "storage", "tracking", "stop_after", "eval_batch_size"),
    *("data.workers", "data.max_undecodable"),
    *("on_divergence", "max_skipped_rounds"),  # a run that has got this far did so under either
)
"""Fields of a run that do not change its result."""


def binding(values: dict[str, Any]) -> dict[str, Any]:
    """The fields of a configuration (as ``to_dict`` gives it) that change the result, by dotted name."""
    free = tuple(f"{name}." for name in FREE_ON_RESUME)
    return {name: value for name, value in flatten(values).items() if not f"{name}.".startswith(free)}


def require_same_run(checkpoint: Checkpoint, config: RunConfig) -> None:
    """Raise CheckpointError if a field that changes the result differs from the checkpoint's."""
    if not isinstance(checkpoint.meta.get("config"), dict):
        raise CheckpointError("the checkpoint does not say which configuration it belongs to")
    stored, now = (binding(values) for values in (checkpoint.meta["config"], to_dict(config)))
    odd = sorted(name for name in stored.keys() | now.keys() if stored.get(name) != now.get(name))
    if odd:
        shown = "; ".join(f"{name} was {stored.get(name)!r}, is now {now.get(name)!r}" for name in odd[:3])
        raise CheckpointError(
            f"can't resume with another configuration: {shown}; give the same, or another --storage.name"
        )

"""The fusion weights that a checkpoint holds.

Which η: every merge uses the one fitted in its round (``eta_fitted`` in the checkpoint), the next round
starts from its moving average (``eta``). What the network has become is due to the fitted one, so that one is
read; checkpoints that lack it give the moving average, and ``source`` says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from raygf.errors import CheckpointError
from raygf.evaluation.checkpointed import LoadedRun
from raygf.fusion.ownership import find_ownership
from raygf.fusion.segments import Segments
from raygf.fusion.weights import fusion_weights
from raygf.records import Matrix
from raygf.storage.checkpoint import Checkpoint
from raygf.training.bound import as_tensor

EtaSource = Literal["fitted", "carried"]


@dataclass(frozen=True, eq=False)
class LearnedWeights:
    """The fusion weights of a checkpoint: n exits, S segments, T parameter tensors.

    ``alpha`` (n, S). ``owned``: mask (n, S). ``source``: "fitted" if they are those of the last merge,
    "carried" if the checkpoint has only the moving average that the next round starts from.
    ``per_tensor`` (n, T): their means over each tensor, NaN where the exit does not own it.
    """

    alpha: Tensor
    owned: Tensor
    segments: Segments
    source: EtaSource
    per_tensor: Matrix


def learned_weights(run: LoadedRun) -> LearnedWeights | None:
    """The fusion weights in ``run``'s checkpoint; None if its method learns none.

    Raises:
        CheckpointError: they do not fit the network.
    """
    eta, source = _stored_eta(run.checkpoint)
    if eta is None:
        return None
    space, fusion = run.bound.space, run.config.fusion
    segments = Segments(fusion.segments, space)
    example = run.dataset.spec.blank(2, run.bound.compute.device)
    per_slot = find_ownership(run.bound.network, example, space)
    owned = segments.spread(per_slot)
    if eta.shape != owned.shape:
        raise CheckpointError(
            f"the checkpoint's fusion weights {tuple(eta.shape)} are not those of "
            f"{owned.shape[0]} exits and {owned.shape[1]} segments: it belongs to another network"
        )
    alpha = fusion_weights(eta, owned, fusion.normalise)
    per_tensor = segments.slot_means(alpha).double().masked_fill(~per_slot, torch.nan).numpy()
    return LearnedWeights(alpha, owned, segments, source, per_tensor)


def _stored_eta(checkpoint: Checkpoint) -> tuple[Tensor | None, EtaSource]:
    """η (n, S): the last fitted one if the checkpoint has it, else its moving average."""
    arrays = checkpoint.method
    if "eta_fitted" in arrays:
        return as_tensor(arrays["eta_fitted"]), "fitted"
    return (as_tensor(arrays["eta"]), "carried") if "eta" in arrays else (None, "carried")

"""The fusion weights of a past run, and the exits that suffer when what is important to one exit is pruned.

Meta-GF paper (Sun, Li, Xu, ECCV 2022), Section 4.3, "Analysis about the learned fusion weights", and Fig. 4.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raygf.errors import CheckpointError
from raygf.evaluation.loading import LoadedRun
from raygf.evaluation.outputs import evaluate
from raygf.fusion.fuse import fusion_weights
from raygf.records import Matrix
from raygf.training.network import NetworkState, Vector, as_tensor
from raygf.training.space import Segments


@dataclass(frozen=True, eq=False)
class LearnedWeights:
    """The fusion weights of a checkpoint: n exits, S segments, T parameter tensors.

    ``alpha`` (n, S). ``owned``: mask (n, S). ``per_tensor`` (n, T): means of ``alpha`` over each tensor, NaN
    where the exit does not own it.
    """

    alpha: Tensor
    owned: Tensor
    segments: Segments
    per_tensor: Matrix


def learned_weights(run: LoadedRun) -> LearnedWeights | None:
    """The fusion weights in ``run``'s checkpoint; None if its method learns none.

    They are those of the last merge (``eta_fitted`` in the checkpoint): what the network has become is due to
    them, and not to the moving average that the next round starts from (``eta``).

    Raises CheckpointError: they do not fit the network.
    """
    stored = run.checkpoint.method.get("eta_fitted")
    if stored is None:
        return None
    eta, space, fusion = as_tensor(stored), run.bound.space, run.config.fusion
    segments = Segments(fusion.segments, space)
    per_slot = run.owned()
    owned = segments.spread(per_slot)
    if eta.shape != owned.shape:
        raise CheckpointError(
            f"the checkpoint's fusion weights {tuple(eta.shape)} are not those of "
            f"{owned.shape[0]} exits and {owned.shape[1]} segments: it belongs to another network"
        )
    alpha = fusion_weights(eta, owned, fusion.normalise)
    per_tensor = segments.slot_means(alpha).double().masked_fill(~per_slot, torch.nan).numpy()
    return LearnedWeights(alpha, owned, segments, per_tensor)


THRESHOLD = 0.5

Measure = Callable[[Vector], Sequence[float]]
"""Accuracy (0–1) of every exit with the given weights (P,)."""


@dataclass(frozen=True, eq=False)
class Importance:
    """n exits. ``segments``, ``parameters`` (n,): how many are important to each exit.

    ``baseline`` (n,): accuracy of each exit before pruning, 0–1. Both matrices (n, n) hold the share of its
    accuracy that an exit (column) lost when the important parameters of an exit (row) were set to zero:
    ``alone`` with all others in place; ``in_turn`` with those of the rows above gone already, relative to the
    row above. Negative: it gained; NaN: there was nothing left to lose.
    """

    segments: tuple[int, ...]
    parameters: tuple[int, ...]
    baseline: tuple[float, ...]
    alone: Matrix
    in_turn: Matrix


def important_segments(alpha: Tensor, owned: Tensor) -> Tensor:
    """The mask (n, S): ``α_i^s > 0.5`` in a segment that at least two exits own, by the mask ``owned``."""
    return (alpha > THRESHOLD) & owned & (owned.sum(dim=0) > 1)


def measure_importance(vector: Vector, important: Tensor, segments: Segments, measure: Measure) -> Importance:
    """Prune exit by exit, shallow to deep, and measure all exits each time.

    ``vector``: the trained weights (P,). ``important``: mask (n, S). ``measure`` is called 1 + 2n times.
    """
    baseline = np.array(measure(vector))
    alone, in_turn, left, before = [], [], vector, baseline
    for row in important:
        keep = ~row.repeat_interleave(segments.lengths).numpy()
        alone.append(relative_loss(baseline, np.array(measure(vector * keep))))
        left = left * keep
        after = np.array(measure(left))
        in_turn.append(relative_loss(before, after))
        before = after
    return Importance(
        segments=tuple(important.sum(dim=1).tolist()),
        parameters=tuple((important * segments.lengths).sum(dim=1).tolist()),
        baseline=tuple(baseline.tolist()),
        alone=np.array(alone),
        in_turn=np.array(in_turn),
    )


def importance_of(run: LoadedRun, learned: LearnedWeights) -> Importance:
    """``measure_importance`` of a past run, on its test images; its network is left as it was."""
    state = run.checkpoint.evaluated

    def measure(vector: Vector) -> Sequence[float]:
        run.bound.load(NetworkState(vector, state.buffers))
        return evaluate(run.bound, run.batches.evaluate("test")).accuracy

    important = important_segments(learned.alpha, learned.owned)
    try:
        return measure_importance(state.vector, important, learned.segments, measure)
    finally:
        run.bound.load(state)


def relative_loss(before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(before − after) / before``, NaN where ``before`` is 0."""
    return np.divide(before - after, before, out=np.full_like(before, np.nan), where=before > 0)

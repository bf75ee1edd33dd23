"""What a run says of itself: plain records that the terminal, MLflow and Tune read alike."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class ExitScore:
    """How the exits do on one split: mean cross-entropy and top-1 accuracy (0–1), shallow to deep."""

    loss: tuple[float, ...]
    accuracy: tuple[float, ...]


@dataclass(frozen=True)
class FusionReport:
    """What fusing did in one round; n exits, T parameter tensors.

    ``weights`` (n, T): mean fusion weight of each exit in each tensor, NaN where the exit does not own it.
    ``mean_weight`` (n,): each exit's mean over the tensors that it shares with others.
    ``cosine`` (n, n): between the exits' deltas, over what both own. ``delta_norm`` (n,): L2 norms.
    ``loss``: mean of F over the fusion pass; ``accuracy`` (n,): of the fused network in it, 0–1.
    ``tensor_cosine`` (T,): mean cosine of all pairs of exits, NaN where fewer than two own the tensor.
    ``conflict_before``: share (0–1) of negative cosines over pairs and tensors that both own.
    ``conflict_after``: share (0–1) of (exit, shared tensor) whose delta has a negative cosine with the fused
    update. Both are NaN where nothing is shared.
    """

    weights: Matrix
    mean_weight: tuple[float, ...]
    cosine: Matrix
    delta_norm: tuple[float, ...]
    loss: float
    accuracy: tuple[float, ...]
    tensor_cosine: Matrix
    conflict_before: float
    conflict_after: float


@dataclass(frozen=True)
class RoundRecord:
    """One round. ``round`` counts from 1; ``training_passes`` counts passes over the training set so far.

    ``skipped``: it diverged and left the network as it was; ``train`` is NaN then, and the notes say why.
    """

    round: int
    rounds: int
    training_passes: int
    lr: float
    fusion_lr: float
    train: ExitScore
    val: ExitScore | None
    seconds: dict[str, float]
    checkpoint: str
    fusion: FusionReport | None = None
    notes: tuple[str, ...] = ()
    skipped: bool = False

    @property
    def total_seconds(self) -> float:
        """Wall time of the whole round."""
        return sum(self.seconds.values())


@dataclass(frozen=True)
class RunStart:
    """What is known before the first round.

    ``round``: rounds done already, when the run is resumed; ``run_id``: its tracking run. ``parameters`` and
    ``operations`` are cumulative up to each exit, shallow to deep. ``tensors``: names, shallow to deep.
    ``recent``: the records of the last rounds done already, as far as the checkpoint has them.
    """

    round: int
    classes: int
    train_images: int
    val_images: int
    test_images: int
    parameters: tuple[int, ...]
    operations: tuple[int, ...]
    tensors: tuple[str, ...]
    setting: str
    run_id: str = ""
    notes: tuple[str, ...] = ()
    recent: tuple[RoundRecord, ...] = field(default=(), compare=False)

    @property
    def last(self) -> RoundRecord | None:
        """The record of round ``round``, if there is one."""
        return self.recent[-1] if self.recent else None


@dataclass(frozen=True)
class RunEnd:
    """What is known after the last round."""

    rounds: int
    training_passes: int
    test: ExitScore
    weights_sha256: str
    checkpoint: str
    finished: bool

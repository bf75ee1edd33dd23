"""What every exit says about every image of a split: one pass, from which all evaluations are computed."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raygf.data.base import Batch
from raygf.errors import DataError, NonFiniteError
from raygf.records import ExitScore
from raygf.training.losses import Tally, exit_hits, exit_losses
from raygf.training.network import BoundNetwork

TOP = 5


@dataclass(frozen=True, eq=False)
class ExitOutputs:
    """n exits, shallow to deep, on N images in the split's own order.

    ``confidence`` (n, N): the largest softmax probability, 0–1. ``prediction`` (n, N): the class that has it.
    ``top5_hit`` (n, N): whether the label is among the five likeliest classes. ``labels`` (N,).

    Raises:
        ValueError: the shapes do not fit.
    """

    confidence: NDArray[np.float64]
    prediction: NDArray[np.int64]
    top5_hit: NDArray[np.bool_]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        shape = (len(self.confidence), len(self.labels))
        found = [array.shape for array in (self.confidence, self.prediction, self.top5_hit)]
        if any(theirs != shape for theirs in found) or 0 in shape:
            raise ValueError(f"confidence, prediction and top5_hit {found} do not fit {shape[1]} labels")

    @property
    def hit(self) -> NDArray[np.bool_]:
        """Whether the likeliest class is the label: (n, N)."""
        return np.asarray(self.prediction == self.labels)

    @property
    def top1(self) -> tuple[float, ...]:
        """Anytime accuracy: the share of images that each exit gets right, 0–1, shallow to deep."""
        return tuple(self.hit.mean(axis=1).tolist())

    @property
    def top5(self) -> tuple[float, ...]:
        """Share of images whose label is among each exit's five likeliest classes, 0–1."""
        return tuple(self.top5_hit.mean(axis=1).tolist())


@torch.inference_mode()
def collect_outputs(bound: BoundNetwork, batches: Iterable[Batch]) -> ExitOutputs:
    """One pass over ``batches`` in evaluation mode, with the network's own compute.

    Raises:
        DataError: there are no images.
        NonFiniteError: an exit's output is infinite or NaN.
    """
    bound.network.eval()
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    labels: list[Tensor] = []
    for images, truth in batches:
        with bound.compute.autocast():
            logits = torch.stack([exit.float() for exit in bound.network(images)])
        likeliest = logits.topk(min(TOP, logits.shape[-1]), dim=-1).indices
        parts.append((*read_logits(logits), (likeliest == truth[:, None]).any(dim=-1)))
        labels.append(truth)
    if not labels:
        raise DataError("there are no images to evaluate")
    confidence, prediction, hits = (torch.cat(kind, dim=1).cpu().numpy() for kind in zip(*parts, strict=True))
    if not np.isfinite(confidence).all():
        exit = int(np.flatnonzero(~np.isfinite(confidence).all(axis=1))[0]) + 1
        raise NonFiniteError(f"exit {exit} gives outputs that are infinite or NaN")
    return ExitOutputs(confidence, prediction, hits, torch.cat(labels).cpu().numpy())


def read_logits(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Largest softmax probability (...) and its class (...) of logits (..., classes).

    The probability is computed in float32 and returned as float64, so that it compares with a threshold as
    it is: rounding the threshold instead could move an image that sits on it.
    """
    logits = logits.float()
    top, prediction = logits.max(dim=-1, keepdim=True)
    probability = (logits - top).exp().sum(dim=-1).reciprocal()
    return probability.double(), prediction.squeeze(-1)


@torch.inference_mode()
def evaluate(bound: BoundNetwork, batches: Iterable[Batch]) -> ExitScore:
    """Mean cross-entropy and top-1 accuracy of every exit over ``batches``, in evaluation mode."""
    bound.network.eval()
    tally = Tally()
    for images, labels in batches:
        with bound.compute.autocast():
            logits = bound.network(images)
        tally.add(torch.stack(exit_losses(logits, labels)), exit_hits(logits, labels), len(labels))
    return tally.score()

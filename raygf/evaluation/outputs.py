"""What every exit says about every image of a split: one pass, from which all evaluations are computed.

And how far its probabilities are to be trusted: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern
Neural Networks", ICML 2017.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raygf.config.run import Policy
from raygf.data.base import Batch
from raygf.errors import DataError, NonFiniteError
from raygf.records import ExitScore
from raygf.training.losses import Tally, exit_hits, exit_losses
from raygf.training.network import BoundNetwork

TOP = 5
BINS = 15
"""Bins of equal width for confidences, as in the paper."""
TEMPERATURES = tuple((2.0 ** np.linspace(-3, 3, 145)).tolist())
"""Those that are tried: from 1/8 to 8, 3 % apart."""


@dataclass(frozen=True, eq=False)
class ExitOutputs:
    """n exits, shallow to deep, on N images in the split's own order.

    ``confidence`` (n, N): the largest softmax probability, 0–1. ``prediction`` (n, N): the class that has it.
    ``top5_hit`` (n, N): whether the label is among the five likeliest classes. ``labels`` (N,).
    ``others``: further (n, N): "margin", "entropy" (see ``score_logits``), and "calibrated", the confidence
    at the exit's temperature.
    """

    confidence: NDArray[np.float64]
    prediction: NDArray[np.int64]
    top5_hit: NDArray[np.bool_]
    labels: NDArray[np.int64]
    others: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    @property
    def hit(self) -> NDArray[np.bool_]:
        """Whether the likeliest class is the label: (n, N)."""
        return np.asarray(self.prediction == self.labels)

    @property
    def top1(self) -> tuple[float, ...]:
        """Anytime accuracy: the share of images that each exit gets right, 0–1, shallow to deep."""
        return tuple(self.hit.mean(axis=1).tolist())

    def score(self, policy: Policy) -> NDArray[np.float64]:
        """By what an image leaves (n, N), the higher the sooner.

        Patience: how many exits, up to this one, have given its class one after the other (Zhou et al., "BERT
        Loses Patience", NeurIPS 2020, who count from 0).
        """
        if policy != "patience":
            return self.confidence if policy == "confidence" else self.others[policy]
        streak = np.ones(self.prediction.shape)
        for exit in range(1, len(streak)):
            streak[exit] += streak[exit - 1] * (self.prediction[exit] == self.prediction[exit - 1])
        return streak

    @property
    def top5(self) -> tuple[float, ...]:
        """Share of images whose label is among each exit's five likeliest classes, 0–1."""
        return tuple(self.top5_hit.mean(axis=1).tolist())


@torch.inference_mode()
def collect_outputs(
    bound: BoundNetwork, batches: Iterable[Batch], temperatures: Sequence[float] = ()
) -> ExitOutputs:
    """One pass over ``batches`` in evaluation mode, with the network's own compute.

    Args:
        temperatures: (n,) by which logits are divided for "calibrated"; by default 1.

    Raises:
        DataError: there are no images.
        NonFiniteError: an exit's output is infinite or NaN.
    """
    bound.network.eval()
    parts: list[tuple[Tensor, ...]] = []
    labels: list[Tensor] = []
    for images, truth in batches:
        with bound.compute.autocast():
            logits = torch.stack([exit.float() for exit in bound.network(images)])
        likeliest = logits.topk(min(TOP, logits.shape[-1]), dim=-1).indices
        scaled = logits / torch.tensor(temperatures or [1.0] * len(logits)).to(logits)[:, None, None]
        scores = score_logits(logits, "margin"), score_logits(logits, "entropy"), read_logits(scaled)[0]
        parts.append((*read_logits(logits), (likeliest == truth[:, None]).any(dim=-1), *scores))
        labels.append(truth)
    if not labels:
        raise DataError("there are no images to evaluate")
    arrays = (torch.cat(kind, dim=1).cpu().numpy() for kind in zip(*parts, strict=True))
    confidence, prediction, hits, *more = arrays
    if not np.isfinite(confidence).all():
        exit = int(np.flatnonzero(~np.isfinite(confidence).all(axis=1))[0]) + 1
        raise NonFiniteError(f"exit {exit} gives outputs that are infinite or NaN")
    others = dict(zip(("margin", "entropy", "calibrated"), more, strict=True))
    return ExitOutputs(confidence, prediction, hits, torch.cat(labels).cpu().numpy(), others)


def read_logits(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Largest softmax probability (...) and its class (...) of logits (..., classes).

    The probability is computed in float32 and returned as float64, so that it compares with a threshold as
    it is: rounding the threshold instead could move an image that sits on it.
    """
    logits = logits.float()
    top, prediction = logits.max(dim=-1, keepdim=True)
    probability = (logits - top).exp().sum(dim=-1).reciprocal()
    return probability.double(), prediction.squeeze(-1)


def score_logits(logits: Tensor, policy: Literal["confidence", "margin", "entropy"]) -> Tensor:
    """The score (...), 0–1, of logits (..., classes): the largest probability, how far it is above the next,
    or 1 less the entropy as a share of the largest possible."""
    if policy == "confidence":
        return read_logits(logits)[0]
    probability = logits.float().softmax(dim=-1)
    classes = probability.shape[-1]
    if policy == "margin":
        top = probability.topk(min(2, classes), dim=-1).values
        return (2 * top[..., 0] - top.sum(dim=-1)).clamp_(0, 1).double()
    entropy: Tensor = torch.special.entr(probability).sum(dim=-1) / math.log(max(2, classes))
    return (1 - entropy).clamp_(0, 1).double()


@torch.inference_mode()
def fit_temperatures(bound: BoundNetwork, batches: Iterable[Batch]) -> tuple[float, ...]:
    """Of every exit the one of ``TEMPERATURES`` with the least cross-entropy of the logits divided by it."""
    bound.network.eval()
    sums: Tensor | int = 0
    for images, labels in batches:
        with bound.compute.autocast():
            logits = [exit.float() for exit in bound.network(images)]
        losses = [torch.stack(exit_losses([exit / t for exit in logits], labels)) for t in TEMPERATURES]
        sums = sums + torch.stack(losses).double() * len(labels)  # (temperatures, n)
    assert isinstance(sums, Tensor)  # there are images
    return tuple(TEMPERATURES[best] for best in sums.argmin(dim=0).tolist())


@dataclass(frozen=True, eq=False)
class Calibration:
    """How often the exits are right, at which confidence, before and after scaling.

    ``temperatures`` (n,): of the validation images. ``bins`` (2, n, BINS, 3): of the test images, their
    share, mean confidence and accuracy; the latter two NaN where there are none.
    """

    temperatures: tuple[float, ...]
    bins: NDArray[np.float64]

    @classmethod
    def of(cls, test: ExitOutputs, temperatures: tuple[float, ...]) -> Self:
        """The calibration of ``test``, which was collected with ``temperatures``."""
        sides = (test.confidence, test.others["calibrated"])
        return cls(temperatures, np.array([list(map(_binned, side, test.hit)) for side in sides]))

    @property
    def error(self) -> NDArray[np.float64]:
        """The expected calibration error (2, n), 0–1: mean distance of confidence and accuracy."""
        share, confidence, accuracy = np.moveaxis(self.bins, -1, 0)
        return np.asarray(np.nansum(share * np.abs(confidence - accuracy), axis=-1))


def _binned(confidence: NDArray[np.float64], hit: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Share of images, mean confidence and accuracy (BINS, 3) of one exit; bins are open below."""
    place = (np.ceil(confidence * BINS) - 1).clip(0).astype(np.int64)
    count, *sums = (np.bincount(place, values, BINS) for values in (np.ones(len(hit)), confidence, hit))
    with np.errstate(invalid="ignore"):
        return np.stack([count / len(hit), *(each / count for each in sums)], axis=1)


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

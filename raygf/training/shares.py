"""Dividing every batch among the workers that train one network together."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from raygf.data.base import Batch
from raygf.training.peers import Peers

LEAST = 2
"""Images of a worker's share: BatchNorm can't normalise one value."""


@dataclass(frozen=True)
class Share:
    """One worker's part of a batch: images (b, C, H, W), labels (b,).

    ``weight``: what the share's mean counts in the batch's. Over the workers, means times weights add up to
    the mean over the batch, each of whose images counts once.
    """

    images: Tensor
    labels: Tensor
    weight: float


def share_of(batch: Batch, peers: Peers) -> Share:
    """This worker's share of ``batch``, which all workers have drawn alike.

    A batch with fewer than two images a worker (the last one of an epoch, say) is not divided: all workers
    run the whole of it, so that none stands without images, and only the first one's result counts.
    """
    images, labels = batch
    if peers.count == 1:
        return Share(images, labels, 1.0)
    if len(labels) < LEAST * peers.count:
        return Share(images, labels, float(peers.first))
    mine = images.tensor_split(peers.count)[peers.rank]
    return Share(mine, labels.tensor_split(peers.count)[peers.rank], len(mine) / len(labels))

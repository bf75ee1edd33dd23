"""Shares of a batch: how it is divided, and what shares keep apart and combine.

Shares of one batch are run by several processes, or in turn by one, with the same bits: every share has
BatchNorm statistics and random draws of its own, and what is summed is summed in the order of the shares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from raygf.compute import seeded_globals
from raygf.data.base import Batch
from raygf.errors import ConfigError
from raygf.training.network import BoundNetwork
from raygf.training.peers import Peers

LEAST = 2
"""Images of a share: BatchNorm can't normalise one value."""


@dataclass(frozen=True)
class Share:
    """Images (B, C, H, W) and labels (B,) of the share ``rank``, and its ``weight`` in the batch."""

    rank: int
    images: Tensor
    labels: Tensor
    weight: float


def shares_of(batch: Batch, ranks: Sequence[int], count: int) -> Iterator[Share]:
    """The shares ``ranks`` of ``batch``, which is divided into ``count``.

    Means of shares times weights add up to the mean over the batch, each of whose images counts once. A batch
    with fewer than two images a share (the last one of an epoch, say) is not divided: every share is the
    whole of it, so that none stands without images, and only the first one counts.
    """
    images, labels = batch
    for rank in ranks:
        if count == 1:
            yield Share(rank, images, labels, 1.0)
        elif len(labels) < LEAST * count:
            yield Share(rank, images, labels, float(rank == 0))
        else:
            mine = images.tensor_split(count)[rank]
            yield Share(rank, mine, labels.tensor_split(count)[rank], len(mine) / len(labels))


def check_shares(setting: str, count: int, batch_size: int) -> None:
    """Raise ConfigError if batches are too small for ``count`` shares, which ``setting`` asks for."""
    if count > 1 and batch_size < LEAST * count:
        raise ConfigError(
            f"batch_size = {batch_size}: must be at least {LEAST * count} with {setting} = {count}, {LEAST} "
            "images each"
        )


class Turns:
    """Lets the shares ``ranks`` of ``count`` take turns on one network, each with buffers of its own.

    They start with the network's. Every share of a step has a random stream of its own, for dropout; where
    there is only one share, the caller's goes on.
    """

    def __init__(
        self, bound: BoundNetwork, ranks: Sequence[int], count: int, seed: int, *key: str | int
    ) -> None:
        self._bound, self._count, self._seed, self._key = bound, count, seed, key
        several = len(ranks) > 1
        self._apart = {rank: bound.buffer_copies() for rank in ranks} if several else {}

    @contextmanager
    def of(self, rank: int, step: int) -> Iterator[None]:
        """The turn of share ``rank`` in ``step`` (from 0)."""
        if self._count == 1:
            yield
            return
        with seeded_globals(self._seed, *self._key, "share", rank, step):
            if rank not in self._apart:
                yield
                return
            self._bound.exchange(self._apart[rank])
            try:
                yield
            finally:
                self._bound.exchange(self._apart[rank])

    def buffers(self) -> list[dict[str, Tensor]]:
        """The buffers of every share, in the order of the shares."""
        return list(self._apart.values()) or [self._bound.buffer_copies()]

    def combine(self, peers: Peers) -> None:
        """Give the network the mean of the buffers of all shares, those of ``peers`` included."""
        if self._apart:
            self._bound.exchange(mean_buffers(self.buffers()))
        else:
            average_buffers(list(self._bound.buffers.values()), peers)


def mean_buffers(buffers: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of several shares' floating-point buffers, by name; others, such as counters, are the first's.

    In double precision: the mean of equal numbers is then that number.
    """

    def mean(tensors: list[Tensor]) -> Tensor:
        if len(tensors) == 1 or not tensors[0].is_floating_point():
            return tensors[0].clone()
        total: Tensor = sum(tensors[1:], tensors[0].double())
        return (total / len(tensors)).to(tensors[0].dtype)

    return {name: mean([share[name] for share in buffers]) for name in buffers[0]}


def average_buffers(buffers: Sequence[Tensor], peers: Peers) -> None:
    """As ``mean_buffers``, in place and over workers that hold a share each, in one exchange."""
    floats = [buffer for buffer in buffers if buffer.is_floating_point()]
    if peers.count == 1 or not floats:
        return
    flat = peers.sum_(torch.cat([buffer.double().flatten() for buffer in floats])).div_(peers.count)
    for buffer, mean in zip(floats, torch.split(flat, [buffer.numel() for buffer in floats]), strict=True):
        buffer.copy_(mean.view_as(buffer))


@dataclass(frozen=True)
class ShareStep:
    """What one share of one step of a fusion pass gave.

    ``gradient`` (n, S): of the loss with respect to the fusion weights; None where nothing is learned.
    ``losses`` (n,), weighed by the share; ``hits`` (n,); ``size``: images of the whole batch.
    """

    gradient: Tensor | None
    losses: Tensor
    hits: Tensor
    size: int

    def to(self, device: torch.device | str) -> ShareStep:
        """The same on ``device``."""
        gradient = None if self.gradient is None else self.gradient.to(device)
        return ShareStep(gradient, self.losses.to(device), self.hits.to(device), self.size)


class FusionShares(Protocol):
    """All shares of a fusion pass, wherever they are run."""

    def step(self, weights: Tensor, learn: bool) -> list[ShareStep]:
        """One step at ε times the fusion weights, ``weights`` (n, S), and what it gave on the same device.

        In the order of the shares; nothing after the last batch. ``learn``: with a gradient.
        """

    def buffers(self) -> list[dict[str, Tensor]]:
        """The buffers of every share after the last step, in the order of the shares."""

"""Batches of a data set that lives on the device as uint8: shuffled, augmented and normalised there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from raygf.compute import Compute
from raygf.data.augment import EpochDraws, crop, draw_epoch, mirror
from raygf.data.base import Batch, SplitName
from raygf.data.normalise import Normaliser
from raygf.data.splits import Split
from raygf.data.statistics import ChannelStatistics
from raygf.errors import DataError
from raygf.seeding import generator


class DeviceBatches:
    """A ``raygf.data.base.BatchSource`` of in-memory splits.

    The draws of an epoch are made on the CPU up front and moved once, so every device and every process gets
    the same batches, and no step waits for a transfer. A split is moved to the device when it is first used.
    """

    def __init__(
        self,
        splits: Mapping[SplitName, Split],
        statistics: ChannelStatistics,
        pad: int,
        flip: bool,
        compute: Compute,
        batch_size: int,
        eval_batch_size: int,
    ) -> None:
        self._splits = splits
        self._pad, self._flip = pad, flip
        self._compute = compute
        self._batch_size, self._eval_batch_size = batch_size, eval_batch_size
        self._stores: dict[SplitName, _Store] = {}
        self._normalise = Normaliser(statistics, compute)

    def train(self, seed: int, *key: str | int) -> Iterator[Batch]:
        """One epoch of the training split, shuffled and augmented by the stream ``key`` of run ``seed``.

        Every image comes exactly once. A last batch of a single image joins the one before it, because
        BatchNorm can't normalise one value.

        Raises:
            DataError: there are fewer than two training images.
        """
        count = len(self._splits["train"])
        if count < 2:
            raise DataError(f"the training split has {count} images: at least 2 are needed to train")
        draws = draw_epoch(count, self._pad, self._flip, generator(seed, *key))
        return self._train(draws.to(self._compute.device))

    def evaluate(self, split: SplitName) -> Iterator[Batch]:
        """One pass over a split in its own order, without augmentation; nothing if the split is empty."""
        store = self._store(split)
        order = torch.arange(len(store.labels), device=self._compute.device)
        for start in range(0, len(order), self._eval_batch_size):
            indices = order[start : start + self._eval_batch_size]
            yield self._normalise(store.images(indices)), store.labels[indices]

    def _train(self, draws: EpochDraws) -> Iterator[Batch]:
        store = self._store("train")
        for start, stop in batch_edges(len(draws.order), self._batch_size):
            indices = draws.order[start:stop]
            images = store.images(indices)
            if draws.corners is not None:
                images = crop(images, draws.corners[start:stop], self._pad)
            if draws.flips is not None:
                images = mirror(images, draws.flips[start:stop])
            yield self._normalise(images), store.labels[indices]

    def _store(self, split: SplitName) -> _Store:
        if split not in self._stores:
            self._stores[split] = _Store(self._splits[split], self._compute.device)
        return self._stores[split]


def batch_edges(count: int, batch_size: int) -> list[tuple[int, int]]:
    """(start, stop) of each batch of ``count`` ≥ 2 images; a last batch of one joins the one before it."""
    starts = list(range(0, count, batch_size))
    if count - starts[-1] == 1 and len(starts) > 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], count], strict=True))


class _Store:
    """One split where batches are cut from it: on a GPU one tensor, on the CPU the array as it is.

    The array may be a read-only view of memory shared with other processes, which a tensor can't stand for;
    so on the CPU only the images of one batch are copied, when they are asked for.
    """

    def __init__(self, split: Split, device: str) -> None:
        self.labels = torch.tensor(split.labels, device=device)
        self._array = split.images
        self._tensor = None if device == "cpu" else torch.tensor(split.images, device=device)

    def images(self, indices: torch.Tensor) -> torch.Tensor:
        """A copy of the images at ``indices`` (B,): uint8 (B, C, H, W)."""
        if self._tensor is not None:
            return self._tensor[indices]
        return torch.from_numpy(self._array.take(indices.numpy(), axis=0))

"""A data set held in memory as uint8, whose batches are shuffled, augmented and normalised on the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch.nn import functional

from raygf.compute import Compute, generator
from raygf.data.augment import Augmentation
from raygf.data.base import ALL, Batch, Dataset, Normaliser, Portion, SplitName, batch_edges
from raygf.data.splits import Split


@dataclass(eq=False)
class ImageSet(Dataset):
    """Images and labels in memory.

    One copy in Ray's object store serves every process of a node; there the arrays are read-only views.
    """

    train: Split
    val: Split
    test: Split
    pad: int
    """Pixels of zero-padding on each side before the random crop of training images; 0: no crop."""
    flip: bool
    """Whether half of the training images are flipped left to right."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """What else is done to training images."""

    def open(self, compute: Compute, batch_size: int, eval_batch_size: int) -> DeviceBatches:
        """The data set's batches on ``compute.device``."""
        return DeviceBatches(self, compute, batch_size, eval_batch_size)


class DeviceBatches:
    """The batches of an ``ImageSet``. A ``raygf.data.base.BatchSource``.

    The draws of an epoch are made on the CPU up front and moved once, so every device and every process gets
    the same batches, and no step waits for a transfer. A split is moved to the device when it is first used.
    """

    def __init__(self, data: ImageSet, compute: Compute, batch_size: int, eval_batch_size: int) -> None:
        self._data = self.dataset = data
        self._device = compute.device
        self.batch_size, self._eval_batch_size = batch_size, eval_batch_size
        self._on_device: dict[SplitName, Batch] = {}
        self._normalise = Normaliser(data.statistics, compute)

    def train(self, seed: int, *key: str | int, part: Portion = ALL) -> Iterator[Batch]:
        """See ``BatchSource``; every image comes exactly once.

        A last batch of a single image joins the one before it, because BatchNorm can't normalise one value.

        Raises DataError: there are fewer than two images.
        """
        data, count, augment = self._data, self._data.count(part.split), part.split == "train"
        edges = batch_edges(min(count, part.images or count), self.batch_size, part.split)
        draws = draw_epoch(count, augment * data.pad, augment and data.flip, generator(seed, *key))
        return self._train(part.split, edges[part.start : part.stop], draws.to(self._device), (seed, *key))

    def _train(
        self, split: SplitName, edges: list[tuple[int, int]], draws: EpochDraws, key: tuple[str | int, ...]
    ) -> Iterator[Batch]:
        for start, stop in edges:
            images, labels = self._take(split, draws.order[start:stop])
            if draws.corners is not None:
                images = crop(images, draws.corners[start:stop], self._data.pad)
            if draws.flips is not None:
                images = torch.where(draws.flips[start:stop, None, None, None], images.flip(3), images)
            if split == "train":
                images = self._data.augmentation.each(images, *key, start)
                images = self._data.augmentation.batch(images, *key, start)
            yield self._normalise(images), labels

    def evaluate(self, split: SplitName) -> Iterator[Batch]:
        """See ``BatchSource``; nothing if the split is empty."""
        order = torch.arange(self._data.count(split), device=self._device)
        for start in range(0, len(order), self._eval_batch_size):
            images, labels = self._take(split, order[start : start + self._eval_batch_size])
            yield self._normalise(images), labels

    def _take(self, split: SplitName, indices: torch.Tensor) -> Batch:
        """The images, uint8 (B, C, H, W), and labels at ``indices`` (B,) of a split."""
        part = self._data.splits[split]
        if self._device == "cpu":
            at = indices.numpy()  # copied: the arrays may be read-only views, for which a tensor can't stand
            return torch.from_numpy(part.images.take(at, axis=0)), torch.from_numpy(part.labels[at])
        if split not in self._on_device:
            images, labels = (
                torch.tensor(array, device=self._device) for array in (part.images, part.labels)
            )
            self._on_device[split] = images, labels
        images, labels = self._on_device[split]
        return images[indices], labels[indices]


class EpochDraws(NamedTuple):
    """Every random number of one epoch; entry ``i`` belongs to the ``i``-th image of the epoch."""

    order: torch.Tensor
    """The images, shuffled: int64 (N,)."""
    corners: torch.Tensor | None
    """Top and left edge of each crop in the padded image: int64 (N, 2) in 0 … 2·pad. None: no crop."""
    flips: torch.Tensor | None
    """Which images are flipped: bool (N,). None: no flip."""

    def to(self, device: str) -> EpochDraws:
        """The same numbers on ``device``."""
        corners, flips = (None if draw is None else draw.to(device) for draw in (self.corners, self.flips))
        return EpochDraws(self.order.to(device), corners, flips)


def draw_epoch(count: int, pad: int, flip: bool, stream: torch.Generator) -> EpochDraws:
    """The draws of one epoch of ``count`` images, made on the CPU so that all devices get the same."""
    order = torch.randperm(count, generator=stream)
    corners = torch.randint(0, 2 * pad + 1, (count, 2), generator=stream) if pad else None
    flips = torch.randint(0, 2, (count,), generator=stream).bool() if flip else None
    return EpochDraws(order, corners, flips)


def crop(images: torch.Tensor, corners: torch.Tensor, pad: int) -> torch.Tensor:
    """Each image zero-padded by ``pad`` pixels a side and cut back to its size, as torchvision's RandomCrop.

    ``images``: (B, C, H, W). ``corners``: int64 (B, 2), top and left edge of each cut in 0 … 2·pad.
    """
    batch, _, height, width = images.shape
    padded = functional.pad(images, (pad, pad, pad, pad))
    # All (2·pad + 1)² cuts of every image as one view (B, C, top, left, H, W): a single gather picks from it.
    cuts = padded.unfold(2, height, 1).unfold(3, width, 1)
    tops, lefts = corners.unbind(1)
    return cuts[torch.arange(batch, device=images.device), :, tops, lefts]

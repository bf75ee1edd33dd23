"""What the trainers need of a data set, whatever it is made of: batches of normalised images with labels."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from raygf.compute import Compute
from raygf.config.run import RunConfig
from raygf.errors import DataError

Batch = tuple[torch.Tensor, torch.Tensor]
Indices = NDArray[np.int64]
SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)


@dataclass(frozen=True)
class InputSpec:
    """The images that a network gets, and the classes that it tells apart."""

    channels: int
    height: int
    width: int
    classes: int

    def blank(self, count: int, device: str = "cpu") -> torch.Tensor:
        """``count`` black images (B, C, H, W), float32, to try a network with."""
        return torch.zeros(count, self.channels, self.height, self.width, device=device)


@dataclass(frozen=True)
class Portion:
    """What is made of an epoch over ``split``.

    ``images``: it ends after so many, which its order draws. ``start``, ``stop``: of its batches, from 0.
    """

    split: SplitName = "train"
    images: int | None = None
    start: int = 0
    stop: int | None = None


ALL = Portion()


class BatchSource(Protocol):
    """Batches of one data set on one device: images float32 (B, C, H, W), normalised; labels int64 (B,)."""

    @property
    def dataset(self) -> Dataset:
        """What they are of."""

    @property
    def batch_size(self) -> int:
        """Images of a training step."""

    def train(self, seed: int, *key: str | int, part: Portion = ALL) -> Iterator[Batch]:
        """``part`` of an epoch shuffled by the random stream ``key`` of run ``seed``.

        Training images are augmented by it, too.
        """

    def evaluate(self, split: SplitName) -> Iterator[Batch]:
        """One pass over a split in its own order, without augmentation."""


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and standard deviation of every channel, with pixels scaled to 0 … 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Images(Protocol):
    """Images in memory or on disk."""

    @property
    def images(self) -> NDArray[np.uint8]:
        """Pixels (N, C, H, W), 0 black to 255. Raises DataError: they stay on disk."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class of every image (N,)."""

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that are equal for equal images and labels."""

    def __len__(self) -> int: ...


@dataclass(eq=False)
class Dataset:
    """Three splits of images: plain values and arrays, to be sent to another process and opened there."""

    name: str
    spec: InputSpec
    class_names: tuple[str, ...]
    train: Images
    val: Images
    test: Images
    statistics: ChannelStatistics
    """What images are normalised with."""

    @property
    def splits(self) -> dict[SplitName, Any]:
        """The three splits by name."""
        return {"train": self.train, "val": self.val, "test": self.test}

    def count(self, split: SplitName) -> int:
        """Images in a split."""
        return len(self.splits[split])

    def counts(self) -> dict[str, int]:
        """Images in every split."""
        return {split: len(images) for split, images in self.splits.items()}

    def digest(self, split: SplitName) -> str:
        """16 hexadecimal digits that are equal for equal images and labels of a split."""
        return str(self.splits[split].digest)

    def open(self, compute: Compute, batch_size: int, eval_batch_size: int) -> BatchSource:
        """The data set's batches on ``compute.device``."""
        raise NotImplementedError


def batch_edges(count: int, batch_size: int, split: SplitName = "train") -> list[tuple[int, int]]:
    """(start, stop) of each batch of an epoch; a last batch of one image joins the one before it.

    Raises DataError: there are fewer than two images.
    """
    if count < 2:
        name = {"train": "training", "val": "validation"}.get(split, split)
        raise DataError(f"the {name} split has {count} images: at least 2 are needed to train")
    starts = list(range(0, count, batch_size))
    if count - starts[-1] == 1 and len(starts) > 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], count], strict=True))


def round_batches(
    source: BatchSource,
    config: RunConfig,
    purpose: str,
    round: int,
    *key: str | int,
    split: SplitName = "train",
) -> Iterator[Batch]:
    """The batches of ``round`` (from 1): the next ``round_steps`` of epochs that follow each other.

    Epoch e has the random stream (purpose, e, *key), whatever the rounds: one of as many steps as an epoch is
    that epoch.
    """
    epoch = len(batch_edges(source.dataset.count(split), source.batch_size, split))
    start, stop = ((round - number) * _steps(config, epoch, split) for number in (1, 0))
    for done in range(start // epoch, -(-stop // epoch)):
        part = Portion(split, None, max(0, start - done * epoch), stop - done * epoch)
        yield from source.train(config.seed, purpose, done + 1, *key, part=part)


def images_of_rounds(config: RunConfig, rounds: int, count: int, split: SplitName = "train") -> int:
    """Images in the first ``rounds`` of ``round_batches``, of a split of ``count`` images."""
    edges = batch_edges(count, config.batch_size, split)
    epochs, more = divmod(rounds * _steps(config, len(edges), split), len(edges))
    return epochs * count + edges[more][0]


def _steps(config: RunConfig, epoch: int, split: SplitName) -> int:
    """Of a round: an epoch by default, and at most one of validation images."""
    steps = config.round_steps or epoch
    return min(steps, epoch) if split == "val" else steps


def permutation(count: int, stream: torch.Generator) -> Indices:
    """The numbers below ``count`` in random order (count,)."""
    order: Indices = torch.randperm(count, generator=stream).numpy()
    return order


def digest_of(*arrays: NDArray[Any]) -> str:
    """16 hexadecimal digits that stand for ``arrays``."""
    hashed = hashlib.blake2b(digest_size=8)
    for array in arrays:
        hashed.update(np.ascontiguousarray(array).data)
    return hashed.hexdigest()


def channel_statistics(images: NDArray[np.uint8]) -> ChannelStatistics:
    """The statistics of ``images`` uint8 (N, C, H, W), N ≥ 1.

    They come from counts of the 256 values, so they don't depend on the order of the images. A channel of
    one value only has the standard deviation 1, so that it can be divided by.
    """
    counts = np.zeros((images.shape[1], 256), np.int64)  # how often every channel has every value
    chunk = 1024  # bincount widens its input eightfold
    for start in range(0, len(images), chunk):
        for channel, count in enumerate(counts):
            count += np.bincount(images[start : start + chunk, channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    total = counts.sum(axis=1)
    mean = counts @ values / total
    variance = (counts * (values - mean[:, None]) ** 2).sum(axis=1) / total
    flat = (counts > 0).sum(axis=1) == 1
    std = np.where(flat, 1.0, np.sqrt(variance))
    return ChannelStatistics(tuple(mean.tolist()), tuple(std.tolist()))


class Normaliser:
    """``(x / 255 − mean) / std`` for images on ``compute.device``."""

    def __init__(self, statistics: ChannelStatistics, compute: Compute) -> None:
        self._layout = compute.layout
        # Written for pixels of 0 … 255: (x − 255·mean) · 1 / (255·std).
        pixels = torch.tensor([statistics.mean, statistics.std], dtype=torch.float64) * 255
        self._mean = pixels[0].float().view(-1, 1, 1).to(compute.device)
        self._inverse_std = pixels[1].reciprocal().float().view(-1, 1, 1).to(compute.device)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Images uint8 (B, C, H, W) on the device as float32, in the compute's layout."""
        pixels = _room(images, self._layout).copy_(images)
        if self._layout is not torch.channels_last:
            return pixels.sub_(self._mean).mul_(self._inverse_std)
        # By whole rows of pixels: three values at a time is slow.
        rows, width = pixels.permute(0, 2, 3, 1).flatten(2), images.shape[3]
        rows.sub_(self._mean.ravel().repeat(width)).mul_(self._inverse_std.ravel().repeat(width))
        return pixels

    def pixels(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised images (B, C, H, W) as the uint8 that they were."""
        return (images / self._inverse_std + self._mean).round_().clamp_(0, 255).to(torch.uint8)


def _room(images: torch.Tensor, layout: torch.memory_format) -> torch.Tensor:
    """Uninitialised float32 of the shape and device of ``images`` (B, C, H, W), in ``layout``.

    On the host, large ones get huge pages: to be given pages of 4 KiB takes longer than to fill them.
    """
    size = 4 * images.numel()
    if images.device.type != "cpu" or size < 2**24 or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty_like(images, dtype=torch.float32, memory_format=layout)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    strides = torch.empty_like(images, device="meta", memory_format=layout).stride()
    return torch.frombuffer(memory, dtype=torch.float32).as_strided(images.shape, strides)

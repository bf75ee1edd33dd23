"""Mean and standard deviation of a set of images, channel by channel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CHUNK = 1024  # Images counted at once: bincount widens its input eightfold.


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and standard deviation of every channel, with pixels scaled to 0 … 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def channel_statistics(images: NDArray[np.uint8]) -> ChannelStatistics:
    """The statistics of ``images`` uint8 (N, C, H, W), N ≥ 1.

    They come from counts of the 256 values, so they don't depend on the order of the images. A channel of
    one value only has the standard deviation 1, so that it can be divided by.
    """
    counts = _value_counts(images)
    values = np.arange(256) / 255
    total = counts.sum(axis=1)
    mean = counts @ values / total
    variance = (counts * (values - mean[:, None]) ** 2).sum(axis=1) / total
    flat = (counts > 0).sum(axis=1) == 1
    std = np.where(flat, 1.0, np.sqrt(variance))
    return ChannelStatistics(tuple(mean.tolist()), tuple(std.tolist()))


def _value_counts(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How often every channel has every value: (C, 256)."""
    counts = np.zeros((images.shape[1], 256), np.int64)
    for start in range(0, len(images), CHUNK):
        for channel, count in enumerate(counts):
            count += np.bincount(images[start : start + CHUNK, channel].ravel(), minlength=256)
    return counts

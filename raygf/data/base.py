"""What the trainers need of a data set, whatever it is made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from raygf.compute import Compute
from raygf.data.statistics import ChannelStatistics

Batch = tuple[torch.Tensor, torch.Tensor]
SplitName = Literal["train", "val", "test"]


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


class BatchSource(Protocol):
    """Batches of one data set on one device: images float32 (B, C, H, W), normalised; labels int64 (B,)."""

    def train(self, seed: int, *key: str | int) -> Iterator[Batch]:
        """One epoch, shuffled and augmented by the random stream ``key`` of run ``seed``."""
        ...

    def evaluate(self, split: SplitName) -> Iterator[Batch]:
        """One pass over a split in its own order, without augmentation."""
        ...


class Dataset(Protocol):
    """A data set that can be sent to another process and opened there."""

    name: str
    spec: InputSpec
    class_names: tuple[str, ...]

    @property
    def statistics(self) -> ChannelStatistics:
        """What images are normalised with."""
        ...

    def count(self, split: SplitName) -> int:
        """Images in a split."""
        ...

    def open(self, compute: Compute, batch_size: int, eval_batch_size: int) -> BatchSource:
        """The data set's batches on ``compute.device``."""
        ...

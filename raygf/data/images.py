"""A data set of small images, held in memory."""

from __future__ import annotations

from dataclasses import dataclass

from raygf.compute import Compute
from raygf.data.base import InputSpec, SplitName
from raygf.data.device_batches import DeviceBatches
from raygf.data.splits import Split
from raygf.data.statistics import ChannelStatistics


@dataclass(eq=False)
class ImageSet:
    """Images and labels in three splits; all that batches are made of. A ``raygf.data.base.Dataset``.

    It holds NumPy arrays and plain values only, so one copy in Ray's object store serves every process of a
    node; there the arrays are read-only views.
    """

    name: str
    spec: InputSpec
    class_names: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    statistics: ChannelStatistics
    """What images are normalised with."""
    pad: int
    """Pixels of zero-padding on each side before the random crop of training images; 0: no crop."""
    flip: bool
    """Whether half of the training images are flipped left to right."""

    def count(self, split: SplitName) -> int:
        """Images in a split."""
        return len(self.splits[split])

    def open(self, compute: Compute, batch_size: int, eval_batch_size: int) -> DeviceBatches:
        """The data set's batches on ``compute.device``."""
        return DeviceBatches(
            self.splits, self.statistics, self.pad, self.flip, compute, batch_size, eval_batch_size
        )

    @property
    def splits(self) -> dict[SplitName, Split]:
        """The three splits by name."""
        return {"train": self.train, "val": self.val, "test": self.test}

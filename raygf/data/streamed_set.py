"""A data set of images that stay on disk, such as ImageNet."""

from __future__ import annotations

from dataclasses import dataclass

from raygf.compute import Compute
from raygf.data.base import InputSpec, SplitName
from raygf.data.statistics import ChannelStatistics
from raygf.data.streamed_batches import STATISTICS, Part, StreamedBatches
from raygf.data.view_maker import ViewSizes


@dataclass(eq=False)
class StreamedSet:
    """Where the images of every split are, and their labels. A ``raygf.data.base.Dataset``.

    It is a description of plain values and arrays (45 MB for ImageNet): the files are opened by whoever opens
    the set, so every node must see them under the same path.
    """

    name: str
    spec: InputSpec
    class_names: tuple[str, ...]
    train: Part
    val: Part
    test: Part
    sizes: ViewSizes
    workers: int
    """Processes that read and decode, for each that opens the set."""
    max_undecodable: int
    """Images of one pass that may be left out because they can't be decoded."""

    def count(self, split: SplitName) -> int:
        """Images in a split."""
        return len(self.parts[split].images)

    def open(self, compute: Compute, batch_size: int, eval_batch_size: int) -> StreamedBatches:
        """The data set's batches on ``compute.device``.

        Raises:
            DataError: the files can't be seen from this machine.
        """
        for part in self.parts.values():
            if len(part.images):
                part.store.check()
        return StreamedBatches(
            self.parts,
            self.sizes,
            self.workers,
            self.max_undecodable,
            compute,
            batch_size,
            eval_batch_size,
        )

    @property
    def statistics(self) -> ChannelStatistics:
        """What images are normalised with: always ImageNet's."""
        return STATISTICS

    @property
    def parts(self) -> dict[SplitName, Part]:
        """The three splits by name."""
        return {"train": self.train, "val": self.val, "test": self.test}

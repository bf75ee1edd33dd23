"""Batches of images that are read from disk when they are needed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from raygf.compute import Compute, generator
from raygf.data.base import Batch, ChannelStatistics, InputSpec, Normaliser, SplitName
from raygf.data.in_memory import batch_edges
from raygf.data.stores import ImageStore
from raygf.data.workers import Failure, MadeBatch, Pass, ViewMaker, ViewSizes, WorkerPool, in_order, shuffled
from raygf.errors import DataError

STATISTICS = ChannelStatistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Of ImageNet's training images, as everybody uses them."""

BUFFER_BYTES = 512 * 2**20
"""Encoded images that all workers of a trainer together keep, apart from one unit; decides how far images are
shuffled, so changing it changes the order."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Part:
    """One split: some images of a store."""

    store: ImageStore
    images: NDArray[np.int64]
    """Indices in the store, increasing (N,)."""

    @property
    def units(self) -> NDArray[np.int64] | None:
        """The unit of every image (N,), if the store has units."""
        return None if self.store.units is None else self.store.units[self.images]

    @property
    def window(self) -> int:
        """Images of this split among ``BUFFER_BYTES`` of its units."""
        units = self.store.units
        if units is None:
            return len(self.images)
        touched = int(np.isin(units, np.unique(units[self.images])).sum())
        share = BUFFER_BYTES / max(1.0, touched * self.store.bytes_per_image)
        return max(1, int(min(1.0, share) * len(self.images)))


class StreamedBatches:
    """A ``raygf.data.base.BatchSource`` of images on disk, made by worker processes.

    An image that can't be decoded is left out of its batch, named in a warning, and counted: more than the
    limit in one pass is an error. Its place is not filled, so a batch may be smaller; a training batch with
    less than two images left is left out as a whole, because BatchNorm can't normalise one value.
    """

    def __init__(
        self,
        parts: Mapping[SplitName, Part],
        sizes: ViewSizes,
        workers: int,
        max_undecodable: int,
        compute: Compute,
        batch_size: int,
        eval_batch_size: int,
    ) -> None:
        self._parts = parts
        self._sizes = sizes
        self._workers = workers
        self._limit = max_undecodable
        self._compute = compute
        self._batch_size, self._eval_batch_size = batch_size, eval_batch_size
        self._normalise = Normaliser(STATISTICS, compute)
        self._idle: list[WorkerPool] = []
        self.undecodable: set[str] = set()
        """All images that were left out so far, as they are named in the warnings."""

    def train(self, seed: int, *key: str | int) -> Iterator[Batch]:
        """One epoch of the training split, shuffled and augmented by the stream ``key`` of run ``seed``.

        Every image comes exactly once, and the same bits with any number of workers. A last batch of a
        single image joins the one before it.

        Raises:
            DataError: there are fewer than two training images; and while it runs, see ``evaluate``.
        """
        part = self._parts["train"]
        count = len(part.images)
        if count < 2:
            raise DataError(f"the training split has {count} images: at least 2 are needed to train")
        order = shuffled(part.images, part.units, part.window, generator(seed, *key))
        return self._run(Pass("train", order, batch_edges(count, self._batch_size), (seed, *key)))

    def evaluate(self, split: SplitName) -> Iterator[Batch]:
        """One pass over a split in its own order, without augmentation; nothing if the split is empty.

        Raises:
            DataError: a file is gone or damaged, or more images than allowed can't be decoded.
            RunFailed: a worker process was lost.
        """
        part = self._parts[split]
        starts = range(0, len(part.images), self._eval_batch_size)
        edges = [(start, min(start + self._eval_batch_size, len(part.images))) for start in starts]
        return self._run(Pass(split, in_order(part.images, part.units), edges, None))

    def close(self) -> None:
        """End the workers now; otherwise they end with this object or with this process.

        Those of a pass that is not over yet end with the pass.
        """
        while self._idle:
            self._idle.pop().close()

    def _run(self, whole: Pass) -> Iterator[Batch]:
        if not whole.edges:
            return
        store = self._parts[whole.split].store
        pool = self._idle.pop() if self._idle else self._make_pool()
        left_out = used = 0
        try:
            for (start, stop), made in zip(whole.edges, pool.batches(whole), strict=True):
                left_out += len(made.failures)
                self._judge(made.failures, left_out)
                labels = torch.from_numpy(store.labels[whole.order.images[start:stop]])
                images, labels = _without_failures(made, labels)
                if len(labels) < (1 if whole.key is None else 2):
                    continue
                used += 1
                images = images.to(self._compute.device)
                yield self._normalise(images), labels.to(self._compute.device)
        except BaseException:
            pool.close()  # its workers are in the midst of a pass
            raise
        self._idle.append(pool)
        if not used:
            raise DataError(f"of the {whole.split} images too few can be decoded to make a single batch")

    def _judge(self, failures: tuple[Failure, ...], left_out: int) -> None:
        for failure in failures:
            if failure.where not in self.undecodable:
                self.undecodable.add(failure.where)
                _log.warning("%s: %s; it is left out", failure.where, failure.why)
        if failures and left_out > self._limit:
            last = failures[-1]
            raise DataError(
                f"{last.where}: {last.why}; {left_out} such image(s) in this pass, data.max_undecodable = "
                f"{self._limit} allowed: mend the data set or raise --data.max-undecodable"
            )

    def _make_pool(self) -> WorkerPool:
        stores = {name: part.store for name, part in self._parts.items()}
        capacity = max(self._batch_size + 1, self._eval_batch_size)  # one may join the last batch
        return WorkerPool(
            lambda slots: ViewMaker(stores, self._sizes, slots), self._workers, capacity, self._sizes.crop
        )


def _without_failures(made: MadeBatch, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The images (B, C, H, W) and labels (B,) of a batch that are whole."""
    if not made.failures:
        return made.images, labels
    whole = torch.ones(len(labels), dtype=torch.bool)
    whole[[failure.place for failure in made.failures]] = False
    return made.images[whole], labels[whole]


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

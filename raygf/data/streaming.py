"""A data set of images that stay on disk, such as ImageNet, and its batches, read when they are needed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from raygf.compute import Compute, derive_seed, generator
from raygf.data.base import Batch, ChannelStatistics, Dataset, Normaliser, SplitName, transform_batch
from raygf.data.in_memory import batch_edges
from raygf.data.pixels import evaluation_view, training_view
from raygf.data.stores import FolderStore, Part
from raygf.data.workers import Key, Order, Pass, WorkerPool, in_order, shuffled

STATISTICS = ChannelStatistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Of ImageNet's training images, as everybody uses them."""

BUFFER_BYTES = 512 * 2**20
"""Encoded images that all workers of a trainer together keep, apart from one unit; decides how far images are
shuffled, so changing it changes the order."""


@dataclass(eq=False)
class StreamedSet(Dataset):
    """Where the images of every split are, and their labels (45 MB for ImageNet).

    The files are opened by whoever opens the set, so every node must see them under the same path.
    """

    train: Part
    val: Part
    test: Part
    crop: int
    """Pixels a side of what the network sees."""
    resize: int
    """Pixels of the shorter side before the centre is cut out."""
    flip: bool
    """Whether half of the training images are mirrored."""
    transform: str
    """The user's function that changes batches of training images after that; see ``transform_batch``."""
    workers: int
    """Processes that read and decode, for each that opens the set."""

    def open(self, compute: Compute, batch_size: int, eval_batch_size: int) -> StreamedBatches:
        """The data set's batches on ``compute.device``."""
        return StreamedBatches(self, compute, batch_size, eval_batch_size)

    def view(self, image: torch.Tensor, index: int, key: Key | None) -> torch.Tensor:
        """What the network sees of a decoded image: a random part of it with a ``key``, else the centre.

        ``image``: uint8 (3, H, W), number ``index`` in its store. ``key``: seed and names of the pass's
        random streams. Returns uint8 (3, crop, crop).
        """
        if key is None:
            return evaluation_view(image, self.resize, self.crop)
        seed, *names = key
        # Of its own for every image: nothing depends on who does which image in which order.
        stream = random.Random(derive_seed(int(seed), *names, "image", index))
        return training_view(image, self.crop, self.flip, stream)


class StreamedBatches:
    """The batches of a ``StreamedSet``, made by worker processes. A ``raygf.data.base.BatchSource``."""

    def __init__(self, data: StreamedSet, compute: Compute, batch_size: int, eval_batch_size: int) -> None:
        self._data = data
        self._compute = compute
        self._batch_size, self._eval_batch_size = batch_size, eval_batch_size
        self._normalise = Normaliser(data.statistics, compute)
        self._idle: list[WorkerPool] = []

    def train(self, seed: int, *key: str | int, images: int | None = None) -> Iterator[Batch]:
        """See ``BatchSource``. Every image comes exactly once, and the same bits with any number of workers.

        A last batch of a single image joins the one before it.

        Raises DataError: there are fewer than two training images; and while it runs, see ``evaluate``.
        """
        part = self._data.train
        count = min(len(part), images or len(part))
        whole = shuffled(part.indices, part.units, _window(part), generator(seed, *key))
        order = Order(whole.images[:count], whole.visits[:count])
        return self._run(Pass("train", order, batch_edges(count, self._batch_size), (seed, *key)))

    def evaluate(self, split: SplitName) -> Iterator[Batch]:
        """See ``BatchSource``; nothing if the split is empty.

        Raises:
            DataError: a file is gone or damaged, or an image can't be decoded.
            RunFailed: a worker process was lost.
        """
        part, size = self._data.splits[split], self._eval_batch_size
        edges = [(start, min(start + size, len(part))) for start in range(0, len(part), size)]
        return self._run(Pass(split, in_order(part.indices, part.units), edges, None))

    def _run(self, whole: Pass) -> Iterator[Batch]:
        if not whole.edges:
            return
        data, device = self._data, self._compute.device
        if self._idle:
            pool = self._idle.pop()
        else:
            stores = {name: part.store for name, part in data.splits.items()}
            capacity = max(self._batch_size + 1, self._eval_batch_size)  # one may join the last batch
            pool = WorkerPool(stores, data.view, data.workers, capacity, data.crop)
        try:
            all_labels = data.splits[whole.split].store.labels
            for (start, stop), images in zip(whole.edges, pool.batches(whole), strict=True):
                labels = torch.from_numpy(all_labels[whole.order.images[start:stop]])
                if whole.key is not None and data.transform:
                    images = transform_batch(data.transform, images, (*whole.key, start))
                yield self._normalise(images.to(device)), labels.to(device)
        except BaseException:
            pool.close()  # its workers are in the midst of a pass
            raise
        self._idle.append(pool)


def _window(part: Part) -> int:
    """Images of ``part`` among ``BUFFER_BYTES`` of its row groups; all where there are none."""
    if isinstance(part.store, FolderStore):
        return len(part)
    touched = int(np.isin(part.store.units, part.store.units[part.indices]).sum())
    share = BUFFER_BYTES / max(1.0, touched * part.store.bytes_per_image)
    return max(1, int(min(1.0, share) * len(part)))

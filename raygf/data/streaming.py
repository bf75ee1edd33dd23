"""A data set of images that stay on disk, such as ImageNet, and its batches, read when they are needed.

Processes put the batches together, in memory that they share with this one. A pass over a split (``Pass``) is
cut into tasks, one for every batch and worker. All workers work on every batch, each on the images of certain
units (Parquet row groups), so that no unit is read by two of them unless there are too few units to go round.
Which worker does what depends on their number, what is done does not.
"""

from __future__ import annotations

import itertools
import math
import mmap
import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler

from raygf.compute import Compute, derive_seed, generator, torch_threads
from raygf.data.augment import Augmentation
from raygf.data.base import (
    ALL,
    Batch,
    ChannelStatistics,
    Dataset,
    Indices,
    Normaliser,
    Portion,
    SplitName,
    batch_edges,
    permutation,
)
from raygf.data.pixels import decode_tensor, evaluation_view, training_view
from raygf.data.stores import FolderStore, Part, ShardReader
from raygf.errors import DataError, RunFailed

STATISTICS = ChannelStatistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Of ImageNet's training images, as everybody uses them."""

BUFFER_BYTES = 512 * 2**20
"""Encoded images that all workers of a trainer together keep, apart from one unit; decides how far images are
shuffled, so changing it changes the order."""
IMAGES_AHEAD = 1024
"""Images that are made before they are asked for, at least two batches of them."""
SPREAD = 4
"""Shares of units per worker that a unit may be cut into so that workers have alike much to do."""

Key = tuple[str | int, ...]
"""Names the random streams of the augmentation, together with an image's index."""


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
    augmentation: Augmentation
    """What else is done to training images."""
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
        view = training_view(image, self.crop, self.flip, stream)
        return self.augmentation.each(view[None], *key, "image", index)[0]


class StreamedBatches:
    """The batches of a ``StreamedSet``, made by worker processes. A ``raygf.data.base.BatchSource``."""

    def __init__(self, data: StreamedSet, compute: Compute, batch_size: int, eval_batch_size: int) -> None:
        self._data = self.dataset = data
        self._compute = compute
        self.batch_size, self._eval_batch_size = batch_size, eval_batch_size
        self._normalise = Normaliser(data.statistics, compute)
        self._idle: list[WorkerPool] = []

    def train(self, seed: int, *key: str | int, part: Portion = ALL) -> Iterator[Batch]:
        """See ``BatchSource``. Every image comes exactly once, and the same bits with any number of workers.

        A last batch of a single image joins the one before it.

        Raises DataError: there are fewer than two images; and while it runs, see ``evaluate``.
        """
        split, there = part.split, self._data.splits[part.split]
        edges = batch_edges(min(len(there), part.images or len(there)), self.batch_size, split)
        order = shuffled(there.indices, there.units, _window(there), generator(seed, *key))
        augmented = (seed, *key) if split == "train" else None
        return self._run(Pass(split, order, edges[part.start : part.stop], augmented))

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
        capacity = max(self.batch_size + 1, self._eval_batch_size)  # one may join the last batch
        pool = self._idle.pop() if self._idle else WorkerPool(data, capacity)
        try:
            all_labels = data.splits[whole.split].store.labels
            for (start, stop), images in zip(whole.edges, pool.batches(whole), strict=True):
                labels = torch.from_numpy(all_labels[whole.order.images[start:stop]])
                if whole.key is not None:
                    images = data.augmentation.batch(images, *whole.key, start)
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


class Order(NamedTuple):
    """In which order a pass visits the images of a split."""

    images: Indices
    """Indices in the store (N,)."""
    visits: Indices
    """For every image a number for the stretch of the pass in which its unit is kept (N,): twice the unit's
    place in the pass, one more where it is read again. All 0 where there are no units."""


def in_order(images: Indices, units: Indices | None) -> Order:
    """The ``images`` (N,) as they stand; ``units`` (N,) are those of these images."""
    return Order(images, np.zeros_like(images) if units is None else 2 * units)


def shuffled(images: Indices, units: Indices | None, window: int, stream: torch.Generator) -> Order:
    """The ``images`` (N,) in random order, so that few of their units have to be kept at a time.

    The units are shuffled and laid end to end on a circle, and every image is moved forward from the
    beginning of its unit by a random stretch of up to ``window`` places. The images sorted by where they come
    to stand are the epoch. Then every image comes exactly once, all parts of the epoch are alike, and at any
    time only the units of the last ``window`` places are needed. Units near the end of the circle reach over
    its beginning; those are read twice. If the window holds all images, the order is a plain random
    permutation.

    Args:
        images: indices in the store.
        units: which unit each lies in (N,); None: they are read singly, and fully shuffled.
        window: images of this many places are kept at a time, apart from one unit.
        stream: where the draws come from.
    """
    count = len(images)
    if units is None:
        return in_order(images[permutation(count, stream)], None)
    _, unit, sizes = np.unique(units, return_inverse=True, return_counts=True)
    turn = permutation(len(sizes), stream)  # the units in the order of this epoch
    rank = np.empty_like(turn)
    rank[turn] = np.arange(len(turn))
    if window >= count:
        order = permutation(count, stream)
        return Order(images[order], 2 * rank[unit[order]])
    starts = np.empty_like(turn)
    starts[turn] = sizes[turn].cumsum() - sizes[turn]
    moved = torch.rand(count, generator=stream, dtype=torch.float64).numpy() * window
    places = starts[unit] + moved
    again = places >= count  # beyond the end: at the beginning, where the unit is read for itself
    order = np.argsort(np.where(again, places - count, places), kind="stable")
    return Order(images[order], (2 * rank[unit] + again)[order])


@dataclass(frozen=True, eq=False)
class Pass:
    """One pass over a split: its order, its batches, its augmentation."""

    split: SplitName
    order: Order
    edges: Sequence[tuple[int, int]]
    """Where in the order every batch begins and ends."""
    key: Key | None
    """None: no augmentation."""


@dataclass(frozen=True, eq=False)
class Task:
    """What one worker does for one batch."""

    split: SplitName
    slot: int
    """Which of the pool's memory slots the batch is put together in."""
    places: Indices
    """Rows of the slot (K,)."""
    images: Indices
    """Indices in the split's store (K,)."""
    visits: Indices
    """Of every image (K,); see ``Order``."""
    over: Indices
    """Visits that end with this batch, on whichever worker."""
    key: Key | None


def cut(whole: Pass, workers: int, slots: int, ahead: int) -> Iterator[Task]:
    """The tasks of all batches: for each batch one for every worker, in the order of the workers.

    ``slots``: memory slots, which the batches use in turn. ``ahead``: batches that are under way at a time.
    """
    images, visits = whole.order
    first, last = whole.edges[0][0], whole.edges[: ahead + 1][-1][1]
    together = len(np.unique(visits[first:last]))  # units in use at a time
    parts = math.ceil(SPREAD * workers / together)
    lanes = (visits // 2 * parts + np.arange(len(visits)) % parts) % workers  # who does every image
    over = _ending(whole)
    for number, (start, stop) in enumerate(whole.edges):
        for worker in range(workers):
            places = np.flatnonzero(lanes[start:stop] == worker)
            at = start + places
            yield Task(whole.split, number % slots, places, images[at], visits[at], over[number], whole.key)


def _ending(whole: Pass) -> list[Indices]:
    """The visits that end with every batch."""
    batches = len(whole.edges)
    batch = np.repeat(np.arange(batches), [stop - start for start, stop in whole.edges])
    made = slice(whole.edges[0][0], whole.edges[-1][1])
    names, place = np.unique(whole.order.visits[made], return_inverse=True)
    last = np.zeros(len(names), np.int64)
    np.maximum.at(last, place, batch)
    by_batch = np.argsort(last, kind="stable")
    return np.split(names[by_batch], np.searchsorted(last[by_batch], np.arange(1, batches)))


class ViewMaker:
    """Does tasks, putting the images into ``slots`` (S, B, H, W, 3); one for each process."""

    def __init__(self, data: StreamedSet, slots: NDArray[np.uint8]) -> None:
        self._data = data
        self._slots = torch.from_numpy(slots).permute(0, 1, 4, 2, 3)
        self._readers: dict[SplitName, FolderStore | ShardReader] = {}

    def __getitem__(self, task: Task) -> str:
        """Do ``task``; why it can't be done, else "": exceptions change on their way out of a worker."""
        try:
            with torch_threads(1):  # one image is too little for more
                self._do(task)
        except DataError as error:
            return str(error)
        return ""

    def _do(self, task: Task) -> None:
        store = self._data.splits[task.split].store
        reader = self._readers.setdefault(task.split, store.open())
        for place, image, visit in zip(
            *map(np.ndarray.tolist, (task.places, task.images, task.visits)), strict=True
        ):
            file = reader.read(image, visit)
            try:
                if file is None:
                    raise ValueError("there are no image bytes; images must be stored inside the file")
                view = self._data.view(decode_tensor(file), image, task.key)
            except ValueError as error:
                raise DataError(
                    f"{store.where(image)}: {error}; remove it, or let raygf prepare --max-undecodable leave "
                    "such images out"
                ) from None
            self._slots[task.slot, place].copy_(view)
        reader.leave(task.over.tolist())


class WorkerPool:
    """Makes the batches of one pass at a time. Without workers this process makes them itself.

    The workers are those of torch's DataLoader, which notices when one dies and ends them with this process.
    They are forked and stay from pass to pass. Images are written to where the batch is put together, in
    anonymous shared memory: nothing is sent or copied again, and the small /dev/shm of containers is not
    used.
    """

    def __init__(self, data: StreamedSet, capacity: int) -> None:
        """``capacity``: images in the largest batch."""
        self._workers = data.workers
        self._ahead = min(32, max(2, -(-IMAGES_AHEAD // capacity))) if data.workers else 0
        # One slot is with the consumer, one is done while it asks for the next, the others are ahead.
        shape = (self._ahead + 2, capacity, data.crop, data.crop, 3)
        self._slots = np.frombuffer(mmap.mmap(-1, math.prod(shape)), np.uint8).reshape(shape)
        self._maker = ViewMaker(data, self._slots)
        self._tasks = _Tasks()
        self._loader: Any = None
        self._iterator: Any = None

    def batches(self, whole: Pass) -> Iterator[torch.Tensor]:
        """The batches of one pass. Only after the last one may another pass begin.

        Yields:
            Images uint8 (B, 3, H, W), a view of memory that is used again once the next batch is asked for.

        Raises:
            DataError: files are gone or damaged, or an image can't be decoded.
            RunFailed: a worker process was lost.
        """
        lanes = max(1, self._workers)
        done = self._done(cut(whole, lanes, len(self._slots), max(1, self._ahead)))
        for number, (start, stop) in enumerate(whole.edges):
            for failure in itertools.islice(done, lanes):
                if failure:
                    raise DataError(failure)
            images = torch.from_numpy(self._slots[number % len(self._slots), : stop - start])
            yield images.permute(0, 3, 1, 2)
        for _ in done:  # lets the loader notice that the pass is over
            raise AssertionError("there are no tasks left")

    def close(self) -> None:
        """End the workers: DataLoader does so when its iterator is garbage collected."""
        self._iterator = self._loader = None

    def _done(self, tasks: Iterator[Task]) -> Iterator[str]:
        if not self._workers:
            yield from map(self._maker.__getitem__, tasks)
            return
        self._tasks.coming = tasks
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="This DataLoader will create")  # more than cores
            if self._loader is None:
                self._loader = DataLoader(
                    self._maker,  # type: ignore[arg-type]
                    batch_size=None,
                    sampler=self._tasks,
                    num_workers=self._workers,
                    prefetch_factor=self._ahead,
                    persistent_workers=True,
                    multiprocessing_context="fork",
                    generator=torch.Generator(),  # or it would draw from the global one, which dropout uses
                )
            self._iterator = iter(self._loader)
        while True:  # a for loop would hold on to the iterator, which ``close`` drops
            try:
                yield next(self._iterator)
            except StopIteration:
                return
            except RuntimeError as error:
                if not str(error).startswith("DataLoader worker (pid"):
                    raise
                cause = str(error).splitlines()[0]
                raise RunFailed(
                    f"a worker process of the data was lost ({cause}); if memory ran out, lower "
                    "data.workers; the last checkpoint stands"
                ) from error


class _Tasks(Sampler[Task]):
    """Hands the loader the tasks of whichever pass is on."""

    def __init__(self) -> None:
        self.coming: Iterator[Task] = iter(())

    def __iter__(self) -> Iterator[Task]:
        return self.coming

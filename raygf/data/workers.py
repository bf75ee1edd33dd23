"""Processes that put batches of images from disk together, in memory that they share with this one.

A pass over a split (``Pass``) is cut into tasks, one for every batch and worker. All workers work on every
batch, each on the images of certain units (Parquet row groups), so that no unit is read by two of them unless
there are too few units to go round. Which worker does what depends on their number, what is done does not.
"""

import itertools
import math
import mmap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler

from raygf.compute import torch_threads
from raygf.data.base import Indices, SplitName, permutation
from raygf.data.pixels import decode_tensor
from raygf.data.stores import FolderStore, ShardReader, ShardStore
from raygf.errors import DataError, RunFailed

IMAGES_AHEAD = 1024
"""Images that are made before they are asked for, at least two batches of them."""
SPREAD = 4
"""Shares of units per worker that a unit may be cut into so that workers have alike much to do."""

Key = tuple[str | int, ...]
"""Names the random streams of the augmentation, together with an image's index."""
Stores = Mapping[SplitName, FolderStore | ShardStore]
View = Callable[[torch.Tensor, int, Key | None], torch.Tensor]
"""What the network sees of an image uint8 (3, H, W), given its index in the store and the key of the pass."""


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
    together = len(np.unique(visits[: whole.edges[: ahead + 1][-1][1]]))  # units in use at a time
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
    names, place = np.unique(whole.order.visits, return_inverse=True)
    last = np.zeros(len(names), np.int64)
    np.maximum.at(last, place, batch)
    by_batch = np.argsort(last, kind="stable")
    return np.split(names[by_batch], np.searchsorted(last[by_batch], np.arange(1, batches)))


class ViewMaker:
    """Does tasks, putting the images into ``slots`` (S, B, H, W, 3); one for each process."""

    def __init__(self, stores: Stores, view: View, slots: NDArray[np.uint8]) -> None:
        self._stores = stores
        self._view = view
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
        store = self._stores[task.split]
        reader = self._readers.setdefault(task.split, store.open())
        for place, image, visit in zip(
            *map(np.ndarray.tolist, (task.places, task.images, task.visits)), strict=True
        ):
            file = reader.read(image, visit)
            try:
                if file is None:
                    raise ValueError("there are no image bytes; images must be stored inside the file")
                view = self._view(decode_tensor(file), image, task.key)
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

    def __init__(self, stores: Stores, view: View, workers: int, capacity: int, size: int) -> None:
        """``capacity``: images in the largest batch. ``size``: pixels a side that ``view`` cuts images to."""
        self._workers = workers
        self._ahead = min(32, max(2, -(-IMAGES_AHEAD // capacity))) if workers else 0
        # One slot is with the consumer, one is done while it asks for the next, the others are ahead.
        shape = (self._ahead + 2, capacity, size, size, 3)
        self._slots = np.frombuffer(mmap.mmap(-1, math.prod(shape)), np.uint8).reshape(shape)
        self._maker = ViewMaker(stores, view, self._slots)
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

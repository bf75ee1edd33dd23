"""Processes that put batches together in memory which they share with this one."""

from __future__ import annotations

import math
import mmap
import multiprocessing
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler

from raygf.compute import derive_seed, torch_threads
from raygf.data.base import SplitName
from raygf.data.pixels import decode_tensor, evaluation_view, training_view
from raygf.data.stores import ImageReader, ImageStore
from raygf.errors import DataError, RunFailed

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class EpochOrder:
    """One pass over a split."""

    images: Indices
    """Indices in the store, in order (N,)."""
    visits: Indices | None
    """For every image a number for the stretch of the pass in which its unit is kept (N,): twice the unit's
    place in the pass, one more where it is read again. None: no units."""


def in_order(images: Indices, units: Indices | None) -> EpochOrder:
    """The ``images`` as they stand; ``units`` (N,) are those of these images."""
    return EpochOrder(images, None if units is None else 2 * units)


def shuffled(images: Indices, units: Indices | None, window: int, stream: torch.Generator) -> EpochOrder:
    """The ``images`` (N,) in random order, as the module describes.

    Args:
        images: indices in the store.
        units: which unit each lies in (N,); None: they are read singly, and fully shuffled.
        window: images of this many places are kept at a time, apart from one unit.
        stream: where the draws come from.
    """
    count = len(images)
    if units is None:
        return EpochOrder(images[_permutation(count, stream)], None)
    _, unit, sizes = np.unique(units, return_inverse=True, return_counts=True)
    turn = _permutation(len(sizes), stream)  # the units in the order of this epoch
    rank = np.empty_like(turn)
    rank[turn] = np.arange(len(turn))
    if window >= count:
        order = _permutation(count, stream)
        return EpochOrder(images[order], 2 * rank[unit[order]])
    starts = np.empty_like(turn)
    starts[turn] = sizes[turn].cumsum() - sizes[turn]
    moved = torch.rand(count, generator=stream, dtype=torch.float64).numpy() * window
    places = starts[unit] + moved
    again = places >= count  # beyond the end: at the beginning, where the unit is read for itself
    order = np.argsort(np.where(again, places - count, places), kind="stable")
    return EpochOrder(images[order], (2 * rank[unit] + again)[order])


def _permutation(count: int, stream: torch.Generator) -> Indices:
    permutation: Indices = torch.randperm(count, generator=stream).numpy()
    return permutation


SPREAD = 4
"""Shares of units per worker that a unit may be cut into so that workers have alike much to do."""


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
    """Of every image (K,); see ``raygf.data.workers``."""
    over: Indices
    """Visits that end with this batch, on whichever worker."""
    key: tuple[str | int, ...] | None
    """Names the random streams of the augmentation, together with an image's index. None: no augmentation."""


@dataclass(frozen=True, eq=False)
class Pass:
    """One pass over a split: its order, its batches, its augmentation."""

    split: SplitName
    order: EpochOrder
    edges: Sequence[tuple[int, int]]
    """Where in the order every batch begins and ends."""
    key: tuple[str | int, ...] | None
    """See ``Task.key``."""


def cut(whole: Pass, workers: int, slots: int, ahead: int) -> Iterator[Task]:
    """The tasks of all batches: for each batch one for every worker, in the order of the workers.

    Args:
        whole: the pass.
        workers: how many there are, at least 1.
        slots: memory slots, which the batches use in turn.
        ahead: batches that are under way at a time.
    """
    order = whole.order
    lanes = _lanes(whole, workers, ahead)
    visits = np.zeros(len(order.images), np.int64) if order.visits is None else order.visits
    over = _ending(whole)
    for number, (start, stop) in enumerate(whole.edges):
        for worker in range(workers):
            places = np.flatnonzero(lanes[start:stop] == worker)
            yield Task(
                whole.split,
                number % slots,
                places,
                order.images[start + places],
                visits[start + places],
                over[number],
                whole.key,
            )


def _lanes(whole: Pass, workers: int, ahead: int) -> Indices:
    """Which worker does every image of the pass (N,)."""
    count = len(whole.order.images)
    visits = whole.order.visits
    if visits is None or workers == 1:
        return np.arange(count) % workers
    together = len(np.unique(visits[: whole.edges[: ahead + 1][-1][1]]))  # units in use at a time
    parts = math.ceil(SPREAD * workers / together)
    return (visits // 2 * parts + np.arange(count) % parts) % workers


def _ending(whole: Pass) -> list[Indices]:
    """The visits that end with every batch."""
    visits = whole.order.visits
    batches = len(whole.edges)
    if visits is None:
        return [np.empty(0, np.int64)] * batches
    batch = np.repeat(np.arange(batches), [stop - start for start, stop in whole.edges])
    names, place = np.unique(visits, return_inverse=True)
    last = np.zeros(len(names), np.int64)
    np.maximum.at(last, place, batch)
    by_batch = np.argsort(last, kind="stable")
    return np.split(names[by_batch], np.searchsorted(last[by_batch], np.arange(1, batches)))


@dataclass(frozen=True)
class ViewSizes:
    """How images are cut."""

    crop: int
    """Pixels a side of what the network sees."""
    resize: int
    """Pixels of the shorter side before the centre is cut out."""
    flip: bool
    """Whether half of the training images are mirrored."""


@dataclass(frozen=True)
class Failure:
    """An image that could not be decoded."""

    place: int
    """Its row of the slot."""
    where: str
    why: str


@dataclass(frozen=True)
class Done:
    """How a task went."""

    failures: tuple[Failure, ...] = ()
    error: str = ""
    """Why the whole task could not be done. A text: exceptions change on their way out of a worker."""


class ViewMaker:
    """Does tasks, putting the images into ``slots`` (S, B, H, W, 3); one for each process."""

    def __init__(
        self, stores: Mapping[SplitName, ImageStore], sizes: ViewSizes, slots: NDArray[np.uint8]
    ) -> None:
        self._stores = stores
        self._sizes = sizes
        self._slots = torch.from_numpy(slots).permute(0, 1, 4, 2, 3)
        self._readers: dict[SplitName, ImageReader] = {}

    def __getitem__(self, task: Task) -> Done:
        """Do ``task``; under this name because torch's DataLoader asks for it so."""
        try:
            return self._do(task)
        except DataError as error:
            return Done(error=str(error))

    def _do(self, task: Task) -> Done:
        reader = self._reader(task.split)
        failures = []
        for place, image, visit in zip(task.places, task.images, task.visits, strict=True):
            file = reader.read(int(image), int(visit))
            try:
                if file is None:
                    raise ValueError("there are no image bytes; images must be stored inside the file")
                view = self._view(decode_tensor(file), int(image), task.key)
            except ValueError as error:
                where = self._stores[task.split].where(int(image))
                failures.append(Failure(int(place), where, str(error)))
            else:
                self._slots[task.slot, place].copy_(view)
        reader.leave(task.over.tolist())
        return Done(tuple(failures))

    def _view(self, image: torch.Tensor, index: int, key: tuple[str | int, ...] | None) -> torch.Tensor:
        sizes = self._sizes
        if key is None:
            return evaluation_view(image, sizes.resize, sizes.crop)
        seed, *names = key
        # Of its own for every image: nothing depends on who does which image in which order.
        stream = random.Random(derive_seed(int(seed), *names, "image", index))
        return training_view(image, sizes.crop, sizes.flip, stream)

    def _reader(self, split: SplitName) -> ImageReader:
        if split not in self._readers:
            self._readers[split] = self._stores[split].open()
        return self._readers[split]


IMAGES_AHEAD = 1024
"""Images that are made before they are asked for, at least two batches of them."""

MakeViewMaker = Callable[[NDArray[np.uint8]], ViewMaker]


@dataclass(frozen=True, eq=False)
class MadeBatch:
    """One batch as it came from the workers."""

    images: torch.Tensor
    """uint8 (B, 3, H, W): a view of memory that the workers use again once the next batch is asked for."""
    failures: tuple[Failure, ...]
    """Rows of ``images`` that hold no image."""


class WorkerPool:
    """Makes the batches of one pass at a time. Without workers this process makes them itself.

    The workers are those of torch's DataLoader, which notices when one dies and ends them with this process.
    They are forked and stay from pass to pass. Images are written to where the batch is put together, in
    anonymous shared memory: nothing is sent or copied again, and the small /dev/shm of containers is not
    used.
    """

    def __init__(self, make: MakeViewMaker, workers: int, capacity: int, size: int) -> None:
        """
        Args:
            make: makes what does the tasks, given the memory slots.
            workers: processes.
            capacity: images in the largest batch.
            size: pixels a side of an image.

        Raises:
            DataError: there are to be workers, and this system has no fork.
        """
        if workers and "fork" not in multiprocessing.get_all_start_methods():
            raise DataError(f"data.workers = {workers}: this system has no fork; set --data.workers 0")
        self._workers = workers
        self._ahead = min(32, max(2, -(-IMAGES_AHEAD // capacity))) if workers else 0
        # One slot is with the consumer, one is done while it asks for the next, the others are ahead.
        self._slots = _shared_array((self._ahead + 2, capacity, size, size, 3))
        self._maker = make(self._slots)
        self._tasks = _Tasks()
        self._loader: Any = None
        self._iterator: Any = None

    def batches(self, whole: Pass) -> Iterator[MadeBatch]:
        """The batches of one pass. Only after the last one may another pass begin.

        Raises:
            DataError: files are gone or damaged.
            RunFailed: a worker process was lost.
        """
        lanes = max(1, self._workers)
        tasks = cut(whole, lanes, len(self._slots), max(1, self._ahead))
        done = self._done(tasks)
        for number, (start, stop) in enumerate(whole.edges):
            results = [next(done) for _ in range(lanes)]
            for result in results:
                if result.error:
                    raise DataError(result.error)
            failures = [failure for result in results for failure in result.failures]
            images = torch.from_numpy(self._slots[number % len(self._slots), : stop - start])
            yield MadeBatch(
                images.permute(0, 3, 1, 2), tuple(sorted(failures, key=lambda failure: failure.place))
            )
        for _ in done:  # lets the loader notice that the pass is over
            raise AssertionError("there are no tasks left")

    def close(self) -> None:
        """End the workers."""
        if self._iterator is not None:
            self._iterator._shutdown_workers()  # DataLoader has no public way; its __del__ does the same
        self._iterator = self._loader = None

    def _done(self, tasks: Iterator[Task]) -> Iterator[Done]:
        if not self._workers:
            for task in tasks:
                with torch_threads(1):  # as in a worker: one image is too little for more
                    done = self._maker[task]
                yield done
            return
        self._tasks.coming = tasks
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="This DataLoader will create")  # more than cores
            if self._loader is None:
                self._loader = self._make_loader()
            self._iterator = iter(self._loader)
        while True:
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

    def _make_loader(self) -> Any:
        return DataLoader(
            self._maker,  # type: ignore[arg-type]
            batch_size=None,
            sampler=self._tasks,
            num_workers=self._workers,
            prefetch_factor=self._ahead,
            collate_fn=_as_it_is,
            persistent_workers=True,
            multiprocessing_context="fork",
            generator=torch.Generator(),  # or it would draw from the global one, which dropout uses
        )


class _Tasks(Sampler[Task]):
    """Hands the loader the tasks of whichever pass is on."""

    def __init__(self) -> None:
        self.coming: Iterator[Task] = iter(())

    def __iter__(self) -> Iterator[Task]:
        return self.coming


def _as_it_is(done: Any) -> Any:
    return done


def _shared_array(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Zeros in memory that forked processes share."""
    size = int(np.prod(shape))
    return np.frombuffer(mmap.mmap(-1, size), np.uint8).reshape(shape)

"""Processes that put batches together in memory which they share with this one."""

from __future__ import annotations

import mmap
import multiprocessing
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler

from raygf.compute import torch_threads
from raygf.data.tasks import Pass, Task, cut
from raygf.data.view_maker import Done, Failure, ViewMaker
from raygf.errors import DataError, RunFailed

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

"""A pass cut into batches, and every batch into what each worker does for it.

All workers work on every batch, each on the images of certain units, so that no unit is read by two of them
unless there are too few units to go round. Which worker does what depends on their number, what is done does
not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raygf.data.base import SplitName
from raygf.data.epoch_order import EpochOrder

Indices = NDArray[np.int64]
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
    """Of every image (K,); see ``raygf.data.epoch_order``."""
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

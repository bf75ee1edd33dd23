"""A pass cut into tasks: whatever the number of workers, all is done once."""

from __future__ import annotations

import numpy as np
import pytest

from raygf.compute import generator
from raygf.data.in_memory import batch_edges
from raygf.data.workers import EpochOrder, Pass, Task, cut, in_order, shuffled

COUNT, BATCH = 1001, 32
UNITS = np.arange(COUNT) // 10


def orders() -> dict[str, EpochOrder]:
    images = np.arange(COUNT) + 7
    return {
        "windowed": shuffled(images, UNITS, 200, generator(0, "a")),
        "full": shuffled(images, UNITS, COUNT, generator(0, "a")),
        "in order": in_order(images, UNITS),
        "single": shuffled(images, None, 1, generator(0, "a")),
        "one unit": in_order(images, np.zeros(COUNT, np.int64)),
    }


def tasks(name: str, workers: int) -> tuple[Pass, list[list[Task]]]:
    """A pass, and its tasks by batch."""
    whole = Pass("train", orders()[name], batch_edges(COUNT, BATCH), (0, "a"))
    made = list(cut(whole, workers, slots=4, ahead=2))
    assert len(made) == workers * len(whole.edges)
    return whole, [made[start : start + workers] for start in range(0, len(made), workers)]


@pytest.mark.parametrize("name", orders())
@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_a_batch_has_its_images_at_their_places(name: str, workers: int) -> None:
    whole, batches = tasks(name, workers)
    for number, ((start, stop), parts) in enumerate(zip(whole.edges, batches, strict=True)):
        batch = np.full(stop - start, -1)
        for part in parts:
            assert (part.slot, part.split, part.key) == (number % 4, "train", (0, "a"))
            batch[part.places] = part.images
        assert np.array_equal(batch, whole.order.images[start:stop])
        assert sum(len(part.places) for part in parts) == stop - start


@pytest.mark.parametrize("name", ["windowed", "full", "in order"])
@pytest.mark.parametrize("workers", [1, 3])
def test_every_visit_ends_once_with_its_last_batch(name: str, workers: int) -> None:
    whole, batches = tasks(name, workers)
    ended: list[int] = []
    for parts in batches:
        used = {int(visit) for part in parts for visit in part.visits}
        assert not used & set(ended)
        over = parts[0].over.tolist()
        assert all(part.over.tolist() == over for part in parts) and set(over) <= used
        ended += over
    assert sorted(ended) == sorted(set(whole.order.visits.tolist()))


@pytest.mark.parametrize("name", orders())
@pytest.mark.parametrize("workers", [2, 3, 5])
def test_workers_have_alike_much_to_do(name: str, workers: int) -> None:
    """Over stretches as long as what is prepared ahead."""
    _, batches = tasks(name, workers)
    loads = np.array([[len(part.places) for part in parts] for parts in batches[:-1]])
    stretches = loads[: len(loads) // 6 * 6].reshape(-1, 6, workers).sum(axis=1)
    assert (stretches.max(axis=1) / stretches.mean(axis=1)).max() < 1.6


@pytest.mark.parametrize("name", ["windowed", "full"])
def test_no_unit_is_read_by_two_workers_where_there_are_enough(name: str) -> None:
    _, batches = tasks(name, 3)
    owners: dict[int, set[int]] = {}
    for parts in batches:
        for worker, part in enumerate(parts):
            for visit in part.visits.tolist():
                owners.setdefault(visit, set()).add(worker)
    assert all(len(workers) == 1 for workers in owners.values())

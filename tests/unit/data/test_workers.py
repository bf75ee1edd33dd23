"""Orders of a pass, and its tasks: near enough to random, few units at a time, all done once."""

import numpy as np
import pytest

from raygf.compute import generator
from raygf.data.in_memory import batch_edges
from raygf.data.workers import Pass, cut, in_order, shuffled

COUNT, GROUP = 1000, 20
IMAGES = np.arange(COUNT) * 3 + 5
UNITS = np.arange(COUNT) // GROUP + 100


def order(window, seed=0, units=UNITS):
    return shuffled(IMAGES, units, window, generator(seed, "order"))


def open_units(visits):
    """How many visits are under way at every place."""
    opened, closed = np.zeros(len(visits) + 1), np.zeros(len(visits) + 1)
    for visit in np.unique(visits):
        places = np.flatnonzero(visits == visit)
        opened[places[0]] += 1
        closed[places[-1] + 1] += 1
    return (opened - closed).cumsum()[:-1]


@pytest.mark.parametrize("window", [1, 100, 999, 1000, 10**6])
def test_every_image_comes_once_and_its_visits_are_those_of_its_unit(window):
    made = order(window)
    assert np.array_equal(np.sort(made.images), IMAGES)
    unit = UNITS[(made.images - 5) // 3]
    for visit in np.unique(made.visits):
        assert len(np.unique(unit[made.visits == visit])) == 1
    units = [set(unit[made.visits // 2 == pair]) for pair in np.unique(made.visits // 2)]
    assert all(len(names) == 1 for names in units) and len(units) == COUNT // GROUP


@pytest.mark.parametrize("window", [1, 40, 100, 300])
def test_no_more_units_are_kept_than_the_window_holds(window):
    made = order(window)
    # The rows that came into the window, a unit that is on its way out, and one at the circle's seam.
    assert open_units(made.visits).max() <= window / GROUP + 3
    again = len(np.unique(made.visits)) - COUNT // GROUP
    assert again <= window / GROUP + 1  # units that are read twice


def test_a_window_that_holds_all_reads_every_unit_once_and_shuffles_fully():
    made = order(COUNT)
    assert len(np.unique(made.visits)) == COUNT // GROUP
    rank = np.argsort(made.images)
    assert abs(np.corrcoef(rank, np.arange(COUNT))[0, 1]) < 0.1
    within = np.abs(np.diff(rank.reshape(-1, GROUP), axis=1)).mean()  # neighbours of one unit
    assert within == pytest.approx(COUNT / 3, rel=0.15)  # as far apart as any two


def test_any_stretch_of_a_windowed_order_mixes_units_evenly():
    """The beginning and the end too: the same number of units in every stretch as long as the window."""
    made = order(200)
    kinds = [len(np.unique(made.visits[start : start + 100] // 2)) for start in range(0, COUNT, 100)]
    assert min(kinds) >= 10 and max(kinds) <= 16
    neighbours = np.mean(made.visits[1:] // 2 == made.visits[:-1] // 2)
    assert neighbours < 0.2  # in the files 0.95


@pytest.mark.parametrize("window", [100, COUNT])
@pytest.mark.parametrize("units", [UNITS, None], ids=["units", "single"])
def test_the_seed_decides_or_else_the_files(window, units):
    first, again, other = (order(window, seed, units) for seed in (0, 0, 1))
    assert np.array_equal(first, again) and np.array_equal(np.sort(other.images), IMAGES)
    assert not np.array_equal(first.images, other.images)
    assert not np.array_equal(first.images, IMAGES)
    assert units is not None or not first.visits.any()
    files = in_order(IMAGES, UNITS)
    assert np.array_equal(files.images, IMAGES) and np.array_equal(files.visits // 2, UNITS)


ORDERS = {
    "windowed": order(200),
    "full": order(COUNT),
    "in order": in_order(IMAGES, UNITS),
    "single": order(1, units=None),
    "one unit": in_order(IMAGES, np.zeros(COUNT, np.int64)),
}
each_order = pytest.mark.parametrize("name", ORDERS)


def tasks(name, workers):
    """A pass, and its tasks by batch; a last batch of one image joins the one before."""
    whole = Pass("train", ORDERS[name], batch_edges(COUNT, 27), (0, "a"))
    made = list(cut(whole, workers, slots=4, ahead=2))
    assert len(made) == workers * len(whole.edges)
    return whole, [made[start : start + workers] for start in range(0, len(made), workers)]


@each_order
@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_a_batch_has_its_images_at_their_places_and_every_visit_ends_once_with_its_last(name, workers):
    whole, batches = tasks(name, workers)
    ended: list[int] = []
    for number, ((start, stop), parts) in enumerate(zip(whole.edges, batches, strict=True)):
        batch = np.full(stop - start, -1)
        for part in parts:
            assert (part.slot, part.split, part.key) == (number % 4, "train", (0, "a"))
            batch[part.places] = part.images
        assert np.array_equal(batch, whole.order.images[start:stop])
        assert sum(len(part.places) for part in parts) == stop - start
        used = {int(visit) for part in parts for visit in part.visits}
        over = parts[0].over.tolist()
        assert all(part.over.tolist() == over for part in parts) and set(over) <= used
        assert not used & set(ended)
        ended += over
    assert sorted(ended) == sorted(set(whole.order.visits.tolist()))


@each_order
@pytest.mark.parametrize("workers", [2, 3, 5])
def test_workers_have_alike_much_to_do(name, workers):
    """Over stretches as long as what is prepared ahead."""
    _, batches = tasks(name, workers)
    loads = np.array([[len(part.places) for part in parts] for parts in batches[:-1]])
    stretches = loads[: len(loads) // 6 * 6].reshape(-1, 6, workers).sum(axis=1)
    assert (stretches.max(axis=1) / stretches.mean(axis=1)).max() < 1.6


@pytest.mark.parametrize("name", ["windowed", "full"])
def test_no_unit_is_read_by_two_workers_where_there_are_enough(name):
    _, batches = tasks(name, 3)
    owners: dict[int, set[int]] = {}
    for parts in batches:
        for worker, part in enumerate(parts):
            for visit in part.visits.tolist():
                owners.setdefault(visit, set()).add(worker)
    assert all(len(workers) == 1 for workers in owners.values())

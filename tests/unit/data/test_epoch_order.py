"""Orders of a pass: permutations, near enough to random, with few units needed at a time."""

from __future__ import annotations

import numpy as np
import pytest

from raygf.compute import generator
from raygf.data.workers import EpochOrder, in_order, shuffled

COUNT, GROUP = 1000, 20
IMAGES = np.arange(COUNT) * 3 + 5
UNITS = np.arange(COUNT) // GROUP + 100


def order(window: int, seed: int = 0, units: np.ndarray | None = UNITS) -> EpochOrder:
    return shuffled(IMAGES, units, window, generator(seed, "order"))


def open_units(visits: np.ndarray) -> np.ndarray:
    """How many visits are under way at every place."""
    opened, closed = np.zeros(len(visits) + 1), np.zeros(len(visits) + 1)
    for visit in np.unique(visits):
        places = np.flatnonzero(visits == visit)
        opened[places[0]] += 1
        closed[places[-1] + 1] += 1
    return (opened - closed).cumsum()[:-1]


@pytest.mark.parametrize("window", [1, 100, 999, 1000, 10**6])
def test_every_image_comes_once_and_its_visits_are_those_of_its_unit(window: int) -> None:
    made = order(window)
    assert np.array_equal(np.sort(made.images), IMAGES)
    unit = UNITS[(made.images - 5) // 3]
    for visit in np.unique(made.visits):
        assert len(np.unique(unit[made.visits == visit])) == 1
    units = [set(unit[made.visits // 2 == pair]) for pair in np.unique(made.visits // 2)]
    assert all(len(names) == 1 for names in units) and len(units) == COUNT // GROUP


@pytest.mark.parametrize("window", [1, 40, 100, 300])
def test_no_more_units_are_kept_than_the_window_holds(window: int) -> None:
    made = order(window)
    # The rows that came into the window, a unit that is on its way out, and one at the circle's seam.
    assert open_units(made.visits).max() <= window / GROUP + 3
    again = len(np.unique(made.visits)) - COUNT // GROUP
    assert again <= window / GROUP + 1  # units that are read twice


def test_a_window_that_holds_all_reads_every_unit_once_and_shuffles_fully() -> None:
    made = order(COUNT)
    assert len(np.unique(made.visits)) == COUNT // GROUP
    rank = np.argsort(made.images)
    assert abs(np.corrcoef(rank, np.arange(COUNT))[0, 1]) < 0.1
    within = np.abs(np.diff(rank.reshape(-1, GROUP), axis=1)).mean()  # neighbours of one unit
    assert within == pytest.approx(COUNT / 3, rel=0.15)  # as far apart as any two


def test_any_stretch_of_a_windowed_order_mixes_units_evenly() -> None:
    """The beginning and the end too: the same number of units in every stretch as long as the window."""
    made = order(200)
    kinds = [len(np.unique(made.visits[start : start + 100] // 2)) for start in range(0, COUNT, 100)]
    assert min(kinds) >= 10 and max(kinds) <= 16
    neighbours = np.mean(made.visits[1:] // 2 == made.visits[:-1] // 2)
    assert neighbours < 0.2  # in the files 0.95


def test_without_units_a_random_permutation() -> None:
    made = order(1, units=None)
    assert made.visits is None and np.array_equal(np.sort(made.images), IMAGES)
    assert not np.array_equal(made.images, IMAGES)


@pytest.mark.parametrize("window", [100, COUNT])
def test_the_seed_decides(window: int) -> None:
    assert np.array_equal(order(window).images, order(window).images)
    assert np.array_equal(order(window).visits, order(window).visits)
    assert not np.array_equal(order(window).images, order(window, seed=1).images)


def test_in_order() -> None:
    made = in_order(IMAGES, UNITS)
    assert np.array_equal(made.images, IMAGES) and np.array_equal(made.visits // 2, UNITS)
    assert in_order(IMAGES, None).visits is None

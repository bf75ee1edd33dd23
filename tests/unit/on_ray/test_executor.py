"""The order in which exits are handed to fewer actors."""

import itertools

import pytest

from raygf.on_ray.executor import longest_first

OPERATIONS = {  # up to every exit, millions: Meta-GF paper, Tables 1 and 3
    "MSDNet-7": (56.43, 101.0, 155.31, 198.1, 249.53, 298.05, 340.64),
    "VGG16-SDN": (39.76, 96.52, 153.25, 191.08, 247.81, 285.6, 314.45),
}


def makespan(order, seconds, actors):
    """When all are done, if every actor takes the next exit as soon as it is free."""
    free = [0.0] * actors
    for exit in order:
        free[free.index(min(free))] += seconds[exit]
    return max(free)


def best(seconds, actors):
    """The shortest possible, by trying all assignments."""
    return min(
        max(sum(s for s, a in zip(seconds, choice, strict=True) if a == actor) for actor in range(actors))
        for choice in itertools.product(range(actors), repeat=len(seconds))
    )


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("actors", [2, 3])
def test_fewer_actors_than_exits_end_within_a_twentieth_of_the_best(name, actors):
    seconds = OPERATIONS[name]
    assert makespan(longest_first(7, {}), seconds, actors) <= 1.05 * best(seconds, actors)


def test_measured_times_go_before_depth():
    assert longest_first(3, {}) == [2, 1, 0]
    assert longest_first(3, {0: 5.0, 1: 1.0, 2: 2.0}) == [0, 2, 1]

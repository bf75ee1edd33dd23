"""What trials reserve, and whether clusters could hold it."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raygf.config.run import ResourceConfig
from raygf.errors import ResourceError
from raygf.on_ray.placement import (
    actors_that_fit,
    check_fits,
    check_trial_fits,
    fits,
    settle_actors,
    trial_bundles,
)

CPUS = ResourceConfig(cpus_per_exit=2.0, gpus_per_exit=0.0, driver_cpus=1.0, driver_gpus=0.0)
GPUS = ResourceConfig(gpus_per_exit=1.0, driver_gpus=0.5)


def test_a_trial_reserves_a_bundle_for_each_part():
    assert trial_bundles(CPUS, 3) == [{}, {"CPU": 1.0}, {"CPU": 2.0}, {"CPU": 2.0}, {"CPU": 2.0}]
    assert trial_bundles(CPUS, 0) == [{}, {"CPU": 1.0}]
    assert trial_bundles(GPUS, 1) == [{}, {"CPU": 1.0, "GPU": 0.5}, {"CPU": 1.0, "GPU": 1.0}]


def test_every_bundle_needs_one_node():
    assert fits([{"CPU": 4.0}], [{"CPU": 4.0}])
    assert not fits([{"CPU": 4.0}], [{"CPU": 3.0}, {"CPU": 3.0}])
    assert fits([{"CPU": 2.0}, {"CPU": 2.0}, {"CPU": 2.0}], [{"CPU": 3.0}, {"CPU": 4.0}])
    assert not fits([{"GPU": 1.0}], [{"CPU": 64.0}])
    assert fits([{}], [{"CPU": 1.0}])


def test_bundles_without_gpus_leave_the_nodes_that_have_them():
    nodes = [{"CPU": 1.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 0.0}]
    assert fits([{"CPU": 1.0}, {"CPU": 1.0, "GPU": 1.0}], nodes)


def test_shares_of_a_cpu_add_up():
    assert fits([{"CPU": 0.1}] * 10, [{"CPU": 1.0}])
    assert not fits([{"CPU": 0.1}] * 11, [{"CPU": 1.0}])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([1.0, 2.0, 3.0]), min_size=1, max_size=5),
    st.lists(st.sampled_from([1.0, 2.0, 4.0]), min_size=1, max_size=3),
)
def test_what_fits_can_be_placed_and_what_is_placed_is_not_too_much(bundles, nodes):
    """Against trying all orders: a yes is always right, and with one size of bundle a no is, too."""
    found = fits([{"CPU": amount} for amount in bundles], [{"CPU": amount} for amount in nodes])
    possible = any(_place(order, list(nodes)) for order in permutations(bundles))
    assert possible if found else not (possible and len(set(bundles)) == 1)


def _place(bundles: tuple[float, ...], free: list[float]) -> bool:
    for amount in bundles:
        able = [i for i, room in enumerate(free) if room >= amount]
        if not able:
            return False
        free[able[0]] -= amount
    return True


def test_actors_are_as_many_as_fit():
    assert actors_that_fit(CPUS, 3, 1, [{"CPU": 64.0}]) == 3
    assert actors_that_fit(CPUS, 3, 1, [{"CPU": 5.0}]) == 2
    assert actors_that_fit(CPUS, 3, 2, [{"CPU": 6.0}]) == 1
    assert actors_that_fit(CPUS, 0, 2, [{"CPU": 2.0}]) == 0
    with pytest.raises(ResourceError, match="could never hold 2 trials side by side"):
        actors_that_fit(CPUS, 3, 2, [{"CPU": 5.0}])


def test_the_error_says_how_much_and_which_knobs():
    with pytest.raises(ResourceError) as caught:
        check_fits(replace(CPUS, cpus_per_exit=64.0), 3, 1, [{"CPU": 8.0}])
    assert str(caught.value) == (
        "the cluster could never hold a trial with a driver (1 CPUs, 0 GPUs) and 3 exit actors (64 CPUs, 0 "
        "GPUs each): lower cpus_per_exit, gpus_per_exit, resources.actors or resources.driver_cpus, or add "
        "nodes and set resources.wait_for_resources_s"
    )


def test_actors_by_default_follow_the_cluster_and_named_ones_do_not():
    nodes = [{"CPU": 3.0}, {"CPU": 3.0}]
    assert settle_actors(CPUS, 5, 1, nodes) == (
        2,
        "every trial has 2 exit actors for 5 exits: the cluster has no room for more",
    )
    assert settle_actors(CPUS, 2, 1, nodes) == (2, "")
    assert settle_actors(CPUS, 0, 2, nodes) == (0, "")
    assert settle_actors(replace(CPUS, actors=2), 5, 1, nodes) == (2, "")
    assert settle_actors(replace(CPUS, actors=9), 2, 1, nodes) == (2, "")  # more than exits are no use
    with pytest.raises(ResourceError, match="3 exit actors"):
        settle_actors(replace(CPUS, actors=3), 5, 1, nodes)


def test_nodes_that_are_awaited_are_taken_to_be_large_enough():
    patient = replace(CPUS, wait_for_resources_s=600.0)
    assert settle_actors(patient, 5, 4, []) == (5, "")
    check_trial_fits(patient, True, 4, [])
    with pytest.raises(ResourceError):
        check_trial_fits(CPUS, True, 4, [])

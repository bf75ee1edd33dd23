"""What fits on which nodes, what trials reserve, and when waiting for room is told and given up."""

from dataclasses import replace
from itertools import permutations

import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st

from raygf.config.run import ResourceConfig
from raygf.errors import ResourceError
from raygf.on_ray.placement import (
    START_S,
    Waiting,
    actors_per_trial,
    check_fits,
    fits,
    idle_nodes,
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


def _place(bundles, free):
    for amount in bundles:
        able = [i for i, room in enumerate(free) if room >= amount]
        if not able:
            return False
        free[able[0]] -= amount
    return True


def test_shares_of_a_gpu_lie_on_one_and_whole_gpus_are_whole():
    share, whole = {"GPU": 0.6}, {"GPU": 2.0}
    assert fits([share] * 2, [{"GPU": 2.0}]) and not fits([share] * 3, [{"GPU": 2.0}])
    assert fits([whole, share], [{"GPU": 3.0}]) and not fits([whole, share], [{"GPU": 2.5}])
    assert fits([{"GPU": 0.8}, {"GPU": 0.2}], [{"GPU": 1.0}])
    assert fits([share], [{"GPU": 1.4}]) and not fits([share] * 2, [{"GPU": 1.4}])


def test_nodes_are_those_that_live_without_what_is_taken(monkeypatch):
    nodes = [
        {"NodeID": "a", "Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0, "memory": 9}},
        {"NodeID": "b", "Alive": True, "Resources": {"CPU": 2.0}},
        {"NodeID": "c", "Alive": False, "Resources": {"CPU": 8.0}},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert idle_nodes() == [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 2.0, "GPU": 0.0}]
    assert idle_nodes({"b": {"CPU": 1.0}})[1] == {"CPU": 1.0, "GPU": 0.0}


def test_the_error_says_how_much_and_which_knobs():
    with pytest.raises(ResourceError) as caught:
        check_fits(replace(CPUS, cpus_per_exit=64.0), 3, 1, [{"CPU": 8.0}])
    assert str(caught.value) == (
        "the cluster could never hold trials (concurrent = 1) with a driver (1 CPUs, 0 GPUs) and 3 exit "
        "actors (64 CPUs, 0 GPUs each): lower concurrent, resources.cpus_per_exit, resources.gpus_per_exit, "
        "resources.actors or resources.driver_cpus, or add nodes and set resources.wait_for_resources_s"
    )


@pytest.mark.parametrize(
    ("asked", "exits", "concurrent", "actors"),
    [({}, 5, 1, 2), ({}, 2, 1, 2), ({}, 0, 2, 0), ({"actors": 2}, 5, 1, 2), ({"actors": 9}, 2, 1, 2)],
)
def test_actors_follow_the_cluster_unless_they_are_named(asked, exits, concurrent, actors):
    found, note = actors_per_trial(replace(CPUS, **asked), exits, concurrent, [{"CPU": 3.0}] * 2)
    assert found == actors
    few = "every trial has 2 exit actors for 5 exits: the cluster has no room for more"
    assert note == (few if (asked, exits) == ({}, 5) else "")


def test_trials_that_could_never_run_are_refused():
    with pytest.raises(ResourceError, match="3 exit actors"):
        actors_per_trial(replace(CPUS, actors=3), 5, 1, [{"CPU": 3.0}] * 2)
    with pytest.raises(ResourceError, match="could never hold trials"):
        actors_per_trial(CPUS, 3, 2, [{"CPU": 5.0}])
    patient = replace(CPUS, wait_for_resources_s=600.0)  # nodes may still come
    assert actors_per_trial(patient, 5, 4, []) == (5, "")
    check_fits(patient, 1, 4, [])


class Cluster:
    """Time, room, and what was said."""

    def __init__(self, monkeypatch, wait_s):
        self.now, self.room, self.said = 1000.0, True, []
        monkeypatch.setattr("raygf.on_ray.placement.monotonic", lambda: self.now)
        self.waiting = Waiting(
            "the driver (1 CPUs)", "resources.x", wait_s, lambda: self.room, self.said.append
        )
        self.started = self.now

    def pass_(self, seconds):
        """Ask every second for so long; the last answer."""
        for _ in range(round(seconds)):
            self.now += 1
            if late := self.waiting.late(self.started):
                return late
        return ""


@pytest.fixture
def cluster(monkeypatch):
    return lambda wait_s=0.0: Cluster(monkeypatch, wait_s)


def test_a_slow_start_is_told_once_and_ends_after_the_limit(cluster):
    it = cluster()
    assert it.pass_(10) == "" and it.said == []
    assert it.pass_(START_S - 10) == ""
    assert it.said == ["waiting up to 300 s for the start of the driver (1 CPUs)"]
    assert "the driver (1 CPUs) could not start within 300 s: the cluster is busy" in it.pass_(2)


@pytest.mark.parametrize(("patience", "seconds"), [(0.0, 2), (60.0, 62)])
def test_a_lack_of_nodes_is_the_end_when_patience_is(cluster, patience, seconds):
    it = cluster(patience)
    it.room = False
    assert it.pass_(100) == (
        f"the cluster can't hold the driver (1 CPUs), and no node came within {patience:.0f} s; add one, "
        "lower resources.x, or raise resources.wait_for_resources_s"
    )
    assert it.now == it.started + seconds  # the first look starts the clock


def test_a_lack_of_nodes_is_told_soon_and_waited_out(cluster):
    it = cluster(60.0)
    it.room = False
    assert it.pass_(50) == ""
    assert it.said == ["waiting up to 60 s for a node that can hold the driver (1 CPUs)"]
    it.room = True  # a node has come, the process starts
    assert it.pass_(20) == ""
    it.waiting.over()
    assert it.said[1:] == ["there is the driver (1 CPUs) after 69 s"]
    it.room = False
    assert it.pass_(50) == "" and len(it.said) == 3  # waiting starts anew

"""The decisions: what is retried, how failures are counted, how long is waited."""

from __future__ import annotations

import pickle

import pytest

from raygf.errors import DriverLost, ExitFailed
from raygf.on_ray.faults import FIRST_DEADLINE_S, Action, Failure, Loss, count, deadline_s, decide
from raygf.storage.run_storage import pause_s


@pytest.mark.parametrize("failure", [Failure.LOST, Failure.STUCK])
@pytest.mark.parametrize(
    ("failures", "most", "action"),
    [
        (1, 3, Action.RETRY),
        (3, 3, Action.RETRY),
        (4, 3, Action.STOP),
        (1, 0, Action.STOP),
        (1, 1, Action.RETRY),
        (2, 1, Action.STOP),
    ],
)
def test_bad_luck_is_retried_up_to_the_limit(failure, failures, most, action):
    assert decide(failure, failures, most) is action


@pytest.mark.parametrize("failure", [Failure.MEMORY, Failure.RAISED])
@pytest.mark.parametrize("most", [0, 1, 100])
def test_what_would_happen_again_is_not_retried(failure, most):
    assert decide(failure, 1, most) is Action.STOP


def test_every_failure_has_a_decision():
    assert {decide(failure, 1, 1) for failure in Failure} == {Action.RETRY, Action.STOP}


@pytest.mark.parametrize(
    ("nodes", "dead", "failures"),
    [
        ("", "", 0),
        ("a", "", 1),
        ("aaa", "", 3),  # three actors, one after the other, on a node that lives
        ("aaa", "a", 1),  # one node, with all that ran on it
        ("aaab", "a", 2),
        ("aabb", "ab", 2),
        ("aab", "xyz", 3),
    ],
)
def test_all_that_a_dead_node_took_with_it_is_one_failure(nodes, dead, failures):
    assert count([Loss(Failure.LOST, node) for node in nodes], set(dead)) == failures


def test_losses_of_actors_that_had_no_node_yet_count_each():
    assert count([Loss(Failure.LOST), Loss(Failure.LOST)], {"a"}) == 2


@pytest.mark.parametrize("slowest", [None, 0.01, 5.0, 1e6])
@pytest.mark.parametrize("limit", [0.5, 30.0, 1e5])
def test_a_deadline_that_the_user_has_set_holds_alone(slowest, limit):
    assert deadline_s(slowest, limit) == limit


@pytest.mark.parametrize(
    ("slowest", "deadline"),
    [(None, FIRST_DEADLINE_S), (0.1, 60.0), (12.0, 60.0), (12.1, 60.5), (100.0, 500.0), (7200.0, 36000.0)],
)
def test_else_it_follows_from_the_slowest_training_so_far(slowest, deadline):
    assert deadline_s(slowest, None) == pytest.approx(deadline)


def test_a_slower_training_never_shortens_the_deadline():
    deadlines = [deadline_s(seconds, None) for seconds in (0.0, 1.0, 11.9, 12.5, 60.0, 1e4)]
    assert deadlines == sorted(deadlines)
    assert all(deadline > seconds for deadline, seconds in zip(deadlines, (0.0, 1.0, 11.9), strict=False))


def test_pauses_double_up_to_a_minute_and_come_to_an_end():
    assert [pause_s(failures, 8) for failures in range(9)] == [1, 2, 4, 8, 16, 32, 60, 60, None]
    assert pause_s(0, 0) is None


def test_the_final_error_survives_pickling_and_names_exit_round_and_cause():
    error = ExitFailed(1, 7, "10.0.0.1", "the actor died", "allow more retries with resources.max_failures")
    again = pickle.loads(pickle.dumps(error))
    assert (again.exit, again.round, again.node) == (1, 7, "10.0.0.1")
    assert str(again) == str(error)
    assert str(error).startswith("exit 2 could not be trained in round 7 on node 10.0.0.1: the actor died;")
    assert error.exit_code == 1


def test_the_loss_of_a_driver_survives_pickling():
    error = pickle.loads(pickle.dumps(DriverLost("its node has died", "LOST", "abc", silent=True)))
    assert (str(error), error.kind, error.node, error.silent) == ("its node has died", "LOST", "abc", True)
    assert error.exit_code == 1

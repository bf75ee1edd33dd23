"""The decisions: what is retried, how failures are counted, how long is waited."""

from __future__ import annotations

import pickle

import pytest

from raygf.errors import DriverLost, ExitFailed
from raygf.on_ray.faults import FIRST_DEADLINE_S, Action, Failure, Loss, count, deadline_s, decide


@pytest.mark.parametrize("failure", Failure)
@pytest.mark.parametrize(("failures", "most"), [(1, 3), (3, 3), (4, 3), (1, 0), (1, 1), (2, 1), (1, 100)])
def test_bad_luck_is_retried_up_to_the_limit_and_nothing_else(failure, failures, most):
    retried = failure in (Failure.LOST, Failure.STUCK) and failures <= most
    assert decide(failure, failures, most) is (Action.RETRY if retried else Action.STOP)


@pytest.mark.parametrize(
    ("nodes", "dead", "failures"),
    [
        ([], "", 0),
        (["a", "a", "a"], "", 3),  # three actors, one after the other, on a node that lives
        (["a", "a", "a"], "a", 1),  # one node, with all that ran on it
        (["a", "a", "b"], "a", 2),
        (["a", "a", "b", "b"], "ab", 2),
        (["", ""], "a", 2),  # actors that had no node yet
    ],
)
def test_all_that_a_dead_node_took_with_it_is_one_failure(nodes, dead, failures):
    assert count([Loss(Failure.LOST, node) for node in nodes], set(dead)) == failures


@pytest.mark.parametrize(
    ("slowest", "limit", "deadline"),
    [
        (None, None, FIRST_DEADLINE_S),
        (0.1, None, 60.0),
        (12.0, None, 60.0),
        (12.1, None, 60.5),
        (7200.0, None, 36000.0),
        (None, 0.5, 0.5),  # what the user has set holds alone
        (1e6, 30.0, 30.0),
    ],
)
def test_deadlines_follow_from_the_slowest_training_unless_they_are_set(slowest, limit, deadline):
    assert deadline_s(slowest, limit) == pytest.approx(deadline)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            ExitFailed(1, 7, "10.0.0.1", "gone", "allow more"),
            "exit 2 could not be trained in round 7 on node 10.0.0.1: gone; allow more",
        ),
        (DriverLost("its node has died", "LOST", "abc", silent=True), "its node has died"),
    ],
)
def test_errors_survive_the_way_between_processes(error, text):
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.args, again.exit_code) == (text, error.args, 1)
    assert vars(again) == vars(error)

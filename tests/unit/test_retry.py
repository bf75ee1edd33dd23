from __future__ import annotations

import pickle

import pytest

from raygf.errors import ExitFailed
from raygf.retry import Action, Failure, decide


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


def test_the_final_error_survives_pickling_and_names_exit_round_and_cause():
    error = ExitFailed(1, 7, "10.0.0.1", "the actor died", "allow more retries with resources.max_failures")
    again = pickle.loads(pickle.dumps(error))
    assert (again.exit, again.round, again.node) == (1, 7, "10.0.0.1")
    assert str(again) == str(error)
    assert str(error).startswith("exit 2 could not be trained in round 7 on node 10.0.0.1: the actor died;")
    assert error.exit_code == 1

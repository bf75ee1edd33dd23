"""What is retried, how long is waited, and what Ray's errors mean.

The texts are those of Ray 2.60; integration/test_ray_errors.py has those that Ray raises now.
"""

import pickle

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayError

from raygf.errors import DriverLost, ExitFailed
from raygf.on_ray.faults import (
    FIRST_DEADLINE_S,
    Failure,
    cause_of,
    deadline_s,
    failure_of,
    may_retry,
)

NODE_DIED = """The actor died unexpectedly before finishing this task.
\tclass_name: D
\tip: 10.0.0.7
The actor died because its node has died. Node Id: 78a7025f0e10
\tthe actor's node was terminated unexpectedly: health check failed due to missing too many heartbeats
The actor never ran - it was cancelled before it started running."""


class Died(ActorDiedError):
    """With a text of its own."""

    def __init__(self, text):
        super().__init__()
        self.error_msg = text

    def __str__(self):
        return self.error_msg


@pytest.mark.parametrize("failure", Failure)
@pytest.mark.parametrize(("failures", "most"), [(1, 3), (3, 3), (4, 3), (1, 0), (1, 1), (2, 1), (1, 100)])
def test_bad_luck_is_retried_up_to_the_limit_and_nothing_else(failure, failures, most):
    retried = failure in (Failure.LOST, Failure.STUCK) and failures <= most
    assert may_retry(failure, failures, most) is retried


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
        (DriverLost("its node has died", "STUCK"), "its node has died"),
    ],
)
def test_errors_survive_the_way_between_processes(error, text):
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.args, again.exit_code) == (text, error.args, 1)
    assert vars(again) == vars(error)


@pytest.mark.parametrize(
    ("error", "failure", "cause"),
    [
        (
            OutOfMemoryError("in other words"),
            Failure.MEMORY,
            "OutOfMemoryError: Ray ended it because the node ran low on memory",
        ),
        (Died(NODE_DIED), Failure.LOST, "Died: its node has died"),
        (
            RayError("the result could not be fetched\nand more"),
            Failure.LOST,
            "RayError: the result could not be fetched",
        ),
    ],
    ids=["memory", "node", "unknown words"],
)
def test_errors_of_ray_are_told_in_one_line(error, failure, cause):
    assert (failure_of(error), cause_of(error)) == (failure, cause)

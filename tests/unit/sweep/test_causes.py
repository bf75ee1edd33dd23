"""One line for why a trial failed, from under the wrappers of Ray and Tune."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from raygf.errors import ConfigError, ExitFailed, NonFiniteError, RunFailed
from raygf.sweep.trial import WOULD_HAPPEN_AGAIN, cause_of


def from_a_process(cause: Exception) -> Exception:
    """``cause`` as Ray brings it back: an error that has its type, too."""
    return RayTaskError("train", "Traceback ...\nmuch text", cause).as_instanceof_cause()


def chained(inner: Exception) -> Exception:
    try:
        try:
            raise inner
        except Exception as error:
            raise RuntimeError("a wrapper") from error
    except RuntimeError as outer:
        return outer


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ConfigError("optim.lr = -1: must be positive"), "optim.lr = -1: must be positive"),
        (from_a_process(RunFailed("the driver was lost")), "the driver was lost"),
        (from_a_process(ValueError("odd\nmore")), "ValueError: odd"),
        (chained(ValueError("odd")), "ValueError: odd"),
        (
            chained(from_a_process(ExitFailed(0, 3, "n", "gone", "more retries"))),
            "exit 1 could not be trained",
        ),
        (ActorDiedError(), "its process was lost (killed, out of memory, or its node has gone)"),
        (KeyError(), "KeyError"),
        ("Failure # 1\nTraceback\n  ValueError: odd\n", "ValueError: odd"),
        ("", "unknown"),
        (None, "unknown"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_cause_in_one_line(error, line):
    assert cause_of(error).startswith(line)
    assert "\n" not in cause_of(error)


def test_what_would_happen_again_is_not_tried_again():
    assert issubclass(NonFiniteError, WOULD_HAPPEN_AGAIN) and issubclass(ConfigError, WOULD_HAPPEN_AGAIN)
    assert not issubclass(RunFailed, WOULD_HAPPEN_AGAIN) and not issubclass(ExitFailed, WOULD_HAPPEN_AGAIN)

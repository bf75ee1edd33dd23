"""What went wrong, in one line."""

from __future__ import annotations

import pytest

from raygf.tracking.store import reason, start_error

STACKED = "Max retries exceeded (Caused by NewConnectionError('x: [Errno 111] Connection refused'))"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(STACKED), "Connection refused"),
        (OSError("HTTPConnectionPool(host='h'): Read timed out. (read timeout=5)"), "no answer in time"),
        (TimeoutError("timeout"), "no answer in time"),
        (ValueError("first\nsecond"), "first"),
        (ValueError(""), "ValueError"),
        (ValueError("at http://me:secret@host"), "at http://me:***@host"),
        (ValueError("x" * 999), "x" * 200),
    ],
)
def test_the_reason_is_at_the_bottom(error, text):
    assert reason(error) == text


@pytest.mark.parametrize(
    ("error", "text"),
    [
        ("API request failed with error code 403", "--allowed-hosts"),
        ("API request failed with error code 401", "MLFLOW_TRACKING_USERNAME"),
        ("broken", "can't track to http://me:***@host: broken"),
    ],
)
def test_what_to_do_about_it(error, text):
    message = str(start_error(OSError(error), "http://me:secret@host"))
    assert text in message
    assert "secret" not in message and "\n" not in message

"""Where to track, and what went wrong with a store, in one line."""

from pathlib import Path

import pytest

from raygf.config.run import TrackingConfig
from raygf.errors import TrackingError
from raygf.tracking.store import answering, reason, resolve_uri, sqlite_path


def test_uri_from_flag_environment_or_folder(tmp_path, monkeypatch):
    def found(uri=""):
        return resolve_uri(TrackingConfig(uri=uri), tmp_path)

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert found() == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert found() == "http://server:5000"
    assert found("sqlite:///a/b.db?timeout=9") == f"sqlite:///{tmp_path}/a/b.db?timeout=9"
    assert found("sqlite:////abs.db") == "sqlite:////abs.db"


@pytest.mark.parametrize(
    ("uri", "path", "options"),
    [
        ("sqlite:////a/b.db", "/a/b.db", ""),
        ("sqlite+pysqlite:///b.db?timeout=9", "b.db", "?timeout=9"),
        ("sqlite:///:memory:", None, ""),
        ("sqlite://", None, ""),
        ("http://a/b.db", None, ""),
    ],
)
def test_file_of_a_sqlite_uri(uri, path, options):
    assert sqlite_path(uri) == (None if path is None else Path(path), options)


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
        (OSError("failed with error code 403"), "--allowed-hosts"),
        (OSError("failed with error code 401"), "MLFLOW_TRACKING_USERNAME"),
        (OSError("No module named 'psycopg2'"), "install the database's Python driver"),
    ],
)
def test_the_reason_is_at_the_bottom_and_says_what_to_do_about_it(error, text, monkeypatch):
    assert reason(error) == text or (text in reason(error) and str(error) in reason(error))
    monkeypatch.setattr("raygf.tracking.store.check_uri", lambda uri: None)
    with pytest.raises(TrackingError) as caught, answering("http://me:secret@host"):
        raise error
    assert str(caught.value) == f"can't track to http://me:***@host: {reason(error)}"


def test_errors_of_a_store_that_answers_are_one_line_with_its_name(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with pytest.raises(TrackingError, match=r"mlflow\.db: first$"), answering(uri):
        raise ValueError("first\nsecond")
    with pytest.raises(TrackingError, match=r"^as it is$"), answering(uri):
        raise TrackingError("as it is")
    with pytest.raises(TrackingError, match="plain folders"), answering("mlruns"):
        raise AssertionError("is not reached")

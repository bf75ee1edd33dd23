"""Where to track, and how it is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from raygf.config.run import TrackingConfig
from raygf.errors import without_password
from raygf.tracking.store import resolve_uri, sqlite_path


def test_uri_from_flag_environment_or_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_uri(TrackingConfig(), tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert resolve_uri(TrackingConfig(), tmp_path) == "http://server:5000"
    assert resolve_uri(TrackingConfig(uri="sqlite:///a/b.db?timeout=9"), tmp_path) == (
        f"sqlite:///{tmp_path}/a/b.db?timeout=9"
    )
    assert resolve_uri(TrackingConfig(uri="sqlite:////abs.db"), tmp_path) == "sqlite:////abs.db"


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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:secret@host:5000/x", "http://me:***@host:5000/x"),
        ("no answer from postgresql://me:s3:cr@host/db", "no answer from postgresql://me:***@host/db"),
        ("http://me:p@ss/word@host:5000/x", "http://me:***@host:5000/x"),
        ("at http://:secret@host", "at http://:***@host"),
        (
            "postgresql://host/db?user=me&password=secret&ssl=1",
            "postgresql://host/db?user=me&password=***&ssl=1",
        ),
        ("s3://KEY:SECRET@bucket/runs?region=x", "s3://KEY:***@bucket/runs?region=x"),
        ("http://host:5000", "http://host:5000"),
        ("http://host:5000, or ask me@host", "http://host:5000, or ask me@host"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
    ],
)
def test_passwords_are_masked(text, shown):
    assert without_password(text) == shown

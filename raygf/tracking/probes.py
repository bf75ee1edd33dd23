"""Finding out in seconds, not in MLflow's minutes, whether a store can be used."""

from __future__ import annotations

import contextlib
import socket
import sqlite3
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import urlsplit

from raygf.errors import TrackingError
from raygf.tracking.stores import set_environment
from raygf.tracking.trouble import reason
from raygf.tracking.uris import sqlite_path, without_password

PROBE_S = 5.0
"""Seconds that a server has to answer the first request."""

_DATABASE_PORTS = {"postgresql": 5432, "postgres": 5432, "mysql": 3306, "mssql": 1433}
_KNOWN_SCHEMES = ("http", "https", "sqlite", *_DATABASE_PORTS, "databricks")


def check_uri(uri: str) -> None:
    """Find out whether ``uri`` can be tracked to.

    Raises:
        TrackingError: a kind of store that MLflow does not take, a server that does not answer, or a database
            file that can't be written.
    """
    scheme = "databricks" if uri == "databricks" else urlsplit(uri).scheme.partition("+")[0]
    _check_scheme(scheme, uri)
    path, _ = sqlite_path(uri)
    if path is not None:
        _check_sqlite_file(path)
    elif scheme in ("http", "https"):
        _check_server(uri)
    elif scheme in _DATABASE_PORTS:
        _check_database_host(uri, _DATABASE_PORTS[scheme])


def _check_scheme(scheme: str, uri: str) -> None:
    if scheme in ("", "file"):
        folder = urlsplit(uri).path.rstrip("/")
        raise TrackingError(
            f"tracking.uri = {uri!r}: MLflow no longer tracks to plain folders; use "
            f"sqlite:///{folder}/mlflow.db, a server (http://...), or --tracking.enabled False"
        )
    plugins = {entry.name for entry in entry_points(group="mlflow.tracking_store")}
    if scheme not in (*_KNOWN_SCHEMES, *plugins):
        shown, known = without_password(uri), ", ".join(_KNOWN_SCHEMES)
        raise TrackingError(f"tracking.uri = {shown!r}: unknown kind of store; known are {known}")


def _check_sqlite_file(path: Path) -> None:
    where = f"tracking database {path}"
    if not path.parent.is_dir():
        raise TrackingError(f"{where}: there is no folder {path.parent}")
    if path.is_dir():
        raise TrackingError(f"{where}: is a folder")
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=PROBE_S, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")  # shows what file modes do not: read-only or strange disks
            database.execute("ROLLBACK")
    except sqlite3.Error as error:
        if "locked" not in str(error):  # then another run writes to it, and will be done in time
            raise TrackingError(f"{where}: {error}") from error


def _check_server(uri: str) -> None:
    """Any answer will do: whether the server takes our calls shows when the run is opened."""
    set_environment()
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        credentials = get_default_host_creds(uri)
        http_request(credentials, "/health", "GET", timeout=PROBE_S, max_retries=0, raise_on_status=False)
    except Exception as error:
        where = without_password(uri)
        raise TrackingError(f"no MLflow server answers at {where}: {reason(error)}") from error


def _check_database_host(uri: str, default_port: int) -> None:
    parts = urlsplit(uri)
    if not parts.hostname:
        return
    try:
        socket.create_connection((parts.hostname, parts.port or default_port), PROBE_S).close()
    except OSError as error:
        raise TrackingError(f"no database answers at {without_password(uri)}: {reason(error)}") from error

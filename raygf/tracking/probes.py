"""Finding out in seconds, not in MLflow's minutes, whether a store can be used."""

from __future__ import annotations

import contextlib
import socket
import sqlite3
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from raygf.errors import TrackingError
from raygf.tracking.stores import one_at_a_time, set_environment
from raygf.tracking.trouble import reason
from raygf.tracking.uris import sqlite_path, without_password

PROBE_S = 5.0
"""Seconds that a server has to answer the first request."""

_DATABASE_PORTS = {"postgresql": 5432, "postgres": 5432, "mysql": 3306, "mssql": 1433}
_OURS = "experiments"
"""A table that every database of MLflow's has."""
_ANOTHER = "set another --tracking.uri"
_REMEDY = f"start it, {_ANOTHER}, or --tracking.enabled False"
_KNOWN_SCHEMES = ("http", "https", "sqlite", *_DATABASE_PORTS, "databricks")


def check_uri(uri: str) -> None:
    """Find out whether ``uri`` can be tracked to.

    Raises:
        TrackingError: a kind of store that MLflow does not take, a server that does not answer, or a database
            file that can't be written or is not MLflow's.
    """
    scheme = "databricks" if uri == "databricks" else _split(uri).scheme.partition("+")[0]
    _check_scheme(scheme, uri)
    if scheme == "sqlite":
        _check_sqlite_file(uri)
    elif scheme in ("http", "https"):
        _check_server(uri)
    elif scheme in _DATABASE_PORTS:
        _check_database_host(uri, _DATABASE_PORTS[scheme])


def _split(uri: str) -> SplitResult:
    try:
        parts = urlsplit(uri)
        _ = parts.port  # looked at only now
    except ValueError as error:
        raise _refuse(uri, str(error)) from None
    return parts


def _refuse(uri: str, why: str) -> TrackingError:
    return TrackingError(f"tracking.uri = {without_password(uri)!r}: {why}")


def _check_scheme(scheme: str, uri: str) -> None:
    if scheme in ("", "file"):
        folder = urlsplit(uri).path.rstrip("/")
        raise _refuse(
            uri,
            f"MLflow no longer tracks to plain folders; use sqlite:///{folder}/mlflow.db, a server "
            "(http://...), or --tracking.enabled False",
        )
    plugins = {entry.name for entry in entry_points(group="mlflow.tracking_store")}
    if scheme not in (*_KNOWN_SCHEMES, *plugins):
        raise _refuse(uri, f"unknown kind of store; known are {', '.join(_KNOWN_SCHEMES)}")


def _check_sqlite_file(uri: str) -> None:
    path, _ = sqlite_path(uri)
    if path is None:
        raise _refuse(uri, "names no file, so that all would be lost at the end; use sqlite:///mlflow.db")
    where = f"tracking database {path}"
    if not path.parent.is_dir():
        raise TrackingError(f"{where}: there is no folder {path.parent}; create it, or {_ANOTHER}")
    if path.is_dir():
        raise TrackingError(f"{where}: is a folder; {_ANOTHER}")
    try:
        tables = _tables(path)
        if tables and _OURS not in tables:
            with one_at_a_time(uri):  # another run may just be creating them
                tables = _tables(path)
    except sqlite3.Error as error:
        if "locked" in str(error):  # another run writes to it, and will be done in time
            return
        raise TrackingError(f"{where}: {error}; {_ANOTHER}") from error
    if tables and _OURS not in tables:
        raise TrackingError(
            f"{where}: has tables ({', '.join(sorted(tables)[:3])}) that are not MLflow's; {_ANOTHER}"
        )


def _tables(path: Path) -> set[str]:
    """The tables in a database that can be written; it is created if need be."""
    with contextlib.closing(sqlite3.connect(path, timeout=PROBE_S, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")  # shows what file modes do not: read-only or strange disks
        rows = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        database.execute("ROLLBACK")
    return {name for (name,) in rows if not name.startswith("sqlite_")}


def _check_server(uri: str) -> None:
    """Any answer will do: whether the server takes our calls shows when the run is opened."""
    if not urlsplit(uri).hostname:
        raise _refuse(uri, "names no server; use http://HOST:PORT")
    set_environment()
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        credentials = get_default_host_creds(uri)
        http_request(credentials, "/health", "GET", timeout=PROBE_S, max_retries=0, raise_on_status=False)
    except Exception as error:
        where = without_password(uri)
        raise TrackingError(f"no MLflow server answers at {where}: {reason(error)}; {_REMEDY}") from error


def _check_database_host(uri: str, default_port: int) -> None:
    parts = urlsplit(uri)
    if not parts.hostname:
        return
    try:
        socket.create_connection((parts.hostname, parts.port or default_port), PROBE_S).close()
    except OSError as error:
        where = without_password(uri)
        raise TrackingError(f"no database answers at {where}: {reason(error)}; {_REMEDY}") from error

"""The MLflow store behind a URI: where it is, whether it can be used, and what went wrong with it.

Whether it can be used is found out in seconds, not in MLflow's minutes.
"""

import contextlib
import fcntl
import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from raygf.config.run import TrackingConfig
from raygf.errors import TrackingError, one_line, without_password


def resolve_uri(config: TrackingConfig, folder: Path) -> str:
    """Where to track: the flag, else MLFLOW_TRACKING_URI, else ``mlflow.db`` in ``folder``.

    Relative sqlite paths are taken from ``folder`` and made absolute, so that they hold in any process.
    """
    uri = config.uri or os.environ.get("MLFLOW_TRACKING_URI", "") or "sqlite:///mlflow.db"
    path, options = sqlite_path(uri)
    if path is None:
        return uri
    return f"sqlite:///{folder.resolve() / path}{options}"


def sqlite_path(uri: str) -> tuple[Path | None, str]:
    """File and ``?options`` of a sqlite URI; no file if it is another kind, or in memory."""
    scheme, _, rest = uri.partition(":///")
    file, mark, options = rest.partition("?")
    if scheme.partition("+")[0] != "sqlite" or file in ("", ":memory:"):
        return None, ""
    return Path(file), mark + options


# MLflow retries for minutes by default. Training never waits for it, but the end of a run would.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}

# MLflow 3 opens experiments of unknown kind in its view for language models.
_KIND = {"mlflow.experimentKind": "custom_model_development"}


def set_environment() -> None:
    """Have MLflow give up in seconds and keep its talk to itself; what the user has set stays.

    To be called before MLflow is imported.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def connect(uri: str) -> Any:
    """A client of the store at ``uri``; a new database gets its tables."""
    set_environment()
    from mlflow import MlflowClient

    for chatty in ("mlflow", "alembic"):
        logging.getLogger(chatty).setLevel(logging.CRITICAL)
    with one_at_a_time(uri):
        return MlflowClient(tracking_uri=uri)


def find_experiment(client: Any, name: str, uri: str) -> str:
    """The id of the experiment ``name``, created if need be; another process may do so at the same time.

    Raises TrackingError: it is deleted.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        path, _ = sqlite_path(uri)
        # Beside the database: MLflow's default is a folder in whatever the working directory is.
        location = None if path is None else (path.parent / "mlartifacts").as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=location, tags=_KIND))
        except Exception as error:
            if getattr(error, "error_code", "") != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)
    if found.lifecycle_stage != "active":
        shown = f"tracking.experiment = {name!r} is deleted in {without_password(uri)}"
        raise TrackingError(f"{shown}; restore it, or name another")
    return str(found.experiment_id)


@contextlib.contextmanager
def one_at_a_time(uri: str) -> Iterator[None]:
    """Hold a lock on the folder of a sqlite file: two processes that create its tables at once both fail.

    It is a lock on the folder itself, which leaves no file behind. Where a file system has none, go without.
    """
    path, _ = sqlite_path(uri)
    if path is None:
        yield
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def reason(error: BaseException) -> str:
    """One line: what went wrong at the bottom of the libraries' stacked messages, and what may help."""
    text = str(error)
    if found := re.search(r"\[Errno -?\d+\] ([^'\"()\]]+)", text):
        return found[1].strip()
    if re.search(r"timed? ?out", text, re.IGNORECASE):
        return "no answer in time"
    return one_line(error, kind=False) + next((hint for sign, hint in _HINTS if re.search(sign, text)), "")


_HINTS = (
    (r"\b403\b", " (an MLflow server behind a DNS name needs --allowed-hosts)"),
    (r"No module named '(psycopg|pymysql|MySQLdb|pyodbc)", " (install the database's Python driver)"),
    (r"\b401\b", " (set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN)"),
)


@contextlib.contextmanager
def answering(uri: str) -> Iterator[None]:
    """Find out first, in seconds, whether the store answers; errors inside become one line.

    Raises TrackingError: instead of any other error.
    """
    check_uri(uri)
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:
        raise TrackingError(f"can't track to {without_password(uri)}: {reason(error)}") from error


PROBE_S = 5.0
"""Seconds that a server has to answer the first request."""

_ANOTHER = "set another --tracking.uri"


def check_uri(uri: str) -> None:
    """Find out whether ``uri`` can be tracked to, where MLflow itself would try for minutes.

    Raises TrackingError: a plain folder, a server that does not answer, or a file that is no database or
    can't be written.
    """
    try:
        parts = urlsplit(uri)
        _ = parts.port  # looked at only now
    except ValueError as error:
        raise _refuse(uri, str(error)) from None
    scheme = parts.scheme.partition("+")[0]
    if scheme in ("", "file") and uri != "databricks":
        raise _refuse(
            uri,
            f"MLflow no longer tracks to plain folders; use sqlite:///{parts.path.rstrip('/')}/mlflow.db, a "
            "server (http://...), or --tracking.enabled False",
        )
    if scheme == "sqlite":
        _check_sqlite_file(uri)
    elif scheme in ("http", "https"):
        _check_server(uri, parts.hostname)


def _refuse(uri: str, why: str) -> TrackingError:
    return TrackingError(f"tracking.uri = {without_password(uri)!r}: {why}")


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
        with contextlib.closing(sqlite3.connect(path, timeout=PROBE_S, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")  # shows what file modes do not: read-only or strange disks
            database.execute("ROLLBACK")
    except sqlite3.Error as error:
        if "locked" not in str(error):  # else another run writes to it, and will be done in time
            raise TrackingError(f"{where}: {error}; {_ANOTHER}") from error


def _check_server(uri: str, host: str | None) -> None:
    """Any answer will do: whether the server takes our calls shows when the run is opened."""
    if not host:
        raise _refuse(uri, "names no server; use http://HOST:PORT")
    set_environment()
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        credentials = get_default_host_creds(uri)
        http_request(credentials, "/health", "GET", timeout=PROBE_S, max_retries=0, raise_on_status=False)
    except Exception as error:
        shown = f"no MLflow server answers at {without_password(uri)}: {reason(error)}"
        raise TrackingError(f"{shown}; start it, {_ANOTHER}, or --tracking.enabled False") from error

"""Connecting to the store behind a URI, and finding the experiment in it."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from typing import Any

from raygf.errors import TrackingError
from raygf.tracking.uris import sqlite_path, without_password

# MLflow retries for minutes by default. Training never waits for it, but the end of a run would.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
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

    Raises:
        TrackingError: it is deleted.
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
        where = without_password(uri)
        raise TrackingError(
            f"tracking.experiment = {name!r} is deleted in {where}; restore it, or name another"
        )
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

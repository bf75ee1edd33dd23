"""The runs under a sweep's run as MLflow has them: put right what a killed process left behind."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from raygf.errors import TrackingError
from raygf.tracking.mlflow_run import FAILURE_TAG
from raygf.tracking.probes import check_uri
from raygf.tracking.stores import connect
from raygf.tracking.trouble import reason
from raygf.tracking.uris import without_password

_PAGE = 1000


def child_statuses(uri: str, parent: str) -> dict[str, str]:
    """Status of every run under ``parent``, by its id.

    Raises:
        TrackingError: the store does not answer.
    """
    with _in_time(uri):
        return {run.info.run_id: run.info.status for run in _children(connect(uri), parent)}


def delete_children(uri: str, run_ids: Collection[str]) -> None:
    """Delete runs that belong to no trial: a process was killed before it could note down which.

    Raises:
        TrackingError: the store does not answer.
    """
    with _in_time(uri):
        client = connect(uri)
        for run_id in run_ids:
            client.delete_run(run_id)


def end_running(uri: str, parent: str, status: str, why: str) -> None:
    """End ``parent``, and all runs under it that are not ended, with ``status`` and a tag that says why.

    Raises:
        TrackingError: the store does not answer.
    """
    with _in_time(uri):
        client = connect(uri)
        running = [run.info.run_id for run in _children(client, parent) if run.info.status == "RUNNING"]
        for run_id in (parent, *running):
            client.set_terminated(run_id, status)
            client.set_tag(run_id, FAILURE_TAG, why)


@contextmanager
def _in_time(uri: str) -> Iterator[None]:
    """A store that is gone is noticed in seconds; its errors are one line."""
    check_uri(uri)
    try:
        yield
    except Exception as error:
        raise TrackingError(f"{without_password(uri)}: {reason(error)}") from error


def _children(client: Any, parent: str) -> list[Any]:
    found: list[Any] = []
    token = None
    experiment = client.get_run(parent).info.experiment_id
    while True:
        page = client.search_runs(
            [experiment], f"tags.`mlflow.parentRunId` = '{parent}'", max_results=_PAGE, page_token=token
        )
        found += page
        token = page.token
        if not token:
            return found

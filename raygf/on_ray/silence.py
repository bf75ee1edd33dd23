"""What Ray prints by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ray._private import worker


@contextmanager
def silent_ray() -> Iterator[None]:
    """Ray prints nothing of lost processes and nodes, inside.

    Else a paragraph on each goes to standard output, where a job has its result, whatever ``log_to_driver``
    is. raygf says in one line what was lost and why; Ray's logs have the rest. Ray has no setting for it.
    """
    before = worker._worker_logs_enabled
    worker._worker_logs_enabled = False
    try:
        yield
    finally:
        worker._worker_logs_enabled = before

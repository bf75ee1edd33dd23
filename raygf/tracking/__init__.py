"""MLflow: a reader of a run's records. The only part, with the jobs, that knows MLflow.

Trouble when the run starts is an error, before anything has been trained. Trouble later is not: what could
not be delivered is kept and tried again after each round, the caller is told once per cause, and training
goes on.

MLflow itself is imported when a run starts: that takes more than a second, which ``--help`` need not wait.
"""

from __future__ import annotations

from pathlib import Path

from raygf.config import StorageConfig, TrackingConfig
from raygf.tracking.base import NullTracker, Say, Tracker
from raygf.tracking.metrics import end_metrics, round_metrics, start_metrics
from raygf.tracking.mlflow_tracker import MLflowTracker
from raygf.tracking.probes import check_uri
from raygf.tracking.undelivered import Undelivered
from raygf.tracking.uris import resolve_uri

__all__ = [
    "MLflowTracker",
    "NullTracker",
    "Say",
    "Tracker",
    "check_uri",
    "end_metrics",
    "make_tracker",
    "resolve_uri",
    "round_metrics",
    "start_metrics",
]


def make_tracker(
    config: TrackingConfig, folder: Path, say: Say, storage: StorageConfig | None = None
) -> Tracker:
    """The tracker that ``config`` asks for; ``folder`` holds the default database, ``say`` gets warnings.

    Args:
        storage: the run's folder, where what could not be delivered is kept; nowhere without it.
    """
    if not config.enabled:
        return NullTracker()
    undelivered = None if storage is None else Undelivered(storage, folder)
    return MLflowTracker(resolve_uri(config, folder), config.experiment, say, undelivered)

"""The tracker that writes a run to MLflow."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from raygf.config import RunConfig
from raygf.config_dict import to_dict
from raygf.errors import TrackingError
from raygf.records import RoundRecord, RunEnd, RunStart
from raygf.tracking.base import Say
from raygf.tracking.delivery import Delivery, Parcel
from raygf.tracking.metrics import end_metrics, round_metrics, start_metrics, start_params
from raygf.tracking.mlflow_run import FAILURE_TAG, STOPPED_TAG, MLflowRun
from raygf.tracking.probes import check_uri
from raygf.tracking.report import Report
from raygf.tracking.trouble import start_error
from raygf.tracking.uris import without_password

START_S = 120.0
"""Seconds that opening a run may take in all; the first use of a database creates its tables."""
FINISH_S = 60.0
"""Seconds that delivering the results may take in all."""
FAIL_S = 10.0
"""Seconds that delivering a failure may take in all."""


class MLflowTracker:
    """One MLflow run.

    Everything happens on one background thread, in order. After ``start`` it is waited for only in ``finish``
    and ``fail``, and with a limit.

    Args:
        uri: Absolute tracking URI, see ``resolve_uri``.
        experiment: Created if there is none of this name.
        say: Called with one line when something could not be delivered; maybe from another thread.
    """

    def __init__(self, uri: str, experiment: str, say: Say) -> None:
        self.uri, self.experiment = uri, experiment
        self._run = MLflowRun(uri)
        self._delivery = Delivery(without_password(uri), lambda: check_uri(uri), say)
        self._method = ""
        self._start: RunStart | None = None
        self._records: list[RoundRecord] = []

    def start(
        self,
        config: RunConfig,
        run_name: str,
        run_id: str | None = None,
        *,
        recipe: str = "",
        parent_run_id: str = "",
    ) -> str:
        """Create a run, or reopen ``run_id`` after a resume, and log the configuration.

        Parameters that a resumed run has already stay as they are, even if they have changed since: MLflow
        refuses to change them.

        Returns:
            The run's id, for the checkpoint.

        Raises:
            TrackingError: the store can't be used; nothing has been trained yet.
        """
        self._method = config.method
        tags = _tags(config, recipe, parent_run_id)
        try:
            check_uri(self.uri)
            self._delivery.open(lambda: self._open(config, run_name, run_id, tags), START_S)
        except TrackingError:
            raise
        except Exception as error:
            raise start_error(error, self.uri) from error
        return self._run.id

    def log_start(self, start: RunStart) -> None:
        """Log sizes and costs."""
        self._start = start
        self._delivery.post(Parcel("sizes of the run", lambda: self._run.log_params(start_params(start))))
        self._delivery.post(self._metrics("costs", start_metrics(start), step=0))

    def log_round(self, record: RoundRecord) -> None:
        """Log one round; returns at once."""
        self._records.append(record)
        self._delivery.post(self._metrics(f"round {record.round}", round_metrics(record), step=record.round))

    def finish(self, end: RunEnd) -> None:
        """Deliver what is waiting, then the results, tables and figures, and close the run as FINISHED.

        A run that was stopped on purpose gets the tag ``raygf.stopped_at_round`` beside it.
        """
        tags = {
            "weights_sha256": end.weights_sha256,
            "checkpoint": end.checkpoint,
            "raygf.training_passes": str(end.training_passes),
        }
        if not end.finished:
            tags[STOPPED_TAG] = str(end.rounds)
        parcels = [
            self._metrics("results", end_metrics(end), step=end.rounds),
            Parcel("tags", lambda: self._run.set_tags(tags)),
        ]
        if self._start is not None:
            parcels += Report(self._run, self._method, self._start, end, self._records).parcels()
        parcels.append(Parcel("final status", lambda: self._run.terminate("FINISHED")))
        self._delivery.close(parcels, FINISH_S)

    def fail(self, status: Literal["FAILED", "KILLED"], reason: str) -> None:
        """Close the run with ``status`` and the tag ``raygf.failure``; the rounds still waiting come after.

        The status goes first: whoever kills a job gives it only seconds.
        """
        parcels = [
            Parcel("final status", lambda: self._run.terminate(status)),
            Parcel("reason of the failure", lambda: self._run.set_tags({FAILURE_TAG: reason})),
        ]
        self._delivery.close(parcels, FAIL_S, urgent=True)

    def _open(self, config: RunConfig, run_name: str, run_id: str | None, tags: Mapping[str, str]) -> None:
        if run_id:
            self._run.reopen(run_id)
        else:
            self._run.create(self.experiment, run_name, tags)
        values = to_dict(config)
        values["tracking"]["uri"] = without_password(config.tracking.uri)
        try:
            self._run.log_config(values)
        except Exception:
            with contextlib.suppress(Exception):  # the first error is the one to report
                self._run.terminate("FAILED")
            raise

    def _metrics(self, label: str, metrics: Mapping[str, float], step: int) -> Parcel:
        """``metrics`` stamped with the time now, whenever they arrive."""
        stamp_ms = int(time.time() * 1000)
        return Parcel(label, lambda: self._run.log_metrics(metrics, step, stamp_ms))


def _tags(config: RunConfig, recipe: str, parent_run_id: str) -> dict[str, str]:
    tags = {"method": config.method, "model": config.model.name, "data": config.data.source}
    with contextlib.suppress(PackageNotFoundError):
        tags["raygf.version"] = version("raygf")
    if recipe:
        tags["recipe"] = recipe
    if parent_run_id:
        tags["mlflow.parentRunId"] = parent_run_id
    return tags

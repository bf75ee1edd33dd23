"""What a job sees of tracking: a tracker takes a run's records, and writes them to MLflow or nowhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from raygf.config.fields import to_dict
from raygf.config.run import RunConfig, StorageConfig, TrackingConfig
from raygf.errors import without_password
from raygf.evaluation.tables import passes_text
from raygf.records import Notify, RoundRecord, RunEnd, RunStart
from raygf.storage.run_storage import recipe_of
from raygf.tracking.delivery import Delivery, Parcel, Undelivered
from raygf.tracking.mlflow_run import (
    FAILURE_TAG,
    STOPPED_BY_TAG,
    STOPPED_TAG,
    MLflowRun,
    end_metrics,
    round_metrics,
    start_params,
)
from raygf.tracking.report import Report
from raygf.tracking.store import resolve_uri

START_S = 120.0
"""Seconds that opening a run may take in all; the first use of a database creates its tables."""
FINISH_S = 60.0
"""Seconds that delivering the results may take in all."""
FAIL_S = 10.0
"""Seconds that delivering a failure may take in all."""


def make_tracker(
    config: TrackingConfig, folder: Path, notify: Notify, storage: StorageConfig | None = None
) -> Tracker:
    """The tracker that ``config`` asks for; ``folder`` holds the default database, ``notify`` gets warnings.

    Args:
        storage: the run's folder, where what could not be delivered is kept; nowhere without it.
    """
    if not config.enabled:
        return Tracker()
    undelivered = None if storage is None else Undelivered(storage, folder)
    return MLflowTracker(resolve_uri(config, folder), config.experiment, notify, undelivered)


class Tracker:
    """What a job calls: ``start``, logs, then ``finish``, ``stop`` or ``fail``. By itself it does nothing.

    Only ``start`` raises. What is logged before it or after the end is dropped.
    """

    where = ""
    """Where a person sees the run, once it is started."""

    def start(
        self,
        config: RunConfig,
        run_name: str,
        run_id: str | None = None,
        *,
        recipe: str = "",
        parent_run_id: str = "",
    ) -> str:
        """Create a run, or reopen ``run_id`` after a resume, and log the configuration; returns the run's id.

        The id is empty if nothing is tracked. Parameters that a resumed run has already stay as they are.

        Raises:
            TrackingError: the store can't be used; nothing has been trained yet.
        """
        return ""

    def log_start(self, start: RunStart) -> None:
        """Log sizes and costs, and rounds of a resumed run whose records an earlier process did not log."""

    def log_round(self, record: RoundRecord) -> None:
        """Log one round; returns at once."""

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; returns at once."""

    def finish(self, end: RunEnd) -> None:
        """Deliver what is waiting, then the results, tables and figures, and close the run as FINISHED.

        A run that was stopped on purpose gets the tag ``raygf.stopped_at_round`` beside it.
        """

    def stop(self, last: RoundRecord, reason: str) -> None:
        """Deliver what is waiting, then figures, and close the run as FINISHED after the round ``last``.

        It has no results; the tags ``raygf.stopped_at_round`` and ``raygf.stopped_by`` say when and why.
        """

    def fail(self, status: Literal["FAILED", "KILLED"], reason: str) -> None:
        """Close the run with ``status`` and the tag ``raygf.failure``; the rounds still waiting come after.

        The status goes first: whoever kills a job gives it only seconds.
        """


class MLflowTracker(Tracker):
    """One MLflow run, filed under ``experiment`` in the store at the absolute ``uri``.

    Everything happens on one background thread, in order. After ``start`` it is waited for only at the end
    (``finish``, ``stop``, ``fail``), and with a limit. ``undelivered`` keeps what did not arrive.
    """

    def __init__(
        self, uri: str, experiment: str, notify: Notify, undelivered: Undelivered | None = None
    ) -> None:
        self._experiment = experiment
        self._run = MLflowRun(uri)
        self._undelivered = undelivered
        keep = None if undelivered is None else lambda left: undelivered.keep(self._run.id, left)
        self._delivery = Delivery(uri, notify, keep)
        self._method = self._network = self._source = ""
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
        self._method, self._network = config.method, config.model.name
        self._source = config.data.path or config.data.source
        known = {"recipe": recipe_of(config, recipe), "mlflow.parentRunId": parent_run_id}
        tags = {"method": config.method, "model": config.model.name, "data": config.data.source}
        tags |= {name: value for name, value in known.items() if value}
        self._delivery.open(lambda: self._open(config, run_name, run_id, tags), START_S)
        self.where = self._run.where
        if run_id and self._undelivered is not None:
            for parcel in self._undelivered.take(self._run):
                self._delivery.post(parcel)
        return self._run.id

    def log_start(self, start: RunStart) -> None:
        self._start = start
        sizes = {"params": start_params(start)}
        self._delivery.post(Parcel.call("sizes of the run", self._run, "log_params", sizes))
        self._delivery.post(Parcel("data set", lambda: self._run.log_data(start, self._source)))
        if start.recent and self._run.resumed:
            self._delivery.post(Parcel("rounds before", lambda: self._log_missing(start.recent)))

    def log_round(self, record: RoundRecord) -> None:
        self._records.append(record)
        label = f"round {record.round}"
        self._delivery.post(Parcel.call(label, self._run, "log_metrics", _round_values(record)))
        for note in record.notes:
            text = note if f"round {record.round}" in note else f"round {record.round}: {note}"
            self._delivery.post(Parcel.call("a note", self._run, "add_note", {"text": text}))

    def log_tags(self, tags: Mapping[str, str]) -> None:
        self._delivery.post(self._tags(tags))

    def finish(self, end: RunEnd) -> None:
        tags = {"weights_sha256": end.weights_sha256}
        if not end.finished:
            tags[STOPPED_TAG] = str(end.rounds)
        values = _stamped(end_metrics(end), end.rounds)
        self._finish([Parcel.call("results", self._run, "log_metrics", values)], end, tags, end)

    def stop(self, last: RoundRecord, reason: str) -> None:
        self._finish([], last, {STOPPED_TAG: str(last.round), STOPPED_BY_TAG: reason}, None)

    def _finish(
        self, parcels: list[Parcel], at: RoundRecord | RunEnd, tags: dict[str, str], end: RunEnd | None
    ) -> None:
        passes = passes_text(at.training_passes)
        parcels.append(self._tags({**tags, "checkpoint": at.checkpoint, "raygf.training_passes": passes}))
        if self._start is not None:
            about = self._method, self._network, self._start
            parcels += Report(self._run, *about, end, self._records).parcels()
        parcels.append(Parcel("final status", lambda: self._run.terminate("FINISHED")))
        self._delivery.close(parcels, FINISH_S)

    def fail(self, status: Literal["FAILED", "KILLED"], reason: str) -> None:
        parcels = [
            Parcel("final status", lambda: self._run.terminate(status)),
            Parcel("reason of the failure", lambda: self._run.set_tags({FAILURE_TAG: reason})),
        ]
        self._delivery.close(parcels, FAIL_S, urgent=True)

    def _open(self, config: RunConfig, run_name: str, run_id: str | None, tags: Mapping[str, str]) -> None:
        if run_id:
            self._run.reopen(run_id)
        else:
            self._run.create(self._experiment, run_name, tags)
        values = to_dict(config)
        values["tracking"]["uri"] = without_password(config.tracking.uri)
        try:
            self._run.log_config(values)
            if config.tracking.system_metrics:
                self._run.watch_system()
        except Exception:
            with contextlib.suppress(Exception):  # the first error is the one to report
                self._run.terminate("FAILED")
            raise

    def _tags(self, tags: Mapping[str, str]) -> Parcel:
        return Parcel.call("tags", self._run, "set_tags", {"tags": dict(tags)})

    def _log_missing(self, records: Sequence[RoundRecord]) -> None:
        known = self._run.history("seconds/round")
        for record in records:
            if record.round not in known:
                self._run.log_metrics(**_round_values(record))


def _round_values(record: RoundRecord) -> dict[str, Any]:
    """What ``log_metrics`` takes of a round."""
    return _stamped(round_metrics(record), record.round) | {"passes": round(record.training_passes)}


def _stamped(metrics: Mapping[str, float], step: int) -> dict[str, Any]:
    """``metrics`` with the time now, whenever they arrive."""
    return {"metrics": dict(metrics), "step": step, "stamp_ms": int(time.time() * 1000)}

"""The tracker that writes a run to MLflow."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

from raygf.config.fields import to_dict
from raygf.config.run import RunConfig, StorageConfig, TrackingConfig
from raygf.errors import TrackingError, without_password
from raygf.records import Notify, RoundRecord, RunEnd, RunStart
from raygf.tracking.delivery import Call, Delivery, Parcel, Undelivered
from raygf.tracking.mlflow_run import (
    FAILURE_TAG,
    STOPPED_BY_TAG,
    STOPPED_TAG,
    MLflowRun,
    end_metrics,
    round_metrics,
    start_metrics,
    start_params,
    version_tag,
)
from raygf.tracking.report import Report
from raygf.tracking.store import check_uri, resolve_uri, start_error

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
        undelivered: Where what was not delivered is kept, and what earlier processes have kept there.
    """

    def __init__(
        self, uri: str, experiment: str, notify: Notify, undelivered: Undelivered | None = None
    ) -> None:
        self.uri, self.experiment = uri, experiment
        self._run = MLflowRun(uri)
        self._undelivered = undelivered
        keep = None if undelivered is None else lambda left: undelivered.keep(self._run.id, left)
        self._delivery = Delivery(without_password(uri), lambda: check_uri(uri), notify, keep)
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
        if run_id and self._undelivered is not None:
            for label, call in self._undelivered.take(run_id):
                self._delivery.post(self._parcel(label, call))
        return self._run.id

    def log_start(self, start: RunStart) -> None:
        """Log sizes and costs, and rounds of a resumed run whose records an earlier process did not log."""
        self._start = start
        sizes = Call("log_params", {"params": start_params(start)})
        self._delivery.post(self._parcel("sizes of the run", sizes))
        self._delivery.post(self._metrics("costs", start_metrics(start), step=0))
        if start.recent and self._run.resumed:
            self._delivery.post(Parcel("rounds before", lambda: self._log_missing(start.recent)))

    def log_round(self, record: RoundRecord) -> None:
        """Log one round; returns at once."""
        self._records.append(record)
        self._delivery.post(self._metrics(f"round {record.round}", round_metrics(record), step=record.round))
        for note in record.notes:
            text = note if f"round {record.round}" in note else f"round {record.round}: {note}"
            self._delivery.post(self._parcel("a remark", Call("remark", {"text": text})))

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; returns at once."""
        self._delivery.post(Parcel("tags", lambda: self._run.set_tags(tags)))

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
            self._parcel("tags", Call("set_tags", {"tags": tags})),
        ]
        if self._start is not None:
            parcels += Report(self._run, self._method, self._start, end, self._records).parcels()
        parcels.append(Parcel("final status", lambda: self._run.terminate("FINISHED")))
        self._delivery.close(parcels, FINISH_S)

    def stop(self, last: RoundRecord, reason: str) -> None:
        """Deliver what is waiting, then figures, and close the run as FINISHED after the round ``last``.

        It has no results; the tags ``raygf.stopped_at_round`` and ``raygf.stopped_by`` say when and why.
        """
        tags = {
            "checkpoint": last.checkpoint,
            "raygf.training_passes": str(last.training_passes),
            STOPPED_TAG: str(last.round),
            STOPPED_BY_TAG: reason,
        }
        parcels = [Parcel("tags", lambda: self._run.set_tags(tags))]
        if self._start is not None:
            parcels += Report(self._run, self._method, self._start, None, self._records).parcels()
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
        values = {"metrics": dict(metrics), "step": step, "stamp_ms": int(time.time() * 1000)}
        return self._parcel(label, Call("log_metrics", values))

    def _parcel(self, label: str, call: Call) -> Parcel:
        return Parcel(label, lambda: call.make(self._run), call)

    def _log_missing(self, records: Sequence[RoundRecord]) -> None:
        known = self._run.history("seconds/round")
        for record in records:
            if record.round not in known:
                self._run.log_metrics(round_metrics(record), record.round, int(time.time() * 1000))


def _tags(config: RunConfig, recipe: str, parent_run_id: str) -> dict[str, str]:
    tags = {"method": config.method, "model": config.model.name, "data": config.data.source, **version_tag()}
    if recipe:
        tags["recipe"] = recipe
    if parent_run_id:
        tags["mlflow.parentRunId"] = parent_run_id
    return tags


class Tracker(Protocol):
    """What a job does with a tracker: ``start``, logs, then ``finish``, ``stop`` or ``fail``."""

    def start(
        self,
        config: RunConfig,
        run_name: str,
        run_id: str | None = None,
        *,
        recipe: str = "",
        parent_run_id: str = "",
    ) -> str:
        """Create a run, or reopen ``run_id``; returns its id. Raises ``TrackingError``."""
        ...

    def log_start(self, start: RunStart) -> None:
        """Log what is known before the first round."""
        ...

    def log_round(self, record: RoundRecord) -> None:
        """Log one round, without waiting for it to arrive."""
        ...

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, without waiting for them to arrive."""
        ...

    def finish(self, end: RunEnd) -> None:
        """Log the results and close the run as FINISHED."""
        ...

    def stop(self, last: RoundRecord, reason: str) -> None:
        """Close the run as FINISHED after the round ``last``, before its end: it has no results."""
        ...

    def fail(self, status: Literal["FAILED", "KILLED"], reason: str) -> None:
        """Close the run with ``status``; nothing happens if it is closed already."""
        ...


class NullTracker:
    """Tracks nothing."""

    def start(
        self,
        config: RunConfig,
        run_name: str,
        run_id: str | None = None,
        *,
        recipe: str = "",
        parent_run_id: str = "",
    ) -> str:
        """No run, no id."""
        return ""

    def log_start(self, start: RunStart) -> None:
        """Nothing."""

    def log_round(self, record: RoundRecord) -> None:
        """Nothing."""

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Nothing."""

    def finish(self, end: RunEnd) -> None:
        """Nothing."""

    def stop(self, last: RoundRecord, reason: str) -> None:
        """Nothing."""

    def fail(self, status: Literal["FAILED", "KILLED"], reason: str) -> None:
        """Nothing."""


def make_tracker(
    config: TrackingConfig, folder: Path, notify: Notify, storage: StorageConfig | None = None
) -> Tracker:
    """The tracker that ``config`` asks for; ``folder`` holds the default database, ``notify`` gets warnings.

    Args:
        storage: the run's folder, where what could not be delivered is kept; nowhere without it.
    """
    if not config.enabled:
        return NullTracker()
    undelivered = None if storage is None else Undelivered(storage, folder)
    return MLflowTracker(resolve_uri(config, folder), config.experiment, notify, undelivered)

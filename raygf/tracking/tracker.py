"""What a job sees of tracking: a tracker takes a run's records, and writes them to MLflow or nowhere."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

from raygf.config.fields import to_dict
from raygf.config.run import RunConfig, StorageConfig, TrackingConfig
from raygf.errors import TrackingError, without_password, without_passwords
from raygf.evaluation.results import RunResults
from raygf.evaluation.tables import ResultColumn, ResultTable, passes_text, to_csv, to_markdown
from raygf.methods.registry import method_title
from raygf.records import Notify, RoundRecord, RunEnd, RunStart, from_history
from raygf.storage.run_storage import recipe_of
from raygf.tracking.delivery import Delivery, Parcel
from raygf.tracking.mlflow_run import (
    FAILURE_TAG,
    STOPPED_BY_TAG,
    STOPPED_TAG,
    MLflowRun,
    end_metrics,
    round_metrics,
    start_params,
    with_average,
)
from raygf.tracking.store import answering, resolve_uri, sqlite_path

START_S = 120.0
"""Seconds that opening a run may take in all; the first use of a database creates its tables."""
FINISH_S = 60.0
"""Seconds that delivering the results may take in all."""
FAIL_S = 10.0
"""Seconds that delivering a failure may take in all."""
_HEADING = "### raygf results"


def make_tracker(
    config: TrackingConfig, folder: Path, notify: Notify, storage: StorageConfig | None = None
) -> Tracker:
    """The tracker that ``config`` asks for; ``folder`` holds the default database, ``notify`` gets warnings.

    Args:
        storage: of a run that can be resumed by itself.
    """
    flags = "" if storage is None else f"--storage.name {storage.name} --storage.resume True"
    hint = flags and f"sent when the run is resumed: {flags}"
    uri = resolve_uri(config, folder) if config.enabled else ""
    return Tracker(uri, config.experiment, notify, hint)


class Tracker:
    """A run in MLflow, under ``experiment`` in the store at the absolute ``uri``; nowhere if it is empty.

    Call ``start``, logs, then ``finish``, ``stop`` or ``fail``. Only ``start`` raises. What is logged before
    it or after the end is dropped. Everything happens on one background thread, in order, which is waited for
    only at the start and at the end, with a limit. ``hint``: see ``Delivery``.
    """

    def __init__(self, uri: str, experiment: str, notify: Notify, hint: str = "") -> None:
        self._uri, self._experiment = uri, experiment
        self._run = MLflowRun(uri)
        self._delivery = Delivery(uri, notify, hint)
        self._config: RunConfig
        self._start: RunStart | None = None
        self._records: list[RoundRecord] = []

    @property
    def where(self) -> str:
        """Where a person sees the run, once it is started."""
        return self._run.where

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

        Raises TrackingError: the store can't be used; nothing has been trained yet.
        """
        if not self._uri:
            return ""
        self._config = config
        known = {"recipe": recipe_of(config, recipe), "mlflow.parentRunId": parent_run_id}
        tags = {"method": config.method, "model": config.model.name, "data": config.data.source}
        tags |= {name: value for name, value in known.items() if value}
        self._delivery.open(lambda: self._open(run_name, run_id, tags), START_S)
        return self._run.id

    def log_start(self, start: RunStart) -> None:
        """Log sizes and costs, and rounds of a resumed run whose records an earlier process did not log."""
        self._start = start
        self._post("sizes of the run", "log_params", params=start_params(start))
        self._delivery.post(Parcel("data set", lambda: self._run.log_data(start, self._config.data)))
        if start.round and self._run.resumed:
            self._delivery.post(Parcel("rounds before", lambda: self._log_missing(start)))

    def log_round(self, record: RoundRecord) -> None:
        """Log one round; returns at once."""
        if not self._uri:
            return
        self._records.append(record)
        self._post(f"round {record.round}", "log_metrics", **_round_values(record))
        for note in record.notes:
            text = note if f"round {record.round}" in note else f"round {record.round}: {note}"
            self._post("a note", "add_note", text=text)

    def finish(self, end: RunEnd) -> None:
        """Deliver what is waiting, then the results, tables and figures, and close the run as FINISHED.

        A run that was stopped on purpose gets the tag ``raygf.stopped_at_round`` beside it.
        """
        tags = {"weights_sha256": end.weights_sha256}
        if not end.finished:
            tags[STOPPED_TAG] = str(end.rounds)
        values = _stamped(end_metrics(end), end.rounds)
        self._finish([Parcel("results", lambda: self._run.log_metrics(**values))], end, tags)

    def stop(self, last: RoundRecord, reason: str) -> None:
        """Deliver what is waiting, then figures, and close the run as FINISHED after the round ``last``.

        It has no results; the tags ``raygf.stopped_at_round`` and ``raygf.stopped_by`` say when and why.
        """
        self._finish([], last, {STOPPED_TAG: str(last.round), STOPPED_BY_TAG: reason})

    def fail(self, status: Literal["FAILED", "KILLED"], reason: str) -> None:
        """Close the run with ``status`` and the tag ``raygf.failure``; the rounds still waiting come after.

        The status goes first: whoever kills a job gives it only seconds.
        """
        parcels = [
            Parcel("final status", lambda: self._run.terminate(status)),
            Parcel("reason of the failure", lambda: self._run.set_tags({FAILURE_TAG: reason})),
        ]
        self._delivery.close(parcels, FAIL_S, urgent=True)

    def _finish(self, parcels: list[Parcel], at: RoundRecord | RunEnd, tags: dict[str, str]) -> None:
        passes = passes_text(at.training_passes)
        known = {**tags, "checkpoint": at.checkpoint, "raygf.training_passes": passes}
        parcels.append(Parcel("tags", lambda: self._run.set_tags(known)))
        if (start := self._start) is not None:
            if isinstance(at, RunEnd):
                parcels.append(Parcel("result table", lambda: self._log_table(start, at)))
            parcels.append(Parcel("accuracy figure", lambda: self._log_accuracy(start)))
            parcels.append(Parcel("fusion weight figure", lambda: self._log_fusion(start)))
        parcels.append(Parcel("final status", lambda: self._run.terminate("FINISHED")))
        self._delivery.close(parcels, FINISH_S)

    def _open(self, run_name: str, run_id: str | None, tags: Mapping[str, str]) -> None:
        config = self._config
        if run_id:
            self._run.reopen(run_id)
        else:
            self._run.create(self._experiment, run_name, tags)
        try:
            self._run.log_config(without_passwords(to_dict(config)))
            if config.tracking.system_metrics:
                self._run.watch_system()
        except Exception:
            with contextlib.suppress(Exception):  # the first error is the one to report
                self._run.terminate("FAILED")
            raise

    def _post(self, label: str, method: str, **arguments: Any) -> None:
        self._delivery.post(Parcel(label, partial(getattr(self._run, method), **arguments)))

    def _log_missing(self, start: RunStart) -> None:
        """The rounds that MLflow lacks, as far as the checkpoint has them."""
        known = self._run.history("seconds/round")
        records = {entry["round"]: from_history(entry) for entry in start.history}
        for round, record in {**records, **{each.round: each for each in start.recent}}.items():
            if round not in known:
                self._run.log_metrics(**_round_values(record))

    def _log_table(self, start: RunStart, end: RunEnd) -> None:
        spent = end.training_passes, [end.seconds], None, end.training_operations
        column = ResultColumn(method_title(self._config.method), [end.test.accuracy], *spent)
        table = ResultTable(start.operations, start.parameters, [column])
        markdown, uri = to_markdown(table), shlex.quote(without_password(self._run.uri))
        command = f"mlflow artifacts download --run-id {self._run.id} --dst-path {self._run.id}"
        more = f"Tables, figures and configuration as files: `MLFLOW_TRACKING_URI={uri} {command}`\n"
        # First, because files may have to go elsewhere: to a disk or a bucket that this process can't reach.
        self._run.describe(_HEADING, f"{markdown}\n{more}", f": {self._summary(start, end)}")
        self._run.log_text("results.md", markdown)
        self._run.log_text("results.csv", to_csv([table]))

    def _summary(self, start: RunStart, end: RunEnd) -> str:
        """``96.31 % test accuracy on average, 97 % at the last exit; Meta-GF, msdnet on digits, 40 …``"""
        average, last = 100 * sum(end.test.accuracy) / len(end.test.accuracy), 100 * end.test.accuracy[-1]
        what = f"{method_title(self._config.method)}, {self._config.model.name} on {start.data}"
        spent = f"{end.rounds} rounds, {passes_text(end.training_passes)} training passes"
        return f"{average:.2f} % test accuracy on average, {last:.2f} % at the last exit; {what}, {spent}"

    def _log_accuracy(self, start: RunStart) -> None:
        known = {entry["round"]: dict(entry) for entry in start.history}
        for record in self._records:
            val = None if record.val is None else asdict(record.val)
            known[record.round] = {"round": record.round, "train": asdict(record.train), "val": val}
        if history := [known[round] for round in sorted(known)]:
            from raygf.evaluation import figures  # loads matplotlib, which training needs not

            self._run.log_figure("figures/accuracy.png", figures.accuracy_figure(history))
            self._run.log_text("figures/accuracy.csv", figures.accuracy_csv(history))

    def _log_fusion(self, start: RunStart) -> None:
        fused = [record.fusion for record in self._records if record.fusion is not None]
        if not fused:
            return
        from raygf.evaluation import figures

        weights, tensors = fused[-1].weights, start.tensors
        self._run.log_figure("figures/fusion_weights.png", figures.fusion_heatmap(weights, tensors))
        self._run.log_text("figures/fusion_weights.csv", figures.fusion_csv(weights, tensors))


def _round_values(record: RoundRecord) -> dict[str, Any]:
    """What ``log_metrics`` takes of a round."""
    return _stamped(round_metrics(record), record.round) | {"passes": round(record.training_passes)}


def _stamped(metrics: Mapping[str, float], step: int) -> dict[str, Any]:
    """``metrics`` with the time now, whenever they arrive."""
    return {"metrics": dict(metrics), "step": step, "stamp_ms": int(time.time() * 1000)}


def log_evaluation(run: RunResults, folder: Path, files: Sequence[Path]) -> str:
    """Keep ``files`` as artifacts of the tracked run that was evaluated, whose status stays as it is.

    Top-5 test accuracies become metrics. A store without a URI is looked for in ``folder``.

    Returns:
        A note with the address of the run's page or, without a server, the store's URI.

    Raises TrackingError: the store can't be reached, or does not have the run.
    """
    uri = resolve_uri(run.config.tracking, folder)
    path, _ = sqlite_path(uri)
    if path is not None and not path.is_file():  # an empty new one would not have the run
        raise TrackingError(f"there is no tracking database {path}")
    tracked = MLflowRun(uri)
    with answering(uri):
        tracked.attach(run.run_id)
        if run.top5:
            tracked.log_metrics(**_stamped(with_average("test_top5_accuracy", run.top5), run.round))
        for file in files:
            tracked.log_file("evaluation", file)
    where = tracked.where if uri.startswith("http") else without_password(uri)
    return f"logged to run {run.run_id} in {where}"

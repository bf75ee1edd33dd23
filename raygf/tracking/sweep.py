"""A sweep's own run in MLflow: the parent of its trials' runs, which shows what came out of them."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib.figure import Figure

from raygf.records import Notify
from raygf.tracking.delivery import Delivery, Parcel
from raygf.tracking.mlflow_run import FAILURE_TAG, MLflowRun
from raygf.tracking.store import answering, connect
from raygf.tracking.tracker import FAIL_S, FINISH_S, START_S

Values = Mapping[str, Any]


def end_running(uri: str, parent: str, status: str, why: str) -> None:
    """End ``parent``, and all runs under it that are not ended, with ``status`` and a tag that says why.

    Raises TrackingError: the store does not answer.
    """
    with answering(uri):
        client = connect(uri)
        experiment = client.get_run(parent).info.experiment_id
        filters = f"tags.`mlflow.parentRunId` = '{parent}' AND attributes.status = 'RUNNING'"
        running = client.search_runs([experiment], filters, max_results=50_000)  # MLflow's most at once
        for run_id in (parent, *(run.info.run_id for run in running)):
            client.set_terminated(run_id, status)
            client.set_tag(run_id, FAILURE_TAG, why)


HEADING = "### raygf sweep"
"""What the results stand under on the sweep's page."""


@dataclass(frozen=True)
class SweepReport:
    """What a sweep leaves on its page: ``texts`` are files by name, ``markdown`` is for the description.

    ``figure`` draws when it is delivered.
    """

    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    texts: Mapping[str, str]
    figure: Callable[[], Figure]
    markdown: str


class SweepRun:
    """The run of one sweep in the store at ``uri``, filed under ``experiment``."""

    def __init__(self, uri: str, experiment: str, notify: Notify) -> None:
        self._uri, self._experiment, self._notify = uri, experiment, notify
        self._run = MLflowRun(uri)
        self._delivery = Delivery(uri, notify)

    def start(self, name: str, run_id: str, config: Values, params: Values, tags: Mapping[str, str]) -> str:
        """Create the run, or reopen ``run_id`` of a sweep that is resumed; returns its id.

        ``config``: what trials have in common; ``params``: of the sweep itself.

        Raises TrackingError: the store can't be used; no trial has been started yet.
        """

        def open_run() -> None:
            if run_id:
                self._run.reopen(run_id)
            else:
                self._run.create(self._experiment, name, tags)
            self._run.log_config(config)
            self._run.log_params(params)

        self._delivery.open(open_run, START_S)
        self._notify(f"MLflow: {self._run.where}")
        return self._run.id

    def finish(self, report: SweepReport) -> None:
        """Deliver the report and close the run as FINISHED."""
        stamp_ms = int(time.time() * 1000)
        parcels = [
            Parcel("tags", lambda: self._run.set_tags(report.tags)),
            Parcel("metrics", lambda: self._run.log_metrics(report.metrics, 0, stamp_ms)),
            Parcel("description", lambda: self._run.describe(HEADING, report.markdown)),
            *(self._text(name, text) for name, text in report.texts.items()),
            Parcel("figure", lambda: self._run.log_figure("figures/objective.png", report.figure())),
            Parcel("final status", lambda: self._run.terminate("FINISHED")),
        ]
        self._delivery.close(parcels, FINISH_S)

    def fail(
        self, status: Literal["FAILED", "KILLED"], why: str, texts: Mapping[str, str] | None = None
    ) -> None:
        """End the run, and those of trials that are still open, with ``status``; ``texts`` are kept first."""
        files = [self._text(name, text) for name, text in (texts or {}).items()]
        children = Parcel("final status", lambda: end_running(self._uri, self._run.id, status, why))
        tag = Parcel("reason of the failure", lambda: self._run.set_tags({FAILURE_TAG: why}))
        self._delivery.close([children, tag, *files], FINISH_S if files else FAIL_S, urgent=True)

    def _text(self, name: str, text: str) -> Parcel:
        return Parcel(name, lambda: self._run.log_text(name, text))

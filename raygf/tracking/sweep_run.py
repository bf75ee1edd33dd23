"""The MLflow run of a sweep: the parent of its trials' runs, with what came out of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib.figure import Figure

from raygf.errors import TrackingError
from raygf.tracking.base import Say
from raygf.tracking.delivery import Delivery, Parcel
from raygf.tracking.mlflow_run import FAILURE_TAG, MLflowRun, version_tag
from raygf.tracking.mlflow_tracker import FAIL_S, FINISH_S, START_S
from raygf.tracking.probes import check_uri
from raygf.tracking.sweep_children import end_running
from raygf.tracking.trouble import start_error
from raygf.tracking.uris import without_password

HEADING = "### raygf sweep"
"""What the results stand under on the sweep's page."""


@dataclass(frozen=True)
class SweepReport:
    """What a sweep leaves on its page.

    ``tags``, ``metrics``: of the best trial and of the sweep. ``texts``: files by name. ``figure``: drawn
    when it is delivered. ``markdown``: for the description.
    """

    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    texts: Mapping[str, str]
    figure: Callable[[], Figure]
    markdown: str


class SweepRun:
    """The run of one sweep in the store at ``uri``, filed under ``experiment``."""

    def __init__(self, uri: str, experiment: str, say: Say) -> None:
        self._uri, self._experiment = uri, experiment
        self._run = MLflowRun(uri)
        self._delivery = Delivery(without_password(uri), lambda: check_uri(uri), say)

    def start(
        self,
        name: str,
        run_id: str,
        config: Mapping[str, Any],
        params: Mapping[str, Any],
        tags: Mapping[str, str],
    ) -> str:
        """Create the run, or reopen ``run_id`` of a sweep that is resumed; returns its id.

        Args:
            config: what trials have in common; kept as parameters and as ``config.yaml``.
            params: of the sweep itself.

        Raises:
            TrackingError: the store can't be used; no trial has been started yet.
        """

        def open_run() -> None:
            if run_id:
                self._run.reopen(run_id)
            else:
                self._run.create(self._experiment, name, {**version_tag(), **tags})
            self._run.log_config(config)
            self._run.log_params(params)

        try:
            check_uri(self._uri)
            self._delivery.open(open_run, START_S)
        except TrackingError:
            raise
        except Exception as error:
            raise start_error(error, self._uri) from error
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

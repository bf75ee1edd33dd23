"""MLflow: a reader of a run's records. The only module, with the jobs, that knows MLflow.

Trouble when the run starts is an error, before anything has been trained. Trouble later is not: what could
not be delivered is kept and tried again after each round, the caller is told once per cause, and training
goes on.

MLflow itself is imported when a run starts: that takes more than a second, which ``--help`` need not wait.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
import re
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, entry_points, version
from itertools import combinations
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

import numpy as np
import yaml

from raygf.config import RunConfig, TrackingConfig
from raygf.config_dict import flatten, to_dict
from raygf.errors import TrackingError
from raygf.evaluation import figures
from raygf.evaluation.tables import ResultColumn, ResultTable, to_csv, to_markdown
from raygf.records import ExitScore, FusionReport, RoundRecord, RunEnd, RunStart

PROBE_S = 5.0
"""Seconds that a server has to answer the first request."""
START_S = 120.0
"""Seconds that opening a run may take in all; the first use of a database creates its tables."""
FINISH_S = 60.0
"""Seconds that delivering the results may take in all."""
FAIL_S = 10.0
"""Seconds that delivering a failure may take in all."""

# MLflow retries for minutes by default. Training never waits for it, but the end of a run would.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_DATABASE_PORTS = {"postgresql": 5432, "postgres": 5432, "mysql": 3306, "mssql": 1433}
_KNOWN_SCHEMES = ("http", "https", "sqlite", *_DATABASE_PORTS, "databricks")
_PARAMS_A_CALL = 100
_STOPPED, _FAILURE = "raygf.stopped_at_round", "raygf.failure"

Say = Callable[[str], None]


class Tracker(Protocol):
    """What a job does with a tracker: ``start``, the three logs in order, then ``finish`` or ``fail``."""

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

    def finish(self, end: RunEnd) -> None:
        """Log the results and close the run as FINISHED."""
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

    def finish(self, end: RunEnd) -> None:
        """Nothing."""

    def fail(self, status: Literal["FAILED", "KILLED"], reason: str) -> None:
        """Nothing."""


def make_tracker(config: TrackingConfig, folder: Path, say: Say) -> Tracker:
    """The tracker that ``config`` asks for; ``folder`` holds the default database, ``say`` gets warnings."""
    if not config.enabled:
        return NullTracker()
    return MLflowTracker(resolve_uri(config, folder), config.experiment, say)


def resolve_uri(config: TrackingConfig, folder: Path) -> str:
    """Where to track: the flag, else MLFLOW_TRACKING_URI, else ``mlflow.db`` in ``folder``.

    Relative sqlite paths are taken from ``folder`` and made absolute, so that they hold in any process.
    """
    uri = config.uri or os.environ.get("MLFLOW_TRACKING_URI", "") or "sqlite:///mlflow.db"
    path, options = _sqlite_path(uri)
    if path is None:
        return uri
    return f"sqlite:///{folder.resolve() / path}{options}"


def check_uri(uri: str) -> None:
    """Find out in seconds, not in MLflow's minutes, whether ``uri`` can be tracked to.

    Raises:
        TrackingError: a kind of store that MLflow does not take, a server that does not answer, or a database
            file that can't be written.
    """
    scheme = "databricks" if uri == "databricks" else urlsplit(uri).scheme.partition("+")[0]
    if scheme in ("", "file"):
        folder = urlsplit(uri).path.rstrip("/")
        raise TrackingError(
            f"tracking.uri = {uri!r}: MLflow no longer tracks to plain folders; use "
            f"sqlite:///{folder}/mlflow.db, a server (http://...), or --tracking.enabled False"
        )
    plugins = {entry.name for entry in entry_points(group="mlflow.tracking_store")}
    if scheme not in (*_KNOWN_SCHEMES, *plugins):
        known = ", ".join(_KNOWN_SCHEMES)
        raise TrackingError(f"tracking.uri = {_shown(uri)!r}: unknown kind of store; known are {known}")
    if scheme in ("http", "https"):
        _check_server(uri)
    elif scheme in _DATABASE_PORTS:
        _check_database_host(uri, _DATABASE_PORTS[scheme])
    path, _ = _sqlite_path(uri)
    if path is not None:
        _check_sqlite_file(path)


def start_metrics(start: RunStart) -> dict[str, float]:
    """``operations/exit_i`` and ``parameters/exit_i``, cumulative up to each exit."""
    return {**_per_exit("operations", start.operations), **_per_exit("parameters", start.parameters)}


def round_metrics(record: RoundRecord) -> dict[str, float]:
    """All metrics of one round, by the names that MLflow shows; exits count from 1."""
    metrics = {
        **_score_metrics("train", record.train),
        "lr": record.lr,
        "fusion_lr": record.fusion_lr,
        "training_passes": float(record.training_passes),
        **{f"seconds/{phase}": seconds for phase, seconds in record.seconds.items()},
        "seconds/round": record.total_seconds,
    }
    if record.val is not None:
        metrics |= _score_metrics("val", record.val)
    if record.fusion is not None:
        metrics |= _fusion_metrics(record.fusion)
    return metrics


def end_metrics(end: RunEnd) -> dict[str, float]:
    """The test's metrics, and the training passes in all."""
    return {**_score_metrics("test", end.test), "training_passes": float(end.training_passes)}


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
        self._say = say
        self._worker = _Worker()
        self._client: Any = None
        self._run_id = ""
        self._method = ""
        self._resumed = False
        self._closed = False
        self._start: RunStart | None = None
        self._records: list[RoundRecord] = []
        self._undelivered: list[_Parcel] = []
        self._lock = threading.Lock()
        self._told: set[str] = set()
        self._last_trouble = ""

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
        tags = _tags(config, recipe, parent_run_id)
        try:
            check_uri(self.uri)
            self._worker.submit(lambda: self._open(config, run_name, run_id, tags)).result(START_S)
        except Exception as error:
            self._closed = True
            self._worker.stop()
            raise _start_error(error, self.uri) from error
        return self._run_id

    def log_start(self, start: RunStart) -> None:
        """Log sizes and costs."""
        self._start = start
        known = {
            "classes": start.classes,
            "train_images": start.train_images,
            "val_images": start.val_images,
            "test_images": start.test_images,
            "setting": start.setting,
        }
        self._post("sizes of the run", lambda: self._log_params(known))
        self._post_metrics("costs", start_metrics(start), step=0)

    def log_round(self, record: RoundRecord) -> None:
        """Log one round; returns at once."""
        self._records.append(record)
        self._post_metrics(f"round {record.round}", round_metrics(record), step=record.round)

    def finish(self, end: RunEnd) -> None:
        """Deliver what is waiting, then the results, tables and figures, and close the run as FINISHED.

        A run that was stopped on purpose gets the tag ``raygf.stopped_at_round`` beside it.
        """
        tags = {"weights_sha256": end.weights_sha256, "checkpoint": end.checkpoint}
        if not end.finished:
            tags[_STOPPED] = str(end.rounds)
        self._close(
            [
                *self._metric_parcels("results", end_metrics(end), end.rounds),
                _Parcel("tags", lambda: self._set_tags(tags)),
                _Parcel("result table", lambda: self._log_table(end)),
                _Parcel("accuracy figure", self._log_accuracy),
                _Parcel("fusion weight figure", self._log_fusion),
                _Parcel("final status", lambda: self._terminate("FINISHED")),
            ],
            FINISH_S,
        )

    def fail(self, status: Literal["FAILED", "KILLED"], reason: str) -> None:
        """Close the run with ``status`` and the tag ``raygf.failure``; the rounds still waiting come after.

        The status goes first: whoever kills a job gives it only seconds.
        """
        self._close(
            [
                _Parcel("final status", lambda: self._terminate(status)),
                _Parcel("reason of the failure", lambda: self._set_tags({_FAILURE: reason})),
            ],
            FAIL_S,
            status_first=True,
        )

    # On the background thread: opening ---------------------------------------------------------------------

    def _open(self, config: RunConfig, run_name: str, run_id: str | None, tags: Mapping[str, str]) -> None:
        self._client = _connect(self.uri)
        self._method = config.method
        self._resumed = run_id is not None
        self._run_id = self._reopen(run_id) if run_id else self._create(run_name, tags)
        try:
            self._log_config(to_dict(_without_secrets(config)))
        except Exception:
            with contextlib.suppress(Exception):  # the first error is the one to report
                self._terminate("FAILED")
            raise

    def _create(self, run_name: str, tags: Mapping[str, str]) -> str:
        from mlflow.tracking.context.registry import resolve_tags  # user, program, git commit

        experiment = _experiment_id(self._client, self.experiment, self.uri)
        run = self._client.create_run(experiment, tags=resolve_tags(dict(tags)), run_name=run_name)
        return str(run.info.run_id)

    def _reopen(self, run_id: str) -> str:
        try:
            run = self._client.get_run(run_id)
        except Exception as error:
            if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise TrackingError(
                f"the run to resume, {run_id}, is not in {_shown(self.uri)}; give the --tracking.uri that it "
                "was started with, or --tracking.enabled False"
            ) from error
        self._client.update_run(run_id, status="RUNNING")
        for tag in {_STOPPED, _FAILURE} & set(run.data.tags):
            self._client.delete_tag(run_id, tag)
        return run_id

    # On the background thread: logging ---------------------------------------------------------------------

    def _log_config(self, config: Mapping[str, Any]) -> None:
        self._log_params(flatten(config))
        if not self._resumed:
            self._log_text("config.yaml", yaml.safe_dump(dict(config), sort_keys=False))

    def _log_params(self, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        known = self._client.get_run(self._run_id).data.params if self._resumed else {}
        new = [Param(name, str(value)) for name, value in params.items() if name not in known]
        for first in range(0, len(new), _PARAMS_A_CALL):
            self._client.log_batch(self._run_id, params=new[first : first + _PARAMS_A_CALL])

    def _set_tags(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(
            self._run_id, tags=[RunTag(name, value[:5000]) for name, value in tags.items()]
        )

    def _log_text(self, path: str, text: str) -> None:
        self._client.log_text(self._run_id, text, path)

    def _log_table(self, end: RunEnd) -> None:
        if self._start is None:
            return
        column = ResultColumn(self._method, end.test.accuracy, end.training_passes, self._seconds())
        table = ResultTable(self._start.operations, self._start.parameters, (column,))
        self._log_text("results.md", to_markdown(table))
        self._log_text("results.csv", to_csv(table))

    def _log_accuracy(self) -> None:
        earlier = self._earlier_accuracy()
        if not self._records and earlier is None:
            return
        figure = figures.accuracy_figure(self._records, earlier)
        self._client.log_figure(self._run_id, figure, "figures/accuracy.png")
        self._log_text("figures/accuracy.csv", figures.accuracy_csv(self._records, earlier))

    def _log_fusion(self) -> None:
        fusion = next(
            (record.fusion for record in reversed(self._records) if record.fusion is not None), None
        )
        if fusion is None or self._start is None:
            return
        figure = figures.fusion_heatmap(fusion.weights, self._start.tensors)
        self._client.log_figure(self._run_id, figure, "figures/fusion_weights.png")
        self._log_text("figures/fusion_weights.csv", figures.fusion_csv(fusion.weights, self._start.tensors))

    def _terminate(self, status: str) -> None:
        self._client.set_terminated(self._run_id, status)

    def _history(self, metric: str) -> dict[int, float]:
        """``{round: value}`` as MLflow has it; where a round was done twice, the later value."""
        points = self._client.get_metric_history(self._run_id, metric)
        return {point.step: point.value for point in sorted(points, key=lambda point: point.timestamp)}

    def _earlier_accuracy(self) -> figures.AccuracyCurves | None:
        """The rounds before a resume, which this process has not seen."""
        if not self._resumed or self._start is None:
            return None
        exits = len(self._start.operations)
        for prefix, split in (("val", "validation"), ("train", "training")):
            by_exit = [self._history(f"{prefix}_accuracy/exit_{i + 1}") for i in range(exits)]
            rounds = sorted(set(by_exit[0]).intersection(*by_exit))
            if rounds:
                accuracy = np.array([[history[r] for history in by_exit] for r in rounds])
                return figures.AccuracyCurves(np.array(rounds), accuracy, split)
        return None

    def _seconds(self) -> float:
        """Wall time of all rounds, those before a resume included."""
        seconds = self._history("seconds/round") if self._resumed else {}
        return sum((seconds | {record.round: record.total_seconds for record in self._records}).values())

    # Delivery ----------------------------------------------------------------------------------------------

    def _metric_parcels(self, label: str, metrics: Mapping[str, float], step: int) -> list[_Parcel]:
        """``metrics`` stamped with the time now; NaN and inf are left out, MLflow would store them as 0."""
        stamp = int(time.time() * 1000)
        finite = [(name, float(value)) for name, value in metrics.items() if math.isfinite(value)]

        def send() -> None:
            from mlflow.entities import Metric

            batch = [Metric(name, value, stamp, step) for name, value in finite]
            for first in range(0, len(batch), 1000):
                self._client.log_batch(self._run_id, metrics=batch[first : first + 1000])

        return [_Parcel(label, send)] if finite else []

    def _post_metrics(self, label: str, metrics: Mapping[str, float], step: int) -> None:
        for parcel in self._metric_parcels(label, metrics, step):
            self._post(parcel.label, parcel.send)

    def _post(self, label: str, send: Callable[[], None]) -> None:
        if not self._run_id or self._closed:
            return
        with self._lock:
            self._undelivered.append(_Parcel(label, send))
            idle = len(self._worker) == 0
        if idle:  # else a delivery is waiting its turn already, and takes this along
            self._worker.submit(self._deliver)

    def _deliver(self) -> None:
        """Send what waits, oldest first, up to two failures in a row.

        One failure may be that parcel's own; after the second the store is taken to be gone until next time.
        """
        failures = 0
        for parcel in self._waiting():
            if self._closed or failures == 2:
                return
            failures = 0 if self._send(parcel) else failures + 1

    def _waiting(self) -> list[_Parcel]:
        with self._lock:
            return list(self._undelivered)

    def _send(self, parcel: _Parcel) -> bool:
        try:
            parcel.send()
        except Exception as error:
            self._last_trouble = _reason(error)
            self._tell(parcel.label, self._last_trouble)
            return False
        with self._lock, contextlib.suppress(ValueError):
            self._undelivered.remove(parcel)
        return True

    def _close(self, parcels: Sequence[_Parcel], limit_s: float, status_first: bool = False) -> None:
        """Send the last ``parcels`` and all that waits, within ``limit_s``; then say what did not arrive."""
        if not self._run_id or self._closed:
            return
        with self._lock:
            self._closed = True
            waiting = self._undelivered
            self._undelivered = [*parcels, *waiting] if status_first else [*waiting, *parcels]
        late = False
        try:
            self._worker.submit(self._deliver_rest).result(limit_s)
        except TimeoutError:
            late = True
        self._worker.stop()
        if labels := [parcel.label for parcel in self._waiting()]:
            cause = f"no answer within {limit_s:.0f} s" if late else self._last_trouble
            self._say(f"tracking: not delivered to {_shown(self.uri)} ({cause}): {_listed(labels)}")

    def _deliver_rest(self) -> None:
        """Try everything once, unless the store is gone: then each try would only cost its time limit."""
        try:
            check_uri(self.uri)
        except TrackingError as error:
            self._last_trouble = _reason(error.__cause__ or error)
            return
        for parcel in self._waiting():
            self._send(parcel)

    def _tell(self, label: str, trouble: str) -> None:
        """Once per cause; at the end there is a summary instead."""
        cause = re.sub(r"\d+", "#", trouble)
        if cause not in self._told and not self._closed:
            self._told.add(cause)
            self._say(f"tracking: could not send {label} to MLflow ({trouble}); training goes on")


@dataclass(eq=False)
class _Parcel:
    """Something to deliver, and what a person would call it."""

    label: str
    send: Callable[[], None] = field(repr=False)


class _Worker:
    """One daemon thread that makes calls in order; it never keeps the program from ending."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Future[None], Callable[[], None]] | None] = SimpleQueue()
        threading.Thread(target=self._work, name="raygf-tracking", daemon=True).start()

    def __len__(self) -> int:
        """Calls that have not begun."""
        return self._calls.qsize()

    def submit(self, call: Callable[[], None]) -> Future[None]:
        """Have ``call`` made after those before it."""
        future: Future[None] = Future()
        self._calls.put((future, call))
        return future

    def stop(self) -> None:
        """End the thread after the calls submitted so far."""
        self._calls.put(None)

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            future, call = item
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)


# Names and values ------------------------------------------------------------------------------------------


def _per_exit(name: str, values: Iterable[float]) -> dict[str, float]:
    return {f"{name}/exit_{i}": float(value) for i, value in enumerate(values, start=1)}


def _score_metrics(split: str, score: ExitScore) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name, values in ((f"{split}_loss", score.loss), (f"{split}_accuracy", score.accuracy)):
        metrics |= {**_per_exit(name, values), f"{name}/average": sum(values) / len(values)}
    return metrics


def _fusion_metrics(fusion: FusionReport) -> dict[str, float]:
    pairs = combinations(range(len(fusion.delta_norm)), 2)
    return {
        "fusion_loss": fusion.loss,
        **_per_exit("fusion_weight", fusion.mean_weight),
        **_per_exit("delta_norm", fusion.delta_norm),
        **{f"delta_cosine/exit_{i + 1}_{j + 1}": float(fusion.cosine[i, j]) for i, j in pairs},
    }


def _tags(config: RunConfig, recipe: str, parent_run_id: str) -> dict[str, str]:
    tags = {"method": config.method, "model": config.model.name, "data": config.data.source}
    with contextlib.suppress(PackageNotFoundError):
        tags["raygf.version"] = version("raygf")
    if recipe:
        tags["recipe"] = recipe
    if parent_run_id:
        tags["mlflow.parentRunId"] = parent_run_id
    return tags


def _listed(labels: Sequence[str]) -> str:
    """``labels`` with runs of rounds drawn together: ``rounds 3-5, 8, results``."""
    rounds = [int(label.removeprefix("round ")) for label in labels if label.startswith("round ")]
    others = [label for label in labels if not label.startswith("round ")]
    spans: list[list[int]] = []
    for number in rounds:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in spans]
    named = [f"{'round' if len(rounds) == 1 else 'rounds'} {', '.join(texts)}"] if texts else []
    return ", ".join([*named, *others])


# Stores ----------------------------------------------------------------------------------------------------


def _set_environment() -> None:
    """Have MLflow give up in seconds and keep its talk to itself; what the user has set stays."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def _connect(uri: str) -> Any:
    _set_environment()
    from mlflow import MlflowClient

    for chatty in ("mlflow", "alembic"):
        logging.getLogger(chatty).setLevel(logging.CRITICAL)
    with _one_at_a_time(uri):
        return MlflowClient(tracking_uri=uri)


@contextlib.contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    """Hold a lock on the folder of a sqlite file: two processes that create its tables at once both fail.

    It is a lock on the folder itself, which leaves no file behind. Where a file system has none, go without.
    """
    path, _ = _sqlite_path(uri)
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


def _experiment_id(client: Any, name: str, uri: str) -> str:
    """The experiment ``name``, created if need be; another process may create it at the same time."""
    found = client.get_experiment_by_name(name)
    if found is None:
        path, _ = _sqlite_path(uri)
        # Beside the database: MLflow's default is a folder in whatever the working directory is.
        location = None if path is None else (path.parent / "mlartifacts").as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except Exception as error:
            if getattr(error, "error_code", "") != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)
    if found.lifecycle_stage != "active":
        raise TrackingError(
            f"tracking.experiment = {name!r} is deleted in {_shown(uri)}; restore it, or name another"
        )
    return str(found.experiment_id)


def _sqlite_path(uri: str) -> tuple[Path | None, str]:
    """File and ``?options`` of a sqlite URI; no file if it is another kind, or in memory."""
    scheme, _, rest = uri.partition(":///")
    file, mark, options = rest.partition("?")
    if scheme.partition("+")[0] != "sqlite" or file in ("", ":memory:"):
        return None, ""
    return Path(file), mark + options


def _check_sqlite_file(path: Path) -> None:
    where = f"tracking database {path}"
    if not path.parent.is_dir():
        raise TrackingError(f"{where}: there is no folder {path.parent}")
    if path.is_dir():
        raise TrackingError(f"{where}: is a folder")
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=PROBE_S, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")  # shows what file modes do not: read-only or strange disks
            database.execute("ROLLBACK")
    except sqlite3.Error as error:
        if "locked" not in str(error):  # then another run writes to it, and will be done in time
            raise TrackingError(f"{where}: {error}") from error


def _check_server(uri: str) -> None:
    """Any answer will do: whether the server takes our calls shows when the run is opened."""
    _set_environment()
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        http_request(
            get_default_host_creds(uri),
            "/health",
            "GET",
            timeout=PROBE_S,
            max_retries=0,
            raise_on_status=False,
        )
    except Exception as error:
        raise TrackingError(f"no MLflow server answers at {_shown(uri)}: {_reason(error)}") from error


def _check_database_host(uri: str, default_port: int) -> None:
    parts = urlsplit(uri)
    if not parts.hostname:
        return
    try:
        socket.create_connection((parts.hostname, parts.port or default_port), PROBE_S).close()
    except OSError as error:
        raise TrackingError(f"no database answers at {_shown(uri)}: {_reason(error)}") from error


def _without_secrets(config: RunConfig) -> RunConfig:
    return replace(config, tracking=replace(config.tracking, uri=_shown(config.tracking.uri)))


def _shown(uri: str) -> str:
    """``uri`` without the password in it."""
    return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", uri)


def _reason(error: BaseException) -> str:
    """One short line: what went wrong at the bottom of the libraries' stacked messages."""
    text = str(error).strip() or type(error).__name__
    if found := re.search(r"\[Errno -?\d+\] ([^'\"()\]]+)", text):
        return found[1].strip()
    if re.search(r"timed? ?out", text, re.IGNORECASE):
        return "no answer in time"
    return _shown(text.splitlines()[0])[:200]


def _start_error(error: Exception, uri: str) -> TrackingError:
    if isinstance(error, TrackingError):
        return error
    if isinstance(error, TimeoutError):
        return TrackingError(f"{_shown(uri)} took more than {START_S:.0f} s to open a run")
    return TrackingError(f"can't track to {_shown(uri)}: {_reason(error)}{_hint(error)}")


def _hint(error: Exception) -> str:
    text = str(error)
    if re.search(r"\b403\b", text):
        return " (an MLflow server behind a DNS name needs --allowed-hosts)"
    if re.search(r"\b401\b", text):
        return " (set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN)"
    return ""

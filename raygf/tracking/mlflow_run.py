"""One run in an MLflow store; every call waits for the store and raises what goes wrong."""

import json
import math
import os
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from raygf.config.fields import flatten
from raygf.config.run import DataConfig
from raygf.errors import TrackingError, without_password
from raygf.methods.registry import is_step_method
from raygf.records import ExitScore, RoundRecord, RunEnd, RunStart
from raygf.tracking.store import connect, find_experiment

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STOPPED_TAG, STOPPED_BY_TAG = "raygf.stopped_at_round", "raygf.stopped_by"
FAILURE_TAG, NOTES_TAG = "raygf.failure", "raygf.remarks"

BY_PASSES = "accuracy_by_passes"
"""Validation accuracies (without a validation, training's) whose step is the training passes, for comparing
methods. MLflow sorts charts by name, so that its page opens on these."""
_DESCRIPTION_TAG = "mlflow.note.content"
_LONGEST_TAG = 5000
_AT_ONCE = {"params": 100, "metrics": 1000, "tags": 100}
"""How many of a kind MLflow takes in one call."""


_COMMIT, _JOB = "RAYGF_COMMIT", "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Environment variables: the commit, set by people where there is no repository; Ray's, of submitted jobs."""


def source_tags() -> dict[str, str]:
    """By which raygf, from which commit and in which of Ray's submitted jobs, as far as that is known."""
    tags = {"mlflow.source.git.commit": os.environ.get(_COMMIT, "")}
    with suppress(PackageNotFoundError):
        tags["raygf.version"] = version("raygf")
    with suppress(ValueError, KeyError, TypeError):
        tags["ray.submission_id"] = str(json.loads(os.environ[_JOB])["metadata"]["job_submission_id"])
    return {name: value for name, value in tags.items() if value}


class MLflowRun:
    """A run, once ``create`` or ``reopen`` has been called.

    Args:
        uri: absolute tracking URI.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.id = self._experiment_id = ""
        self.resumed = False
        self._monitor: Any = None
        self._client: Any = None
        self._fixed_params: Collection[str] = ()

    def create(self, experiment: str, name: str, tags: Mapping[str, str]) -> None:
        """Create the run; ``experiment`` too, if there is none of this name.

        Raises TrackingError: the experiment is deleted.
        """
        self._client = connect(self.uri)
        from mlflow.tracking.context.registry import resolve_tags  # user, program, git commit

        self._experiment_id = find_experiment(self._client, experiment, self.uri)
        given = resolve_tags({**source_tags(), **tags})
        run = self._client.create_run(self._experiment_id, tags=given, run_name=name)
        self.id = str(run.info.run_id)

    def reopen(self, run_id: str) -> None:
        """Continue the run ``run_id``, as if it had not ended.

        Raises TrackingError: the store does not have it.
        """
        hint = "; give the --tracking.uri that it was started with, or --tracking.enabled False"
        run = self.attach(run_id, f"the run to resume, {run_id},", hint)
        self._client.update_run(run_id, status="RUNNING")
        for tag in {STOPPED_TAG, STOPPED_BY_TAG, FAILURE_TAG} & set(run.data.tags):
            self._client.delete_tag(run_id, tag)
        self.resumed, self._fixed_params = True, set(run.data.params)
        self.set_tags(source_tags())

    def attach(self, run_id: str, what: str = "", hint: str = "") -> Any:
        """Add to the run ``run_id``, which may have ended; its status and tags stay as they are.

        Args:
            what, hint: the run and what to do, for the error.

        Raises TrackingError: the store does not have it.
        """
        self._client = connect(self.uri)
        try:
            run = self._client.get_run(run_id)
        except Exception as error:
            if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
                raise
            shown = f"{what or f'the run {run_id}'} is not in {without_password(self.uri)}{hint}"
            raise TrackingError(shown) from None
        self.id, self._experiment_id = run_id, run.info.experiment_id
        return run

    @property
    def where(self) -> str:
        """The address of the run's page, or how to get to the page of all runs where there is no server."""
        kind = "workflowType=machine_learning"  # else MLflow opens its view for language models
        page = f"#/experiments/{self._experiment_id}/runs"
        if self.uri.startswith("http"):
            return f"{re.sub(r'://.*@', '://', self.uri).rstrip('/')}/{page}/{self.id}?{kind}"
        command = f"mlflow ui --backend-store-uri {shlex.quote(without_password(self.uri))}"
        return f"{command}, then open http://127.0.0.1:5000/{page}?{kind}"

    def watch_system(self) -> None:
        """Log the load of this machine from now on, in the background, until the run ends."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._monitor = SystemMetricsMonitor(self.id, resume_logging=self.resumed, tracking_uri=self.uri)
        self._monitor.start()

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Log the nested ``config`` as parameters, and at the run's first start also as ``config.yaml``."""
        unused = ("fusion.",) if is_step_method(str(config["method"])) else ()
        self.log_params({name: v for name, v in flatten(config).items() if not name.startswith(unused)})
        if not self.resumed:
            self.log_text("config.yaml", yaml.safe_dump(dict(config), sort_keys=False))

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log ``params``, but for those that the run had before a resume: MLflow refuses to change them."""
        from mlflow.entities import Param

        new = [Param(name, str(value)) for name, value in params.items() if name not in self._fixed_params]
        self._log_batches("params", new)

    def log_metrics(self, metrics: Mapping[str, float], step: int, stamp_ms: int, passes: int = 0) -> None:
        """Log ``metrics`` as of ``stamp_ms``; NaN and inf are left out, MLflow would store them as 0.

        The step of those under ``BY_PASSES`` is ``passes``.
        """
        from mlflow.entities import Metric

        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        steps = {name: passes if name.startswith(BY_PASSES) else step for name in finite}
        found = [Metric(name, value, stamp_ms, steps[name]) for name, value in finite.items()]
        self._log_batches("metrics", found)

    def log_data(self, start: RunStart, config: DataConfig) -> None:
        """Log the images of every split as data sets of the run."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs, place = [], json.dumps({"uri": config.path or config.source})
        for split, digest in start.digests.items():
            profile = json.dumps({"num_rows": getattr(start, f"{split}_images"), "classes": start.classes})
            data = Dataset(start.data, digest, "local", place, profile=profile)
            inputs.append(DatasetInput(data, [InputTag("mlflow.data.context", split)]))
        self._client.log_inputs(self.id, inputs)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set ``tags``; values too long for MLflow are cut."""
        from mlflow.entities import RunTag

        self._log_batches("tags", [RunTag(name, value[:_LONGEST_TAG]) for name, value in tags.items()])

    def log_text(self, path: str, text: str) -> None:
        """Keep ``text`` as the file ``path``."""
        self._client.log_text(self.id, text, path)

    def log_figure(self, path: str, figure: "Figure") -> None:
        """Keep ``figure`` as the file ``path``."""
        self._client.log_figure(self.id, figure, path)

    def log_file(self, folder: str, file: Path) -> None:
        """Keep a copy of ``file`` in ``folder``."""
        self._client.log_artifact(self.id, str(file), folder)

    def describe(self, heading: str, text: str, summary: str = "") -> None:
        """Put ``text`` under ``heading`` and ``summary`` at the end of the description on the run's page.

        What people have written above the heading stays; an earlier text under it is replaced.
        """
        known = self._client.get_run(self.id).data.tags.get(_DESCRIPTION_TAG, "")
        theirs = known.partition(heading)[0].rstrip()
        description = f"{theirs}\n\n{heading}{summary}\n\n{text}".lstrip()
        self._client.set_tag(self.id, _DESCRIPTION_TAG, description[:_LONGEST_TAG])

    def add_note(self, text: str) -> None:
        """Add the line ``text`` to the run's notes, a tag; the oldest give way when there are too many."""
        lines = self._client.get_run(self.id).data.tags.get(NOTES_TAG, "").splitlines()
        if text in lines:
            return
        lines.append(" ".join(text.split())[:_LONGEST_TAG])
        while sum(len(line) + 1 for line in lines) > _LONGEST_TAG + 1:
            del lines[0]
        self._client.set_tag(self.id, NOTES_TAG, "\n".join(lines))

    def history(self, metric: str) -> dict[int, float]:
        """``{round: value}`` as MLflow has it; where a round was done twice, the later value."""
        points = self._client.get_metric_history(self.id, metric)
        return {point.step: point.value for point in sorted(points, key=lambda point: point.timestamp)}

    def terminate(self, status: str) -> None:
        """End the run with ``status``."""
        self._client.set_terminated(self.id, status)
        if self._monitor is not None:
            self._monitor.finish()

    def _log_batches(self, kind: str, items: Sequence[object]) -> None:
        for first in range(0, len(items), _AT_ONCE[kind]):
            self._client.log_batch(self.id, **{kind: items[first : first + _AT_ONCE[kind]]})


def start_params(start: RunStart) -> dict[str, str | int]:
    """Sizes of the data, costs up to every exit, and what the run computes with."""
    names = ("classes", "train_images", "val_images", "test_images", "setting")
    costs = {"operations": start.operations, "parameters": start.parameters}
    return {
        **{name: getattr(start, name) for name in names},
        **{f"{name}/exit_{i}": count for name, counts in costs.items() for i, count in enumerate(counts, 1)},
        **{f"software.{name}": value for name, value in start.software.items()},
    }


def round_metrics(record: RoundRecord) -> dict[str, float]:
    """The metrics of one round, in the order of the page: under thirty for three exits, accuracies first."""
    split, score = ("train", record.train) if record.val is None else ("val", record.val)
    metrics = with_average(f"{split}_accuracy", score.accuracy) | _averages("train", record.train)
    metrics |= with_average(f"{split}_loss", score.loss)
    if record.fusion is not None:
        metrics |= {
            **_per_exit("fusion_weight", record.fusion.mean_weight),
            "fusion_loss": record.fusion.loss,
            "conflict/before_fusion": record.fusion.conflict_before,
            "conflict/after_fusion": record.fusion.conflict_after,
        }
    return {
        **metrics,
        "lr": record.lr,
        "training_passes": float(record.training_passes),
        "seconds/round": record.total_seconds,
        **with_average(BY_PASSES, score.accuracy),
    }


def end_metrics(end: RunEnd) -> dict[str, float]:
    """The test's metrics, and the training's compute in all."""
    metrics = _averages("test", end.test) | with_average("test_accuracy", end.test.accuracy)
    spent = {"training_passes": end.training_passes, "training_operations": float(end.training_operations)}
    return {**metrics, **spent}


def _per_exit(name: str, values: Iterable[float]) -> dict[str, float]:
    return {f"{name}/exit_{i}": float(value) for i, value in enumerate(values, start=1)}


def with_average(name: str, values: Sequence[float]) -> dict[str, float]:
    """``name/average`` and ``name/exit_i``."""
    return {f"{name}/average": sum(values) / len(values), **_per_exit(name, values)}


def _averages(split: str, score: ExitScore) -> dict[str, float]:
    kinds = {"accuracy": score.accuracy, "loss": score.loss}
    return {f"{split}_{kind}/average": sum(values) / len(values) for kind, values in kinds.items()}

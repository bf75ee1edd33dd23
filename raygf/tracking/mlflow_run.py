"""One run in an MLflow store; every call waits for the store and raises what goes wrong."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from raygf.config.fields import flatten
from raygf.errors import TrackingError, without_password
from raygf.records import ExitScore, RoundRecord, RunEnd, RunStart
from raygf.tracking.store import connect, find_experiment

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STOPPED_TAG, STOPPED_BY_TAG = "raygf.stopped_at_round", "raygf.stopped_by"
FAILURE_TAG, NOTES_TAG = "raygf.failure", "raygf.remarks"

_DESCRIPTION_TAG = "mlflow.note.content"
_LONGEST_TAG = 5000
_AT_ONCE = {"params": 100, "metrics": 1000, "tags": 100}
"""How many of a kind MLflow takes in one call."""


def version_tag() -> dict[str, str]:
    """The tag that says by which raygf a run was made; none where it is not installed."""
    try:
        return {"raygf.version": version("raygf")}
    except PackageNotFoundError:
        return {}


class MLflowRun:
    """A run, once ``create`` or ``reopen`` has been called.

    Args:
        uri: absolute tracking URI.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.id = ""
        self.resumed = False
        self._client: Any = None
        self._fixed_params: Collection[str] = ()

    def create(self, experiment: str, name: str, tags: Mapping[str, str]) -> None:
        """Create the run; ``experiment`` too, if there is none of this name.

        Raises:
            TrackingError: the experiment is deleted.
        """
        self._client = connect(self.uri)
        from mlflow.tracking.context.registry import resolve_tags  # user, program, git commit

        experiment_id = find_experiment(self._client, experiment, self.uri)
        run = self._client.create_run(experiment_id, tags=resolve_tags(dict(tags)), run_name=name)
        self.id = str(run.info.run_id)

    def reopen(self, run_id: str) -> None:
        """Continue the run ``run_id``, as if it had not ended.

        Raises:
            TrackingError: the store does not have it.
        """
        run = self._find(run_id)
        if run is None:
            raise TrackingError(
                f"the run to resume, {run_id}, is not in {without_password(self.uri)}; give the "
                "--tracking.uri that it was started with, or --tracking.enabled False"
            )
        self._client.update_run(run_id, status="RUNNING")
        for tag in {STOPPED_TAG, STOPPED_BY_TAG, FAILURE_TAG} & set(run.data.tags):
            self._client.delete_tag(run_id, tag)
        self.id, self.resumed, self._fixed_params = run_id, True, set(run.data.params)

    def attach(self, run_id: str) -> None:
        """Add to the run ``run_id``, which may have ended; its status and tags stay as they are.

        Raises:
            TrackingError: the store does not have it.
        """
        if self._find(run_id) is None:
            raise TrackingError(f"the run {run_id} is not in {without_password(self.uri)}")
        self.id = run_id

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Log the nested ``config`` as parameters, and at the run's first start also as ``config.yaml``."""
        self.log_params(flatten(config))
        if not self.resumed:
            self.log_text("config.yaml", yaml.safe_dump(dict(config), sort_keys=False))

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log ``params``, but for those that the run had before a resume: MLflow refuses to change them."""
        from mlflow.entities import Param

        new = [Param(name, str(value)) for name, value in params.items() if name not in self._fixed_params]
        self._log_batches("params", new)

    def log_metrics(self, metrics: Mapping[str, float], step: int, stamp_ms: int) -> None:
        """Log ``metrics`` as of ``stamp_ms``; NaN and inf are left out, MLflow would store them as 0."""
        from mlflow.entities import Metric

        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        self._log_batches("metrics", [Metric(name, value, stamp_ms, step) for name, value in finite.items()])

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

    def describe(self, heading: str, text: str) -> None:
        """Put ``text`` under ``heading`` at the end of the description on the run's page.

        What people have written above the heading stays; an earlier text under it is replaced.
        """
        known = self._client.get_run(self.id).data.tags.get(_DESCRIPTION_TAG, "")
        theirs = known.partition(heading)[0].rstrip()
        description = f"{theirs}\n\n{heading}\n\n{text}".lstrip()
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

    def _find(self, run_id: str) -> Any:
        """The run in the store, None if it is not there."""
        self._client = connect(self.uri)
        try:
            return self._client.get_run(run_id)
        except Exception as error:
            if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    def _log_batches(self, kind: str, items: Sequence[object]) -> None:
        for first in range(0, len(items), _AT_ONCE[kind]):
            self._client.log_batch(self.id, **{kind: items[first : first + _AT_ONCE[kind]]})


def start_params(start: RunStart) -> dict[str, str | int]:
    """Sizes of the data, and what the run computes on."""
    names = ("classes", "train_images", "val_images", "test_images", "setting")
    return {name: getattr(start, name) for name in names}


def start_metrics(start: RunStart) -> dict[str, float]:
    """``operations/exit_i`` and ``parameters/exit_i``, cumulative up to each exit."""
    return {**_per_exit("operations", start.operations), **_per_exit("parameters", start.parameters)}


def round_metrics(record: RoundRecord) -> dict[str, float]:
    """All metrics of one round."""
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
        fusion, pairs = record.fusion, combinations(range(len(record.fusion.delta_norm)), 2)
        metrics |= {
            "fusion_loss": fusion.loss,
            "conflict/before_fusion": fusion.conflict_before,
            "conflict/after_fusion": fusion.conflict_after,
            **_per_exit("fusion_accuracy", fusion.accuracy),
            **_per_exit("fusion_weight", fusion.mean_weight),
            **_per_exit("delta_norm", fusion.delta_norm),
            **{f"delta_cosine/exit_{i + 1}_{j + 1}": float(fusion.cosine[i, j]) for i, j in pairs},
        }
    return metrics


def end_metrics(end: RunEnd) -> dict[str, float]:
    """The test's metrics, and the training passes in all."""
    return {**_score_metrics("test", end.test), "training_passes": float(end.training_passes)}


def top5_metrics(accuracy: Sequence[float]) -> dict[str, float]:
    """``test_top5_accuracy/exit_i`` and their average, 0–1."""
    return _with_average("test_top5_accuracy", accuracy)


def _per_exit(name: str, values: Iterable[float]) -> dict[str, float]:
    return {f"{name}/exit_{i}": float(value) for i, value in enumerate(values, start=1)}


def _with_average(name: str, values: Sequence[float]) -> dict[str, float]:
    return {**_per_exit(name, values), f"{name}/average": sum(values) / len(values)}


def _score_metrics(split: str, score: ExitScore) -> dict[str, float]:
    return {
        **_with_average(f"{split}_loss", score.loss),
        **_with_average(f"{split}_accuracy", score.accuracy),
    }

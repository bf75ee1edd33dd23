"""What a run leaves on its page in the end: result table, description, figures and their numbers."""

import math
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raygf.config.run import TrackingConfig
from raygf.errors import TrackingError, without_password
from raygf.evaluation.tables import ResultColumn, ResultTable, passes_text, to_csv, to_markdown
from raygf.methods.registry import method_title
from raygf.records import History, RoundRecord, RunEnd, RunStart
from raygf.tracking.delivery import Parcel
from raygf.tracking.mlflow_run import MLflowRun, top5_metrics
from raygf.tracking.store import answering, resolve_uri, sqlite_path

_HEADING = "### raygf results"


@dataclass(frozen=True)
class Report:
    """The report of ``run``; ``records``: the rounds of this process.

    Without ``end`` there are no results, so there is no table.
    """

    run: MLflowRun
    method: str
    network: str
    start: RunStart
    end: RunEnd | None
    records: Sequence[RoundRecord]

    def parcels(self) -> list[Parcel]:
        """The report in parts, each of which may fail on its own."""
        end = self.end
        parcels = [] if end is None else [Parcel("result table", lambda: self._log_table(end))]
        parcels.append(Parcel("accuracy figure", self._log_accuracy))
        return [*parcels, Parcel("fusion weight figure", self._log_fusion)]

    def _log_table(self, end: RunEnd) -> None:
        spent = end.training_passes, [end.seconds], None, end.training_operations
        column = ResultColumn(method_title(self.method), [end.test.accuracy], *spent)
        table = ResultTable(self.start.operations, self.start.parameters, [column])
        markdown, uri = to_markdown(table), shlex.quote(without_password(self.run.uri))
        command = f"mlflow artifacts download --run-id {self.run.id} --dst-path {self.run.id}"
        more = f"Tables, figures and configuration as files: `MLFLOW_TRACKING_URI={uri} {command}`\n"
        # First, because files may have to go elsewhere: to a disk or a bucket that this process can't reach.
        self.run.describe(_HEADING, f"{markdown}\n{more}", f": {self._summary(end)}")
        self.run.log_text("results.md", markdown)
        self.run.log_text("results.csv", to_csv([table]))

    def _summary(self, end: RunEnd) -> str:
        """``96.31 % test accuracy on average, 97 % at the last exit; Meta-GF, msdnet on digits, 40 …``"""
        average, last = 100 * sum(end.test.accuracy) / len(end.test.accuracy), 100 * end.test.accuracy[-1]
        what = f"{method_title(self.method)}, {self.network} on {self.start.data}"
        spent = f"{end.rounds} rounds, {passes_text(end.training_passes)} training passes"
        return f"{average:.2f} % test accuracy on average, {last:.2f} % at the last exit; {what}, {spent}"

    def _log_accuracy(self) -> None:
        if history := self._history():
            from raygf.evaluation import figures  # loads matplotlib, which training needs not

            self.run.log_figure("figures/accuracy.png", figures.accuracy_figure(history))
            self.run.log_text("figures/accuracy.csv", figures.accuracy_csv(history))

    def _log_fusion(self) -> None:
        fused = [record.fusion for record in self.records if record.fusion is not None]
        if not fused:
            return
        from raygf.evaluation import figures

        weights, tensors = fused[-1].weights, self.start.tensors
        self.run.log_figure("figures/fusion_weights.png", figures.fusion_heatmap(weights, tensors))
        self.run.log_text("figures/fusion_weights.csv", figures.fusion_csv(weights, tensors))

    def _history(self) -> History:
        """The accuracies of all rounds; those before a resume, which are not in ``records``, from MLflow."""
        train, val = self._logged_accuracies("train"), self._logged_accuracies("val")
        for record in self.records:
            train[record.round] = asdict(record.train)
            val[record.round] = None if record.val is None else asdict(record.val)
        # MLflow has no training accuracy of a round that was skipped.
        unknown = {"accuracy": [math.nan] * len(self.start.operations)}
        rounds = sorted({*train, *val})
        return [{"round": r, "train": train.get(r, unknown), "val": val.get(r)} for r in rounds]

    def _logged_accuracies(self, split: str) -> dict[int, dict[str, Any] | None]:
        """By round; none unless the run is resumed."""
        if not self.run.resumed:
            return {}
        exits = range(1, len(self.start.operations) + 1)
        by_exit = [self.run.history(f"{split}_accuracy/exit_{i}") for i in exits]
        rounds = set(by_exit[0]).intersection(*by_exit)
        return {r: {"accuracy": [accuracy[r] for accuracy in by_exit]} for r in rounds}


FOLDER = "evaluation"
"""The run's artifact folder that files go to."""


def log_evaluation(
    config: TrackingConfig,
    folder: Path,
    run_id: str,
    files: Sequence[Path],
    top5: Sequence[float] = (),
    round: int = 0,
) -> str:
    """Keep ``files`` as artifacts of the run ``run_id``, whose status stays as it is.

    Args:
        config: The run's own; a store without a URI is looked for in ``folder``.
        top5: Top-5 test accuracy of every exit (0–1), logged as metrics of ``round``.

    Returns:
        The address of the run's page or, without a server, the store's URI, fit to be shown.

    Raises:
        TrackingError: the store can't be reached, or does not have the run.
    """
    uri = resolve_uri(config, folder)
    path, _ = sqlite_path(uri)
    if path is not None and not path.is_file():  # an empty new one would not have the run
        raise TrackingError(f"there is no tracking database {path}")
    run = MLflowRun(uri)
    with answering(uri):
        run.attach(run_id)
        if top5:
            run.log_metrics(top5_metrics(top5), round, int(time.time() * 1000))
        for file in files:
            run.log_file(FOLDER, file)
    return run.where if uri.startswith("http") else without_password(uri)

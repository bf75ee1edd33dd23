"""What a sweep leaves behind: files in its folder, its page in MLflow, and the result of the job."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from typing import Any

import yaml
from matplotlib.figure import Figure

from raygf.config import RunConfig
from raygf.config_dict import to_dict
from raygf.sweep.figure import objective_figure
from raygf.sweep.folder import SweepFolder
from raygf.sweep.outcome import TrialRow
from raygf.sweep.overrides import flags_for
from raygf.sweep.plan import Plan
from raygf.sweep.table import text_of, trials_csv, trials_markdown
from raygf.tracking.sweep_run import SweepReport
from raygf.tracking.uris import without_password

RESULTS = "results.csv"
BEST = "best_config.yaml"
FIGURE = "objective.png"


def write_report(folder: SweepFolder, rows: Sequence[TrialRow], plan: Plan, best: TrialRow | None) -> str:
    """Write table, best configuration and figure into the sweep's folder; returns the table's path.

    Raises:
        StorageError: they could not be written.
    """
    path = folder.write(RESULTS, trials_csv(rows, plan).encode())
    if best is not None:
        folder.write(BEST, best_config(plan, best).encode())
        folder.write(FIGURE, _png(objective_figure(rows, plan, best)))
    return path


def sweep_report(rows: Sequence[TrialRow], plan: Plan, best: TrialRow) -> SweepReport:
    """For MLflow."""
    failed = sum(row.status == "failed" for row in rows)
    values = {f"best.{name}": text_of(value) for name, value in best.values.items()}
    tags = {"raygf.best_trial": best.trial, "raygf.best_run_id": best.run_id, "checkpoint": best.checkpoint}
    metrics = {plan.metric: float(best.score or 0.0), "trials": float(len(rows)), "failed": float(failed)}
    if best.test is not None:
        metrics["test_accuracy/average"] = best.test
    markdown = (
        f"Best: trial {best.trial}, `{flags_for(best.values)}`\n\n{trials_markdown(rows, plan)}\n"
        f"All trials: `{RESULTS}`. The figure of the objective: `figures/{FIGURE}`.\n"
    )
    texts = {RESULTS: trials_csv(rows, plan), BEST: best_config(plan, best)}
    return SweepReport(
        {**tags, **values}, metrics, texts, partial(objective_figure, rows, plan, best), markdown
    )


def result_of(rows: Sequence[TrialRow], plan: Plan, best: TrialRow, path: str) -> dict[str, Any]:
    """The job's last line."""
    return {
        "best_trial": best.trial,
        "best_config": best.values,
        "best_score": best.score,
        "trials": len(rows),
        "failed": sum(row.status == "failed" for row in rows),
        "mlflow_run_id": plan.parent,
        "results": path,
    }


def best_config(plan: Plan, best: TrialRow) -> str:
    """The best trial's whole run, as YAML."""
    return yaml.safe_dump(shown(plan.trial_run(best.trial, best.values)), sort_keys=False)


def shown(run: RunConfig) -> dict[str, Any]:
    """``run`` as plain values that may be seen by anybody."""
    values = to_dict(run)
    values["tracking"]["uri"] = without_password(run.tracking.uri)
    return values


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()

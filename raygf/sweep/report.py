"""What a sweep leaves behind: files in its folder, its page in MLflow, and the result of the job."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raygf.config.fields import to_dict
from raygf.config.run import RunConfig
from raygf.errors import without_password
from raygf.evaluation.figures import new_figure, plain_axes
from raygf.evaluation.tables import MISSING, csv_text, markdown_table
from raygf.records import RoundRecord, RunEnd
from raygf.sweep.plan import Plan, SweepFolder, flags_for, shown_score
from raygf.sweep.space import Values
from raygf.sweep.trial import END, FAILURE, NAME, RECORD, VALUES, cause_of
from raygf.tracking.sweep import SweepReport

RESULTS = "results.csv"
BEST = "best_config.yaml"
FIGURE = "objective.png"

_SHOWN = 20
"""Rows on a screen or a page; the file has all."""
_COLUMNS = 3
_LOG_SPAN = 20.0
"""Numbers whose largest is so many times their smallest are drawn on a logarithmic axis."""
_TILTED = 4
"""With more names than this on an axis, they are tilted."""
_POINTS: dict[str, dict[str, Any]] = {
    "finished": {"color": "#0072B2", "marker": "o", "label": "trained to its end"},
    "stopped early": {
        "facecolors": "none",
        "edgecolors": "#D55E00",
        "marker": "s",
        "label": "stopped early (accuracy when it was)",
    },
}
_RING: dict[str, Any] = {"facecolors": "none", "edgecolors": "black", "linewidths": 1.2, "label": "best"}


@dataclass(frozen=True)
class TrialRow:
    """One trial.

    ``score``: its metric after the last round that it did. ``test``: average test accuracy, 0–1, of a trial
    that came to its end; never looked at to choose. ``cause``: why it failed.
    """

    trial: str
    status: Literal["finished", "stopped early", "failed"]
    values: Values
    score: float | None
    test: float | None
    rounds: int
    passes: int
    seconds: float
    checkpoint: str
    run_id: str
    cause: str = ""


def read_rows(results: Sequence[Any], plan: Plan, folder: SweepFolder) -> list[TrialRow]:
    """A row for each of Tune's ``results``, in the order in which the trials were made up.

    Tune numbers the trials of a list in their names (``5a1b2_00003``); others count as they started.
    """
    runs = folder.read_trials()
    started = {trial: number for number, trial in enumerate(runs)}
    return sorted(
        (_row(result, plan, folder, runs) for result in results),
        key=lambda row: (row.trial if "_" in row.trial else "", started.get(row.trial, len(started))),
    )


def _row(result: Any, plan: Plan, folder: SweepFolder, runs: Mapping[str, str]) -> TrialRow:
    metrics: dict[str, Any] = result.metrics or {}
    trial = str(metrics.get("trial_id") or result.path.rpartition("/")[2])
    record: RoundRecord | None = metrics.get(RECORD)
    end: RunEnd | None = metrics.get(END)
    failed = result.error is not None or record is None
    checkpoint = ""
    if result.checkpoint is not None:  # Tune knows its folder without the kind of storage in front
        name = result.checkpoint.path.rstrip("/").rpartition("/")[2]
        checkpoint = f"{folder.of_trial(trial)}/{name}/{NAME}"
    return TrialRow(
        trial=trial,
        status="failed" if failed else "finished" if end else "stopped early",
        values=dict((result.config or {}).get(VALUES, {})),
        score=None if record is None else float(metrics[plan.metric]),
        test=None if end is None else sum(end.test.accuracy) / len(end.test.accuracy),
        rounds=0 if record is None else record.round,
        passes=0 if record is None else record.training_passes,
        seconds=float(metrics.get("time_total_s") or 0.0),
        checkpoint=checkpoint,
        run_id=runs.get(trial, ""),
        cause=str(metrics.get(FAILURE) or cause_of(result.error)) if failed else "",
    )


def ranked(rows: Sequence[TrialRow], mode: str) -> list[TrialRow]:
    """``rows`` with the best first and the failed last, else in their order."""
    sign = -1.0 if mode == "max" else 1.0
    return sorted(
        rows, key=lambda row: (row.status == "failed", row.score is None, sign * (row.score or 0.0))
    )


def best_row(rows: Sequence[TrialRow], mode: str) -> TrialRow | None:
    """The trial with the best score among those that did not fail; the earliest of equals."""
    first = next(iter(ranked(rows, mode)), None)
    return None if first is None or first.status == "failed" or first.score is None else first


def failures(rows: Sequence[TrialRow]) -> list[str]:
    """A line for every failed trial."""
    return [f"trial {row.trial} failed: {row.cause}" for row in rows if row.status == "failed"]


def trials_csv(rows: Sequence[TrialRow], plan: Plan) -> str:
    """One line a trial, in the order of ``rows``; accuracies 0–1, empty fields where there is no value."""
    header = ["trial", "status", *plan.fields, plan.metric, "test_accuracy/average", "training_passes"]
    lines: list[list[object]] = [[*header, "rounds", "seconds", "mlflow_run_id", "checkpoint", "cause"]]
    for row in rows:
        values = [text_of(row.values[name]) if name in row.values else None for name in plan.fields]
        numbers = [row.score, row.test, row.passes, row.rounds, round(row.seconds, 1)]
        lines.append([row.trial, row.status, *values, *numbers, row.run_id, row.checkpoint, row.cause])
    return csv_text(lines)


def trials_table(rows: Sequence[TrialRow], plan: Plan) -> tuple[list[str], list[list[str]]]:
    """Header and lines for people: the best trial first, the failed last, long tables cut."""
    lines = []
    for row in ranked(rows, plan.mode)[:_SHOWN]:
        values = [text_of(row.values[name]) if name in row.values else MISSING for name in plan.fields]
        score = MISSING if row.score is None else shown_score(plan.metric, row.score)
        test = MISSING if row.test is None else f"{100 * row.test:.2f} %"
        lines.append([row.trial, *values, score, test, str(row.passes), row.status])
    header = ["Trial", *plan.fields, plan.metric, "Test", "Passes", "Status"]
    if len(rows) > _SHOWN:
        lines.append([f"{len(rows) - _SHOWN} more", *[""] * (len(header) - 1)])
    return header, lines


def text_of(value: Any) -> str:
    """A swept value as people write it."""
    if isinstance(value, list | tuple):
        return " ".join(map(text_of, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def objective_figure(rows: Sequence[TrialRow], plan: Plan, best: TrialRow) -> Figure:
    """Scores over each swept field that has several values: a panel each, a point for every trial.

    The ``best`` trial has a ring.
    """
    scored = [row for row in rows if row.status in _POINTS and row.score is not None]
    values = {name: {str(row.values[name]) for row in scored if name in row.values} for name in plan.fields}
    fields = [name for name in plan.fields if len(values[name]) > 1]
    columns = min(_COLUMNS, max(1, len(fields)))
    lines = math.ceil(max(1, len(fields)) / columns)
    figure = new_figure(1.2 + 3.4 * columns, 0.7 + 3.0 * lines)
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False)
    for axes, name in zip(grid.flat, fields, strict=False):
        _draw(axes, name, scored, plan, best)
    for axes in grid.flat[len(fields) :]:
        axes.set_visible(False)
    kind, _, which = plan.metric.partition("/")
    what = "accuracy (%)" if kind == "val_accuracy" else "loss"
    whose = "average over exits" if which == "average" else which.replace("_", " ")
    for line in grid:
        line[0].set_ylabel(f"validation {what},\n{whose}")
    handles = grid.flat[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _draw(axes: Axes, name: str, rows: Sequence[TrialRow], plan: Plan, best: TrialRow) -> None:
    """One panel; values that are not all numbers are names, which matplotlib puts on the axis in order."""
    having = [row for row in rows if name in row.values]
    values = [row.values[name] for row in having]
    named = not all(type(value) in (int, float) for value in values)
    unit = 100 if plan.metric.startswith("val_accuracy") else 1

    def scatter(some: Sequence[TrialRow], **style: Any) -> None:
        xs = [str(row.values[name]) if named else row.values[name] for row in some]
        axes.scatter(xs, [unit * float(row.score or 0.0) for row in some], **style)

    if named:
        names = list(dict.fromkeys(map(str, values)))
        axes.xaxis.update_units(names)  # type: ignore[no-untyped-call]
        axes.set_xlim(-0.5, len(names) - 0.5)
        if len(names) > _TILTED:
            axes.tick_params(axis="x", rotation=45)
    elif min(values) > 0 and max(values) / min(values) >= _LOG_SPAN:
        axes.set_xscale("log")
    for status, style in _POINTS.items():
        scatter([row for row in having if row.status == status], s=28, **style)
    scatter([best] if name in best.values else [], s=110, **_RING)
    axes.set_xlabel(name)
    plain_axes(axes)


def write_report(folder: SweepFolder, rows: Sequence[TrialRow], plan: Plan, best: TrialRow | None) -> str:
    """Write table, best configuration and figure into the sweep's folder; returns the table's path.

    Raises:
        StorageError: they could not be written.
    """
    path = folder.write(RESULTS, trials_csv(rows, plan).encode())
    if best is not None:
        folder.write(BEST, best_config(plan, best).encode())
        figure = io.BytesIO()
        objective_figure(rows, plan, best).savefig(figure, format="png")
        folder.write(FIGURE, figure.getvalue())
    return path


def sweep_report(rows: Sequence[TrialRow], plan: Plan, best: TrialRow) -> SweepReport:
    """For MLflow."""
    values = {f"best.{name}": text_of(value) for name, value in best.values.items()}
    tags = {"raygf.best_trial": best.trial, "raygf.best_run_id": best.run_id, "checkpoint": best.checkpoint}
    numbers = {plan.metric: best.score, "trials": len(rows), "failed": len(failures(rows))}
    metrics = {name: float(number or 0.0) for name, number in numbers.items()}
    if best.test is not None:
        metrics["test_accuracy/average"] = best.test
    markdown = (
        f"Best: trial {best.trial}, `{flags_for(best.values)}`\n\n"
        f"{markdown_table(*trials_table(rows, plan))}\n"
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
        "failed": len(failures(rows)),
        "mlflow_run_id": plan.parent,
        "results": path,
    }


def best_config(plan: Plan, best: TrialRow) -> str:
    """The best trial's whole run, as YAML."""
    return yaml.safe_dump(shown(plan.trial_run(best.trial, best.values)), sort_keys=False)


def shown(run: RunConfig) -> dict[str, Any]:
    """``run`` as plain values, its password masked."""
    values = to_dict(run)
    values["tracking"]["uri"] = without_password(run.tracking.uri)
    return values

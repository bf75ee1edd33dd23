"""What a sweep leaves behind: files in its folder, its page in MLflow, and the result of the job."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from raygf.config.fields import to_dict
from raygf.config.run import RunConfig
from raygf.errors import without_password
from raygf.evaluation.figures import csv_text, new_figure, plain_axes
from raygf.evaluation.tables import MISSING, markdown_table, terminal_table
from raygf.records import RoundRecord, RunEnd
from raygf.sweep.folder import SweepFolder
from raygf.sweep.plan import Plan, flags_for, shown_score
from raygf.sweep.space import Values
from raygf.sweep.trial import END, FAILURE, NAME, RECORD, VALUES, cause_of
from raygf.tracking.sweep import SweepReport

Status = Literal["finished", "stopped early", "failed"]


@dataclass(frozen=True)
class TrialRow:
    """One trial.

    ``score``: its metric after the last round that it did. ``test``: average test accuracy, 0–1, of a trial
    that came to its end; never looked at to choose. ``cause``: why it failed.
    """

    trial: str
    status: Status
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
    """A row for each of Tune's ``results``, in the order in which the trials were made up."""
    runs = folder.read_trials()
    started = {trial: number for number, trial in enumerate(runs)}
    rows = [_row(result, plan, folder, runs) for result in results]
    return sorted(rows, key=lambda row: _number(row.trial, started.get(row.trial, len(started))))


def best_row(rows: Sequence[TrialRow], mode: str) -> TrialRow | None:
    """The trial with the best score among those that did not fail; the earliest of equals."""
    scored = [row for row in rows if row.status != "failed" and row.score is not None]
    sign = 1.0 if mode == "max" else -1.0
    return max(scored, key=lambda row: sign * float(row.score or 0.0), default=None)


def failures(rows: Sequence[TrialRow]) -> list[str]:
    """A line for every failed trial."""
    return [f"trial {row.trial} failed: {row.cause}" for row in rows if row.status == "failed"]


def _number(trial: str, started: int) -> int:
    """Tune numbers the trials of a list in their names (``5a1b2_00003``); others count as they started."""
    number = trial.rpartition("_")[2]
    return int(number) if "_" in trial and number.isdigit() else started


def _row(result: Any, plan: Plan, folder: SweepFolder, runs: Mapping[str, str]) -> TrialRow:
    metrics: dict[str, Any] = result.metrics or {}
    trial = str(metrics.get("trial_id") or result.path.rpartition("/")[2])
    record: RoundRecord | None = metrics.get(RECORD)
    end: RunEnd | None = metrics.get(END)
    failed = result.error is not None or record is None
    return TrialRow(
        trial=trial,
        status="failed" if failed else "finished" if end else "stopped early",
        values=dict((result.config or {}).get(VALUES, {})),
        score=None if record is None else float(metrics[plan.metric]),
        test=None if end is None else sum(end.test.accuracy) / len(end.test.accuracy),
        rounds=0 if record is None else record.round,
        passes=0 if record is None else record.training_passes,
        seconds=float(metrics.get("time_total_s") or 0.0),
        checkpoint="" if result.checkpoint is None else f"{_checkpoint(result, trial, folder)}/{NAME}",
        run_id=runs.get(trial, ""),
        cause=str(metrics.get(FAILURE) or cause_of(result.error)) if failed else "",
    )


def _checkpoint(result: Any, trial: str, folder: SweepFolder) -> str:
    """The checkpoint's folder; Tune knows it without the kind of storage in front."""
    name = result.checkpoint.path.rstrip("/").rpartition("/")[2]
    return f"{folder.of_trial(trial)}/{name}"


_COLUMNS = 3
_LOG_SPAN = 20.0
"""Numbers whose largest is so many times their smallest are drawn on a logarithmic axis."""
_TILTED = 4
"""With more names than this on an axis, they are tilted."""

_KINDS: dict[str, dict[str, Any]] = {
    "finished": {"color": "#0072B2", "marker": "o", "label": "trained to its end"},
    "stopped early": {
        "facecolors": "none",
        "edgecolors": "#D55E00",
        "marker": "s",
        "label": "stopped early (accuracy when it was)",
    },
}


def objective_figure(rows: Sequence[TrialRow], plan: Plan, best: TrialRow) -> Figure:
    """Scores over each of ``plan.fields`` that has several values; the ``best`` trial has a ring."""
    scored = [row for row in rows if row.status in _KINDS and row.score is not None]
    fields = [name for name in plan.fields if len({_key(row, name) for row in scored} - {None}) > 1]
    columns = min(_COLUMNS, max(1, len(fields)))
    lines = math.ceil(max(1, len(fields)) / columns)
    figure = new_figure(1.2 + 3.4 * columns, 0.7 + 3.0 * lines)
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False)
    for axes in grid.flat[len(fields) :]:
        axes.set_visible(False)
    for axes, name in zip(grid.flat, fields, strict=False):
        _draw(axes, name, scored, plan, best)
    for line in grid:
        line[0].set_ylabel(_label(plan.metric))
    _legend(figure, [axes for axes in grid.flat if axes.get_visible()])
    return figure


def _legend(figure: Figure, drawn: Sequence[Axes]) -> None:
    """One legend for all panels, each kind of point once."""
    entries: dict[str, Any] = {}
    for axes in drawn:
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    if entries:
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=3, frameon=False)


def _draw(axes: Axes, name: str, rows: Sequence[TrialRow], plan: Plan, best: TrialRow) -> None:
    having = [row for row in rows if name in row.values]
    names = _names(having, name)
    for status, style in _KINDS.items():
        part = [row for row in having if row.status == status]
        if part:
            axes.scatter(
                [_x(row, name, names) for row in part], [_y(row, plan) for row in part], s=28, **style
            )
    if name in best.values:
        ring: dict[str, Any] = {
            "facecolors": "none",
            "edgecolors": "black",
            "linewidths": 1.2,
            "label": "best",
        }
        axes.scatter([_x(best, name, names)], [_y(best, plan)], s=110, **ring)
    if names:
        tilted: dict[str, Any] = {"rotation": 45, "ha": "right"} if len(names) > _TILTED else {}
        axes.set_xticks(range(len(names)), names, **tilted)
        axes.set_xlim(-0.5, len(names) - 0.5)
    elif _is_wide([row.values[name] for row in having]):
        axes.set_xscale("log")
    axes.set_xlabel(name)
    plain_axes(axes)


def _names(rows: Sequence[TrialRow], name: str) -> list[str]:
    """What is on the axis if it has names instead of numbers."""
    values = [row.values[name] for row in rows]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return []
    return list(dict.fromkeys(str(value) for value in values))


def _x(row: TrialRow, name: str, names: list[str]) -> float:
    return float(names.index(str(row.values[name]))) if names else float(row.values[name])


def _y(row: TrialRow, plan: Plan) -> float:
    assert row.score is not None
    return 100 * row.score if plan.metric.startswith("val_accuracy") else row.score


def _key(row: TrialRow, name: str) -> str | None:
    return str(row.values[name]) if name in row.values else None


def _is_wide(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) >= _LOG_SPAN


def _label(metric: str) -> str:
    kind, _, which = metric.partition("/")
    whose = "average over exits" if which == "average" else which.replace("_", " ")
    return f"validation {'accuracy (%)' if kind == 'val_accuracy' else 'loss'},\n{whose}"


_SHOWN = 20
"""Rows on a screen or a page; the file has all."""


def trials_csv(rows: Sequence[TrialRow], plan: Plan) -> str:
    """One line a trial, in the order of ``rows``; accuracies 0–1, empty fields where there is no value."""
    header = ["trial", "status", *plan.fields, plan.metric, "test_accuracy/average", "training_passes"]
    lines: list[list[object]] = [[*header, "rounds", "seconds", "mlflow_run_id", "checkpoint", "cause"]]
    for row in rows:
        values = [text_of(row.values[name]) if name in row.values else None for name in plan.fields]
        numbers = [row.score, row.test, row.passes, row.rounds, round(row.seconds, 1)]
        lines.append([row.trial, row.status, *values, *numbers, row.run_id, row.checkpoint, row.cause])
    return csv_text(lines)


def trials_table(rows: Sequence[TrialRow], plan: Plan) -> Table:
    """For the terminal: the best first, the failed last."""
    return terminal_table(_header(plan), _lines(rows, plan), [], "Trials, the best first")


def trials_markdown(rows: Sequence[TrialRow], plan: Plan) -> str:
    """For MLflow's page: the best first, the failed last."""
    return markdown_table(_header(plan), _lines(rows, plan))


def ranked(rows: Sequence[TrialRow], mode: str) -> list[TrialRow]:
    """``rows`` with the best first and the failed last, else in their order."""
    sign = -1.0 if mode == "max" else 1.0

    def key(row: TrialRow) -> tuple[bool, bool, float]:
        return row.status == "failed", row.score is None, sign * (row.score or 0.0)

    return sorted(rows, key=key)


def short(name: str, names: Sequence[str]) -> str:
    """``name`` without its section, if no other of ``names`` ends alike."""
    last = name.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in names) == 1 else name


def text_of(value: Any) -> str:
    """A swept value as people write it."""
    if isinstance(value, list | tuple):
        return " ".join(map(text_of, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _header(plan: Plan) -> list[str]:
    fields = [short(name, plan.fields) for name in plan.fields]
    return ["Trial", *fields, plan.metric, "Test", "Passes", "Status"]


def _lines(rows: Sequence[TrialRow], plan: Plan) -> list[list[str]]:
    lines = []
    for row in ranked(rows, plan.mode)[:_SHOWN]:
        values = [text_of(row.values[name]) if name in row.values else MISSING for name in plan.fields]
        score = MISSING if row.score is None else shown_score(plan.metric, row.score)
        test = MISSING if row.test is None else f"{100 * row.test:.2f} %"
        lines.append([row.trial, *values, score, test, str(row.passes), row.status])
    if len(rows) > _SHOWN:
        lines.append([f"{len(rows) - _SHOWN} more", *[""] * (len(plan.fields) + 4)])
    return lines


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

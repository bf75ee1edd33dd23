"""What a sweep leaves behind: files in its folder, its page in MLflow, and the result of the job."""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from raygf.config.fields import to_dict
from raygf.errors import without_passwords
from raygf.evaluation.figures import new_figure, plain_axes
from raygf.evaluation.tables import MISSING, csv_text, markdown_table, passes_text
from raygf.records import RoundRecord, RunEnd
from raygf.sweeps.plan import Plan, SweepFolder, flags_for, name_of, shown_score
from raygf.sweeps.space import LOG, Values, text_of
from raygf.sweeps.trial import END, FAILURE, NAME, RECORD, VALUES, cause_of
from raygf.tracking.sweep import SweepReport

RESULTS = "results.csv"
BEST = "best_config.yaml"
FIGURE = "objective.png"

_SHOWN = 20
"""Rows on a screen or a page; the file has all."""
_COLUMNS = 3
"""Panels side by side."""
_LEVEL = 4
"""More names than this on an axis stand upright."""
_POINT: dict[str, Any] = {"s": 28, "color": "#0072B2", "label": "trained to its end"}
_STOPPED: dict[str, Any] = {"s": 60, "marker": "|", "color": "#D55E00", "label": "stopped early: not ranked"}
_RING: dict[str, Any] = {"facecolors": "none", "edgecolors": "black", "linewidths": 1.2, "label": "best"}


@dataclass(frozen=True)
class TrialRow:
    """One trial.

    ``score``: its metric after the last round that it did. ``test``: test accuracy of every exit, 0–1, of a
    trial that came to its end; never looked at to choose. ``cause``: why it failed.
    """

    trial: str
    status: Literal["finished", "stopped early", "failed"]
    values: Values
    score: float | None
    test: tuple[float, ...] | None
    rounds: int
    passes: float
    operations: int
    seconds: float
    checkpoint: str
    run_id: str
    cause: str = ""

    @property
    def name(self) -> str:
        """What people call it."""
        return name_of(self.values)

    def test_score(self, judged: str) -> float | None:
        """Its test accuracy in what is ``judged``: ``average`` or ``exit_i``."""
        if self.test is None:
            return None
        exits = self.test if judged == "average" else [self.test[int(judged.removeprefix("exit_")) - 1]]
        return sum(exits) / len(exits)


def read_rows(results: Sequence[Any], plan: Plan, folder: SweepFolder) -> list[TrialRow]:
    """A row for each of Tune's ``results``, in the order in which the trials were started."""
    runs = folder.read_trials()
    started = {trial: number for number, trial in enumerate(runs)}
    rows = [_row(result, plan, folder, runs) for result in results]
    return sorted(rows, key=lambda row: started.get(row.trial, len(started)))


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
        test=None if end is None else end.test.accuracy,
        rounds=0 if record is None else record.round,
        passes=0 if record is None else record.training_passes,
        operations=0 if record is None else record.training_operations,
        seconds=float(metrics.get("time_total_s") or 0.0),
        checkpoint=checkpoint,
        run_id=runs.get(trial, ""),
        cause=str(metrics.get(FAILURE) or cause_of(result.error)) if failed else "",
    )


def ranked(rows: Sequence[TrialRow], mode: str, status: str = "finished") -> list[TrialRow]:
    """Those of ``rows`` with this ``status``, the best first; the others had less training."""
    sign = -1.0 if mode == "max" else 1.0
    some = [row for row in rows if row.status == status]
    return sorted(some, key=lambda row: sign * (row.score or 0.0))


def best_row(rows: Sequence[TrialRow], mode: str) -> TrialRow | None:
    """The best finished trial, the earliest of equals; if none finished, of those that were stopped early."""
    return next(iter(ranked(rows, mode) + ranked(rows, mode, "stopped early")), None)


def failures(rows: Sequence[TrialRow]) -> list[str]:
    """A line for every failed trial."""
    return [f"trial {row.name} failed: {row.cause}" for row in rows if row.status == "failed"]


def trials_csv(rows: Sequence[TrialRow], plan: Plan) -> str:
    """One line a trial, in the order of ``rows``; accuracies 0–1, empty fields where there is no value."""
    tests = ["average", *(f"exit_{number}" for number in range(1, len(plan.costs) + 1))]
    header = ["trial", "name", "status", *plan.fields, plan.metric, *(f"test_accuracy/{of}" for of in tests)]
    about = ["training_passes", "training_operations", "rounds", "seconds", "mlflow_run_id", "checkpoint"]
    lines: list[list[object]] = [[*header, *about, "settings", "cause"]]
    for row in rows:
        values = [text_of(row.values[name]) if name in row.values else None for name in plan.fields]
        spent = [f"{row.passes:g}", row.operations, row.rounds, round(row.seconds, 1)]
        numbers = [row.score, *map(row.test_score, tests), *spent]
        lines.append([row.trial, row.name, row.status, *values, *numbers])
        lines[-1] += [row.run_id, row.checkpoint, flags_for(row.values), row.cause]
    return csv_text(lines)


Lines = list[list[str]]


def trials_table(rows: Sequence[TrialRow], plan: Plan) -> tuple[list[str], Lines, Lines]:
    """Header, lines of finished trials with the best first, lines of others; long tables cut."""
    header = ["Trial", plan.metric, f"test_accuracy/{plan.judged}", "Passes", "Status"]
    others = [row for row in rows if row.status != "finished"]
    return header, _lines(ranked(rows, plan.mode), plan), _lines(others, plan)


def _lines(rows: Sequence[TrialRow], plan: Plan) -> Lines:
    lines = []
    for row in rows[:_SHOWN]:
        score = MISSING if row.score is None else shown_score(plan.metric, row.score)
        test = row.test_score(plan.judged)
        shown = MISSING if test is None else f"{100 * test:.2f} %"
        lines.append([row.name, score, shown, passes_text(row.passes), row.status])
    return lines + ([[f"{len(rows) - _SHOWN} more", *[""] * 4]] if len(rows) > _SHOWN else [])


def objective_figure(rows: Sequence[TrialRow], plan: Plan, best: TrialRow) -> Figure:
    """Scores over each swept field that has several values: a panel each, a point for every finished trial.

    The ``best`` trial has a ring; the place of one that was stopped early is marked at the foot.
    """
    scored = [row for row in rows if row.status != "failed"]
    by_field = {name: [row for row in scored if name in row.values] for name in plan.fields}
    several = [n for n, some in by_field.items() if len({text_of(row.values[n]) for row in some}) > 1]
    columns = max(1, min(_COLUMNS, len(several)))
    lines = max(1, math.ceil(len(several) / columns))
    figure = new_figure(11, 0.9 + 3.6 * lines)
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False)
    for axes in grid.flat[len(several) :]:
        axes.set_visible(False)
    for axes, name in zip(grid.flat, several, strict=False):
        _draw(axes, name, by_field[name], plan, best)
    what = "accuracy (%)" if plan.metric.startswith("val_accuracy") else "loss"
    whose = "average over exits" if plan.judged == "average" else plan.judged.replace("_", " ")
    for line in grid:
        line[0].set_ylabel(f"validation {what},\n{whose}")
    figure.suptitle(textwrap.fill(f"best: {best.name}", 120), fontsize=9)
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=_COLUMNS, frameon=False)
    return figure


def _draw(axes: Axes, name: str, rows: Sequence[TrialRow], plan: Plan, best: TrialRow) -> None:
    """The panel of the field ``name``, which all ``rows`` set; what is no number stands there by its text."""
    unit = 100 if plan.metric.startswith("val_accuracy") else 1
    numbers = all(type(row.values[name]) in (int, float) for row in rows)
    names = list(dict.fromkeys(text_of(row.values[name]) for row in rows))

    def places(some: Sequence[TrialRow]) -> list[Any]:
        return [row.values[name] if numbers else names.index(text_of(row.values[name])) for row in some]

    def scatter(some: Sequence[TrialRow], **style: Any) -> None:
        axes.scatter(places(some), [unit * float(row.score or 0.0) for row in some], **style)

    if not numbers:
        axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > _LEVEL else 0, fontsize=7)
    elif LOG in plan.ranges.get(name, "") and min(places(rows)) > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    scatter([row for row in rows if row.status == "finished"], **_POINT)
    stopped = places([row for row in rows if row.status != "finished"])
    if stopped:
        axes.scatter(stopped, [0.03] * len(stopped), transform=axes.get_xaxis_transform(), **_STOPPED)
    scatter([best] if name in best.values else [], s=110, **_RING)
    axes.set_xlabel(name)
    plain_axes(axes)


def write_report(folder: SweepFolder, rows: Sequence[TrialRow], plan: Plan, best: TrialRow | None) -> str:
    """Write table, best configuration and figure into the sweep's folder; returns the table's path.

    Raises StorageError: they could not be written.
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
    header, finished, others = trials_table(rows, plan)
    left = markdown_table(header, others) if others else ""
    values = {f"best.{name}": text_of(value) for name, value in best.values.items()}
    tags = {"raygf.best_trial": best.trial, "raygf.best_run_id": best.run_id, "checkpoint": best.checkpoint}
    numbers = {plan.metric: best.score, "trials": len(rows), "failed": len(failures(rows))}
    metrics = {name: float(number or 0.0) for name, number in numbers.items()}
    if (test := best.test_score(plan.judged)) is not None:
        metrics[f"test_accuracy/{plan.judged}"] = test
    markdown = (
        f"At best {shown_score(plan.metric, best.score or 0)} {plan.metric}: `{flags_for(best.values)}`\n\n"
        f"{markdown_table(header, finished)}\n"
        f"{left and 'Not trained to their end, so not ranked:'}\n\n{left}\n"
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
    """The best trial's whole run, as YAML, and in a comment the flags that set what was swept."""
    run = yaml.safe_dump(without_passwords(to_dict(plan.trial_run(best.trial, best.values))), sort_keys=False)
    return f"# {flags_for(best.values)}\n{run}"

"""The trials as a table: for programs, for the terminal and for MLflow's page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from raygf.evaluation.figure_style import csv_text
from raygf.evaluation.tables import MISSING, markdown_table, terminal_table
from raygf.sweep.objective import shown_score
from raygf.sweep.outcome import TrialRow
from raygf.sweep.plan import Plan

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

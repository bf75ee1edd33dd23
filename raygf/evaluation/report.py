"""All tables and figures of past runs as files: Markdown and CSV, PNG and CSV."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from raygf.errors import StorageError
from raygf.evaluation.figures import accuracy_csv, accuracy_figure, fusion_csv, fusion_heatmap
from raygf.evaluation.paper_figures import (
    Budgeted,
    budgeted_csv,
    budgeted_figure,
    calibration_csv,
    calibration_figure,
    conflict_curves,
    conflict_figure,
    convergence,
    convergence_csv,
    convergence_figure,
    cosine_csv,
    importance_csv,
    importance_figure,
    noise_csv,
    share_csv,
    validation,
)
from raygf.evaluation.results import Group, RunResults
from raygf.evaluation.tables import MISSING, ResultColumn, ResultTable, markdown_table, to_csv, to_markdown

Files = dict[str, str | bytes | Figure]
"""Texts, figures and others by the relative path of their file."""


def anytime_tables(groups: Sequence[Group]) -> list[ResultTable]:
    """One table for every network and kind of data, in the order of ``groups``."""
    kinds: dict[tuple[str, tuple[int, ...], tuple[int, ...]], list[Group]] = {}
    for group in groups:
        run = group.runs[0]
        kinds.setdefault((run.config.data.source, run.operations, run.parameters), []).append(group)
    tables = []
    for (_, operations, parameters), members in kinds.items():
        columns, run = [_column(group) for group in members], members[0].runs[0]
        tables.append(ResultTable(operations, parameters, columns, "top-1", run.latency, run.where))
    return tables


def _column(group: Group) -> ResultColumn:
    return ResultColumn(
        group.label,
        top1=[run.top1 for run in group.runs],
        training_passes=group.runs[0].training_passes,
        training_operations=group.runs[0].training_operations,
        seconds=[run.seconds for run in group.runs],
        top5=[run.top5 for run in group.runs if run.top5 is not None] or None,
    )


def comparison_files(groups: Sequence[Group]) -> Files:
    """What shows all runs together: anytime tables, training and validation, budgeted batches (Fig. 2)."""
    tables = anytime_tables(groups)
    files: Files = {
        "anytime.md": "\n".join(to_markdown(table) for table in tables),
        "anytime.csv": to_csv(tables),
    }
    histories = [(group.label, group.seeds, [run.history for run in group.runs]) for group in groups]
    if curves := [curve for curve in (convergence(*known) for known in histories) if curve is not None]:
        files["convergence.png"] = convergence_figure(curves)
        files["convergence.csv"] = convergence_csv(curves)
    if curves := [curve for curve in (validation(*known) for known in histories) if curve is not None]:
        files["validation.png"] = convergence_figure(curves, "validation accuracy, mean of the exits")
        files["validation.csv"] = convergence_csv(curves, "validation_accuracy")
    budgeted = []
    for group in groups:
        if known := [(run.config.seed, run.curve, run.top1) for run in group.runs if run.curve is not None]:
            by_seed = zip(*known, strict=True)  # seeds, curves, accuracies
            budgeted.append(Budgeted(group.label, group.runs[0].operations, *by_seed))
    if budgeted:
        files["budgeted.png"] = budgeted_figure(budgeted)
        files["budgeted.csv"] = budgeted_csv(budgeted)
    return files


def run_files(run: RunResults) -> Files:
    """What shows one run: accuracy over the rounds, conflict, fusion weights, importance (Fig. 4)."""
    files: Files = {}
    if run.history:
        files["accuracy.png"] = accuracy_figure(run.history)
        files["accuracy.csv"] = accuracy_csv(run.history)
    if (conflict := conflict_curves(run.history, run.tensors)) is not None:
        files["conflict.png"] = conflict_figure(conflict, run.noise)
        files["conflict_cosines.csv"] = cosine_csv(conflict)
        files["conflict_shares.csv"] = share_csv(conflict)
    if run.noise is not None:
        files["conflict_noise.csv"] = noise_csv(run.noise)
    if run.learned is not None:
        files["fusion_weights.png"] = fusion_heatmap(run.learned.per_tensor, run.tensors)
        files["fusion_weights.csv"] = fusion_csv(run.learned.per_tensor, run.tensors)
    if run.policies:
        curves = [
            Budgeted(name, run.operations, (run.config.seed,), (curve,), (run.top1,))
            for name, curve in run.policies.items()
        ]
        files["policies.png"] = budgeted_figure(curves)
        files["policies.csv"] = budgeted_csv(curves)
        files["policies.md"] = policies_table(run)
    if run.calibration is not None:
        files["calibration.png"] = calibration_figure(run.calibration)
        files["calibration.csv"] = calibration_csv(run.calibration)
    if run.importance is not None:
        files["importance.png"] = importance_figure(run.importance)
        files["importance.csv"] = importance_csv(run.importance)
    return files


def policies_table(run: RunResults) -> str:
    """Test accuracy of every policy where its average operations come nearest to a share from below."""
    shares, rows = (0.25, 0.5, 0.75, 1.0), []
    for policy, curve in run.policies.items():
        spent, cells = curve.operations / run.operations[-1], []
        for share in shares:
            within = np.flatnonzero(spent <= share)
            place = within[np.argmax(spent[within])] if len(within) else None
            cells.append(MISSING if place is None else f"{curve.accuracy[place]:.2%} at {spent[place]:.0%}")
        rows.append([policy, *cells])
    return markdown_table(["policy", *(f"up to {share:.0%} of the operations" for share in shares)], rows)


def what_is_missing(run: RunResults) -> list[str]:
    """A line for every figure that can't be made of ``run``."""
    lines = []
    if not run.history:
        lines.append("its checkpoint has no history: no convergence, accuracy or conflict figure")
    if run.curve is None:
        lines.append("no validation images to read thresholds off: not in the budgeted figure")
    return lines


def write_files(folder: Path, files: Mapping[str, str | bytes | Figure]) -> list[Path]:
    """Write ``files`` below ``folder``, which is created; returns their paths.

    Raises StorageError: that doesn't work.
    """
    paths = [folder / name for name in files]
    try:
        for path, content in zip(paths, files.values(), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Figure):
                content.savefig(path)
            else:
                path.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise StorageError(f"can't write to {folder}: {error.strerror or error}; set another --out") from None
    return paths


def run_folders(groups: Sequence[Group]) -> dict[str, RunResults]:
    """Every run under the name of its own folder: its label, with the seed where a group has several."""
    folders: dict[str, RunResults] = {}
    for group in groups:
        for run in group.runs:
            name = group.label if len(group.runs) == 1 else f"{group.label}-seed-{run.config.seed}"
            name = re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "run"
            while name in folders:  # labels that differ in a blank or a slash only
                name += "_"
            folders[name] = run
    return folders

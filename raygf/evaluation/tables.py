"""The result table: how good every exit is beside what it costs, runs side by side (paper, Tables 1–4)."""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table

from raygf.records import Matrix

MISSING = "-"


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """``rows`` as CSV; None and NaN become an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        writer.writerow([None if isinstance(cell, float) and math.isnan(cell) else cell for cell in row])
    return text.getvalue()


@dataclass(frozen=True)
class ResultColumn:
    """One configuration, run with K seeds; n exits, shallow to deep.

    ``top1``, ``top5`` (K, n): test accuracies, 0–1; ``top5`` None where it is not known, or trivial: with
    five classes or fewer. ``training_passes``, ``training_operations``: see ``RoundRecord``.
    ``seconds`` (K,): wall time of the training, NaN where unknown.
    """

    title: str
    top1: Sequence[Sequence[float]]
    training_passes: float
    seconds: Sequence[float]
    top5: Sequence[Sequence[float]] | None = None
    training_operations: int = 0

    def accuracies(self) -> list[Matrix]:
        """``top1``, and ``top5`` if it is known."""
        known = [self.top1] if self.top5 is None else [self.top1, self.top5]
        return [np.asarray(values, dtype=np.float64) for values in known]


@dataclass(frozen=True, repr=False)
class ResultTable:
    """Configurations of one network side by side; shown as text, and in a notebook as a table.

    ``operations``, ``parameters`` (n,): cumulative up to each exit. ``accuracy``: what the first accuracy of
    every column is called. Where a configuration was run with several seeds, cells are mean ± standard
    deviation over them (of the sample: divided by their number minus one). ``latency``: milliseconds up to
    each exit (n,) by the number of images in a batch. ``note``: a line below, such as where that was.
    """

    operations: Sequence[int]
    parameters: Sequence[int]
    columns: Sequence[ResultColumn]
    accuracy: str = "test accuracy"
    latency: Mapping[int, Sequence[float]] = field(default_factory=dict)
    note: str = ""

    def __repr__(self) -> str:
        return to_markdown(self).rstrip()

    _repr_markdown_ = __repr__


def to_rich(table: ResultTable, title: str | None = None) -> Table:
    """``table`` for the terminal."""
    view = terminal_table(_header(table), _exit_rows(table), _summary_rows(table), title)
    view.caption = table.note or None
    return view


def to_markdown(table: ResultTable) -> str:
    """``table`` as Markdown whose source lines up too; ends with a newline."""
    text = markdown_table(_header(table), [*_exit_rows(table), *_summary_rows(table)])
    return text + (f"\n{table.note}\n" if table.note else "")


def to_csv(tables: Sequence[ResultTable]) -> str:
    """All ``tables`` as CSV: one line a configuration and exit, then its average.

    Accuracies are 0–1, counts whole; standard deviations are empty for one seed.
    """
    names = [f"{kind}_{what}" for kind in ("top1", "top5") for what in ("mean", "std")]
    header = ["run", "seeds", "training_passes", "training_operations", "seconds", "exit", "operations"]
    batches = sorted({batch for table in tables for batch in table.latency})
    timed = [f"ms_batch_{batch}" for batch in batches]
    rows: list[list[object]] = [[*header, "parameters", *timed, *names]]
    for table in tables:
        unknown = [None] * len(table.operations)
        times = [table.latency.get(batch, unknown) for batch in batches]
        counts = zip(table.operations, table.parameters, *times, strict=True)
        costs = [*enumerate(counts, start=1), ("average", (None,) * (2 + len(times)))]
        for column in table.columns:
            spent = [
                f"{column.training_passes:g}",
                column.training_operations,
                float(np.mean(column.seconds)),
            ]
            start = [column.title, len(column.top1), *spent]
            by_exit = [[*values.T, values.mean(axis=1)] for values in column.accuracies()]
            for (exit, cost), *by_seed in zip(costs, *by_exit, strict=True):
                cells = [moment for values in by_seed for moment in _moments(values)]
                rows.append([*start, exit, *cost, *cells, *[None] * (len(names) - len(cells))])
    return csv_text(rows)


@dataclass(frozen=True)
class Unit:
    """How a column of counts is written: divided by ``scale``, named ``name``, with ``decimals`` decimals."""

    name: str
    scale: float
    decimals: int

    def text(self, count: int) -> str:
        """``count`` in this unit, without the unit's name."""
        return f"{count / self.scale:.{self.decimals}f}"


def count_unit(counts: Sequence[int]) -> Unit:
    """The unit that keeps at least two significant digits of every one of ``counts``.

    Millions, as the literature has it, unless the largest count is below 0.1 M; then thousands.
    """
    name, scale = ("M", 1e6) if max(counts) >= 1e5 else ("K", 1e3)
    smallest = min(counts) / scale
    return Unit(name, scale, decimals=2 if smallest >= 1 else 3 if smallest >= 0.01 else 4)


def passes_text(passes: float) -> str:
    """Training passes as people read them: "8", "5.1"."""
    return f"{passes:.1f}".removesuffix(".0")


def operations_text(count: int) -> str:
    """``count`` in three digits: "399 G", "1.24 P"."""
    digits, _, exponent = f"{count:.2e}".partition("e")
    power, places = divmod(int(exponent), 3)
    return f"{float(digits) * 10**places:.3g} {' KMGTPEZY'[power]}".rstrip()


def terminal_table(
    names: Sequence[str],
    rows: Iterable[Sequence[str]],
    summary: Iterable[Sequence[str]],
    title: str | None = None,
) -> Table:
    """A table for the terminal, the first column to the left; ``summary`` stands apart below ``rows``."""
    view = Table(title=title, box=SIMPLE_HEAD, title_justify="left")
    for index, name in enumerate(names):
        view.add_column(name, justify="right" if index else "left", no_wrap=not index)
    for row in rows:
        view.add_row(*row)
    view.add_section()
    for row in summary:
        view.add_row(*row)
    return view


def markdown_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose source lines up too, the first column to the left; ends with a newline."""
    header = [name.replace("|", r"\|") for name in names]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for first, *rest in (header, rule, *rows):
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append(f"| {' | '.join([first.ljust(widths[0]), *cells])} |\n")
    return "".join(lines)


def _header(table: ResultTable) -> list[str]:
    operations, parameters = count_unit(table.operations), count_unit(table.parameters)
    names = ["Exit", f"Operations ({operations.name})", f"Parameters ({parameters.name})"]
    names += [f"Batch {batch} (ms)" for batch in table.latency]
    for column in table.columns:
        kinds = zip((table.accuracy, "top-5"), column.accuracies(), strict=False)
        names += [f"{column.title} {kind} (%)" for kind, _ in kinds]
    return names


def _exit_rows(table: ResultTable) -> Iterator[list[str]]:
    operations, parameters = count_unit(table.operations), count_unit(table.parameters)
    for exit, costs in enumerate(zip(table.operations, table.parameters, strict=True)):
        accuracies = (values[:, exit] for column in table.columns for values in column.accuracies())
        times = (f"{times[exit]:.2f}" for times in table.latency.values())
        costs_text = operations.text(costs[0]), parameters.text(costs[1]), *times
        yield [f"Exit-{exit + 1}", *costs_text, *(_spread(100 * values, 2) for values in accuracies)]


def _summary_rows(table: ResultTable) -> Iterator[list[str]]:
    names = "Average", "Training passes", "Training operations", "Wall time (s)", "Seeds"
    rows = [[name, "", "", *[""] * len(table.latency)] for name in names]
    for column in table.columns:
        means = [_spread(100 * values.mean(axis=1), 2) for values in column.accuracies()]
        spent = passes_text(column.training_passes), operations_text(column.training_operations)
        once = *spent, _spread(np.asarray(column.seconds), 1), str(len(column.top1))
        rows[0] += means
        for row, text in zip(rows[1:], once, strict=True):
            row += [text] + [""] * (len(means) - 1)
    several = any(len(column.top1) > 1 for column in table.columns)
    yield from rows if several else rows[:-1]


def _spread(values: NDArray[np.float64], decimals: int) -> str:
    """The mean of the seeds' values, with ± their standard deviation where there are several."""
    mean, std = _moments(values)
    if np.isnan(mean):
        return MISSING
    text = f"{mean:.{decimals}f}"
    return text if std is None else f"{text} ± {std:.{decimals}f}"


def _moments(values: NDArray[np.float64]) -> tuple[float, float | None]:
    """Mean and standard deviation of the sample; the latter None for one value."""
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None

"""The final table: accuracy of every exit beside what it costs, for one or several runs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table

from raygf.evaluation.figures import csv_text
from raygf.records import Matrix

MISSING = "-"


@dataclass(frozen=True)
class ResultColumn:
    """One run.

    ``accuracies`` (n,): test accuracy of each exit, 0–1, shallow to deep. ``training_passes``: passes over
    the training set, those of the fusion included. ``seconds``: wall time of the training, None if unknown.
    """

    title: str
    accuracies: tuple[float, ...]
    training_passes: int
    seconds: float | None = None

    @property
    def average(self) -> float:
        """Mean accuracy over the exits, 0–1."""
        return sum(self.accuracies) / len(self.accuracies)


@dataclass(frozen=True)
class ResultTable:
    """Runs side by side. ``operations`` and ``parameters`` (n,): cumulative up to each exit.

    Raises:
        ValueError: a run has no accuracies or more exits than there are costs, or the costs differ in length.
    """

    operations: tuple[int, ...]
    parameters: tuple[int, ...]
    columns: tuple[ResultColumn, ...]

    def __post_init__(self) -> None:
        if len(self.operations) != len(self.parameters):
            raise ValueError(
                f"{len(self.operations)} operation counts, {len(self.parameters)} parameter counts"
            )
        for column in self.columns:
            if not 0 < len(column.accuracies) <= len(self.operations):
                raise ValueError(
                    f"{column.title}: {len(column.accuracies)} exits, {len(self.operations)} costs"
                )


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


def to_rich(table: ResultTable, title: str | None = None) -> Table:
    """``table`` for the terminal."""
    return terminal_table(_header(table), _exit_rows(table), _summary_rows(table), title)


def to_markdown(table: ResultTable) -> str:
    """``table`` as Markdown whose source lines up too; ends with a newline."""
    return markdown_table(_header(table), [*_exit_rows(table), *_summary_rows(table)])


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
    return "".join(f"| {' | '.join(_padded(row, widths))} |\n" for row in (header, rule, *rows))


def to_csv(table: ResultTable) -> str:
    """``table`` for programs: whole counts, accuracies in percent with four decimals, no unit conversions."""
    text = io.StringIO()
    write = csv.writer(text, lineterminator="\n").writerow
    write(["exit", "operations", "parameters", *(f"{c.title} test accuracy (%)" for c in table.columns)])
    for index, costs in enumerate(zip(table.operations, table.parameters, strict=True)):
        write([index + 1, *costs, *(_percent(accuracy, 4, "") for accuracy in _row(table, index))])
    write(["average", "", "", *(_percent(c.average, 4) for c in table.columns)])
    write(["training passes", "", "", *(c.training_passes for c in table.columns)])
    write(
        ["wall time (s)", "", "", *("" if c.seconds is None else f"{c.seconds:.1f}" for c in table.columns)]
    )
    return text.getvalue()


def _header(table: ResultTable) -> list[str]:
    operations, parameters = count_unit(table.operations), count_unit(table.parameters)
    accuracies = (f"{column.title} test accuracy (%)" for column in table.columns)
    return ["Exit", f"Operations ({operations.name})", f"Parameters ({parameters.name})", *accuracies]


def _exit_rows(table: ResultTable) -> Iterator[list[str]]:
    operations, parameters = count_unit(table.operations), count_unit(table.parameters)
    for index, costs in enumerate(zip(table.operations, table.parameters, strict=True)):
        accuracies = (_percent(accuracy, 2) for accuracy in _row(table, index))
        yield [f"Exit-{index + 1}", operations.text(costs[0]), parameters.text(costs[1]), *accuracies]


def _summary_rows(table: ResultTable) -> Iterator[list[str]]:
    yield ["Average", "", "", *(_percent(column.average, 2) for column in table.columns)]
    yield ["Training passes", "", "", *(str(column.training_passes) for column in table.columns)]
    seconds = (MISSING if c.seconds is None else f"{c.seconds:.1f}" for c in table.columns)
    yield ["Wall time (s)", "", "", *seconds]


def _row(table: ResultTable, index: int) -> list[float | None]:
    """The runs' accuracies at one exit; None where a run has fewer exits."""
    by_exit = list(zip_longest(range(len(table.operations)), *(c.accuracies for c in table.columns)))
    return list(by_exit[index][1:])


def _percent(share: float | None, decimals: int, missing: str = MISSING) -> str:
    return missing if share is None else f"{100 * share:.{decimals}f}"


def _padded(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        row[0].ljust(widths[0]),
        *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
    ]


@dataclass(frozen=True, eq=False)
class AnytimeColumn:
    """One configuration, run with K seeds; n exits.

    ``top1``, ``top5`` (K, n): test accuracies, 0–1; ``top5`` None where it says nothing. ``training_passes``:
    passes over the training images. ``seconds`` (K,): wall time of all rounds, NaN where unknown.

    Raises:
        ValueError: the shapes do not fit.
    """

    title: str
    seeds: tuple[int, ...]
    top1: Matrix
    top5: Matrix | None
    training_passes: int
    seconds: NDArray[np.float64]

    def __post_init__(self) -> None:
        shapes = {self.top1.shape, self.top1.shape if self.top5 is None else self.top5.shape}
        if len(shapes) > 1 or len(self.seeds) != len(self.top1) or len(self.seconds) != len(self.seeds):
            raise ValueError(f"{self.title}: accuracies {shapes} do not fit {len(self.seeds)} seeds")


@dataclass(frozen=True, eq=False)
class AnytimeTable:
    """Configurations of one network. ``operations``, ``parameters`` (n,): cumulative up to each exit.

    Raises:
        ValueError: a column has another number of exits.
    """

    operations: tuple[int, ...]
    parameters: tuple[int, ...]
    columns: tuple[AnytimeColumn, ...]

    def __post_init__(self) -> None:
        for column in self.columns:
            if column.top1.shape[1] != len(self.operations) or len(self.operations) != len(self.parameters):
                raise ValueError(f"{column.title}: its exits do not fit the {len(self.operations)} costs")


def anytime_markdown(table: AnytimeTable) -> str:
    """``table`` as Markdown; ends with a newline."""
    return markdown_table(_anytime_header(table), [*_anytime_rows(table), *_anytime_summary(table)])


def anytime_rich(table: AnytimeTable, title: str) -> Table:
    """``table`` for a terminal."""
    return terminal_table(_anytime_header(table), _anytime_rows(table), _anytime_summary(table), title)


def anytime_csv(tables: Sequence[AnytimeTable]) -> str:
    """All ``tables``: one line a configuration and exit, then its average; accuracies 0–1, counts whole.

    Standard deviations are empty for one seed.
    """
    names = [f"{kind}_{what}" for kind in ("top1", "top5") for what in ("mean", "std")]
    rows: list[list[object]] = [
        ["run", "seeds", "training_passes", "exit", "operations", "parameters", *names]
    ]
    for table in tables:
        for column in table.columns:
            rows += _csv_lines(table, column)
    return csv_text(rows)


def _csv_lines(table: AnytimeTable, column: AnytimeColumn) -> Iterator[list[object]]:
    start = [column.title, len(column.seeds), column.training_passes]
    for exit, costs in enumerate(zip(table.operations, table.parameters, strict=True)):
        yield [*start, exit + 1, *costs, *_moments(column.top1[:, exit]), *_moments(_at(column.top5, exit))]
    five = None if column.top5 is None else column.top5.mean(axis=1)
    yield [*start, "average", None, None, *_moments(column.top1.mean(axis=1)), *_moments(five)]


def _anytime_header(table: AnytimeTable) -> list[str]:
    operations, parameters = count_unit(table.operations), count_unit(table.parameters)
    names = ["Exit", f"Operations ({operations.name})", f"Parameters ({parameters.name})"]
    for column in table.columns:
        names.append(f"{column.title} top-1 (%)")
        if column.top5 is not None:
            names.append(f"{column.title} top-5 (%)")
    return names


def _anytime_rows(table: AnytimeTable) -> Iterator[list[str]]:
    operations, parameters = count_unit(table.operations), count_unit(table.parameters)
    for exit, costs in enumerate(zip(table.operations, table.parameters, strict=True)):
        row = [f"Exit-{exit + 1}", operations.text(costs[0]), parameters.text(costs[1])]
        for column in table.columns:
            row += [_percent_spread(values[:, exit]) for values in _measured(column)]
        yield row


def _anytime_summary(table: AnytimeTable) -> Iterator[list[str]]:
    average, passes, seconds = ["Average", "", ""], ["Training passes", "", ""], ["Wall time (s)", "", ""]
    for column in table.columns:
        blank = [""] * (len(_measured(column)) - 1)
        average += [_percent_spread(values.mean(axis=1)) for values in _measured(column)]
        passes += [str(column.training_passes), *blank]
        seconds += [_spread(column.seconds, 1), *blank]
    yield from (average, passes, seconds)
    if any(len(column.seeds) > 1 for column in table.columns):
        seeds = ["Seeds", "", ""]
        for column in table.columns:
            seeds += [str(len(column.seeds)), *[""] * (len(_measured(column)) - 1)]
        yield seeds


def _measured(column: AnytimeColumn) -> list[Matrix]:
    return [column.top1] if column.top5 is None else [column.top1, column.top5]


def _percent_spread(shares: NDArray[np.float64]) -> str:
    return _spread(100 * shares, 2)


def _spread(values: NDArray[np.float64], decimals: int) -> str:
    """The mean of the seeds' values, with ± their standard deviation where there are several."""
    mean, std = _moments(values)
    if mean is None or np.isnan(mean):
        return "-"
    text = f"{mean:.{decimals}f}"
    return text if std is None else f"{text} ± {std:.{decimals}f}"


def _moments(values: NDArray[np.float64] | None) -> tuple[float | None, float | None]:
    """Mean and standard deviation of the sample; the latter None for one value, both for no values."""
    if values is None:
        return None, None
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None


def _at(values: Matrix | None, exit: int) -> NDArray[np.float64] | None:
    return None if values is None else values[:, exit]

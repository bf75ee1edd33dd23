"""Tables 1–4 of the Meta-GF paper: how good every exit is beside what it costs, runs side by side.

A column is one configuration. Where it was run with several seeds, cells are mean ± standard deviation over
them (of the sample: divided by their number minus one). Top-5 is left out where it says nothing: with five
classes or fewer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from raygf.evaluation.figure_style import csv_text
from raygf.evaluation.tables import count_unit, markdown_table, terminal_table
from raygf.records import Matrix


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
    return markdown_table(_header(table), [*_exit_rows(table), *_summary_rows(table)])


def anytime_rich(table: AnytimeTable, title: str) -> Table:
    """``table`` for a terminal."""
    return terminal_table(_header(table), _exit_rows(table), _summary_rows(table), title)


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


def _header(table: AnytimeTable) -> list[str]:
    operations, parameters = count_unit(table.operations), count_unit(table.parameters)
    names = ["Exit", f"Operations ({operations.name})", f"Parameters ({parameters.name})"]
    for column in table.columns:
        names.append(f"{column.title} top-1 (%)")
        if column.top5 is not None:
            names.append(f"{column.title} top-5 (%)")
    return names


def _exit_rows(table: AnytimeTable) -> Iterator[list[str]]:
    operations, parameters = count_unit(table.operations), count_unit(table.parameters)
    for exit, costs in enumerate(zip(table.operations, table.parameters, strict=True)):
        row = [f"Exit-{exit + 1}", operations.text(costs[0]), parameters.text(costs[1])]
        for column in table.columns:
            row += [_percent(values[:, exit]) for values in _measured(column)]
        yield row


def _summary_rows(table: AnytimeTable) -> Iterator[list[str]]:
    average, passes, seconds = ["Average", "", ""], ["Training passes", "", ""], ["Wall time (s)", "", ""]
    for column in table.columns:
        blank = [""] * (len(_measured(column)) - 1)
        average += [_percent(values.mean(axis=1)) for values in _measured(column)]
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


def _percent(shares: NDArray[np.float64]) -> str:
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

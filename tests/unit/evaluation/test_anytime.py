"""Tables of several runs: cells by hand."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from rich.console import Console

from raygf.evaluation.tables import AnytimeColumn, AnytimeTable, anytime_csv, anytime_markdown, anytime_rich

NAN = float("nan")
OURS = AnytimeColumn(
    "ours",
    (0, 1),
    np.array([[0.5, 0.7], [0.6, 0.9]]),
    np.array([[0.8, 0.9], [0.8, 1.0]]),
    12,
    np.array([10.0, 14.0]),
)
SGD = AnytimeColumn("SGD", (0,), np.array([[0.25, 0.5]]), None, 12, np.array([NAN]))
TABLE = AnytimeTable((1_000_000, 2_500_000), (20_000, 300_000), (OURS, SGD))


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_markdown_by_hand():
    """Standard deviations of two values: their difference over √2."""
    header, _, *rows = cells(anytime_markdown(TABLE))
    assert header == [
        *("Exit", "Operations (M)", "Parameters (M)", "ours top-1 (%)", "ours top-5 (%)", "SGD top-1 (%)")
    ]
    assert rows == [
        ["Exit-1", "1.00", "0.020", "55.00 ± 7.07", "80.00 ± 0.00", "25.00"],
        ["Exit-2", "2.50", "0.300", "80.00 ± 14.14", "95.00 ± 7.07", "50.00"],
        ["Average", "", "", "67.50 ± 10.61", "87.50 ± 3.54", "37.50"],
        ["Training passes", "", "", "12", "", "12"],
        ["Wall time (s)", "", "", "12.0 ± 2.8", "", "-"],
        ["Seeds", "", "", "2", "", "1"],
    ]


def test_one_seed_each_says_nothing_of_seeds():
    text = anytime_markdown(AnytimeTable((1_000_000, 2_500_000), (20_000, 300_000), (SGD,)))
    assert "±" not in text and "Seeds" not in text


def test_csv_by_hand():
    rows = list(csv.DictReader(io.StringIO(anytime_csv([TABLE]))))
    assert [(row["run"], row["exit"]) for row in rows] == [
        (run, exit) for run in ("ours", "SGD") for exit in ("1", "2", "average")
    ]
    assert (rows[1]["operations"], rows[1]["parameters"], rows[1]["seeds"]) == ("2500000", "300000", "2")
    assert float(rows[1]["top1_mean"]) == pytest.approx(0.8)
    assert float(rows[1]["top1_std"]) == pytest.approx(0.2 / 2**0.5)
    assert float(rows[2]["top5_mean"]) == pytest.approx(0.875)
    assert (rows[3]["top1_mean"], rows[3]["top1_std"], rows[3]["top5_mean"]) == ("0.25", "", "")


def test_terminal_shows_the_same_cells():
    console = Console(width=200, file=io.StringIO(), color_system=None)
    console.print(anytime_rich(TABLE, "title"))
    shown = console.file.getvalue()
    for cell in ("title", "55.00 ± 7.07", "ours top-5 (%)", "37.50", "12.0 ± 2.8"):
        assert cell in shown


@pytest.mark.parametrize(
    ("seeds", "top1", "top5", "seconds"),
    [
        ((0,), np.ones((2, 2)), None, np.ones(1)),
        ((0, 1), np.ones((2, 2)), np.ones((2, 3)), np.ones(2)),
        ((0, 1), np.ones((2, 2)), None, np.ones(1)),
    ],
)
def test_columns_must_fit(seeds, top1, top5, seconds):
    with pytest.raises(ValueError, match="do not fit"):
        AnytimeColumn("x", seeds, top1, top5, 1, seconds)


def test_costs_must_fit():
    with pytest.raises(ValueError, match="SGD: its exits do not fit"):
        AnytimeTable((1,), (1,), (SGD,))

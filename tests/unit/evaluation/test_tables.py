"""The final table: its exact text, and the units that it picks."""

import io

import pytest
from rich.console import Console

from raygf.evaluation.tables import ResultColumn, ResultTable, count_unit, to_csv, to_markdown, to_rich

OPERATIONS, PARAMETERS = (352_104, 801_000, 1_204_567), (30_123, 80_456, 120_999)
META = ResultColumn("Meta-GF", (0.9123, 0.95, 0.9678), training_passes=160, seconds=75.31)
JOINT = ResultColumn("Joint", (0.9, 0.94, 0.97), training_passes=160)


MARKDOWN = """\
| Exit            | Operations (M) | Parameters (M) | Meta-GF test accuracy (%) | Joint test accuracy (%) |
| :-------------- | -------------: | -------------: | ------------------------: | ----------------------: |
| Exit-1          |          0.352 |          0.030 |                     91.23 |                   90.00 |
| Exit-2          |          0.801 |          0.080 |                     95.00 |                   94.00 |
| Exit-3          |          1.205 |          0.121 |                     96.78 |                   97.00 |
| Average         |                |                |                     94.34 |                   93.67 |
| Training passes |                |                |                       160 |                     160 |
| Wall time (s)   |                |                |                      75.3 |                       - |
"""


@pytest.fixture
def table() -> ResultTable:
    return ResultTable(OPERATIONS, PARAMETERS, (META, JOINT))


def test_markdown(table):
    assert to_markdown(table) == MARKDOWN


def test_csv(table):
    assert to_csv(table) == (
        "exit,operations,parameters,Meta-GF test accuracy (%),Joint test accuracy (%)\n"
        "1,352104,30123,91.2300,90.0000\n"
        "2,801000,80456,95.0000,94.0000\n"
        "3,1204567,120999,96.7800,97.0000\n"
        "average,,,94.3367,93.6667\n"
        "training passes,,,160,160\n"
        "wall time (s),,,75.3,\n"
    )


def test_terminal_shows_the_same_cells(table):
    text = io.StringIO()
    Console(file=text, width=120).print(to_rich(table, title="Test accuracy"))
    lines = [line.split() for line in text.getvalue().splitlines()]
    assert ["Exit-2", "0.801", "0.080", "95.00", "94.00"] in lines
    assert ["Average", "94.34", "93.67"] in lines
    assert ["Training", "passes", "160", "160"] in lines
    assert ["Wall", "time", "(s)", "75.3", "-"] in lines


def test_runs_may_have_fewer_exits():
    short = ResultColumn("short", (0.5,), training_passes=3, seconds=1.0)
    rows = to_markdown(ResultTable(OPERATIONS, PARAMETERS, (META, short))).splitlines()
    assert [row.split("|")[-2].strip() for row in rows[2:6]] == ["50.00", "-", "-", "50.00"]


def test_a_title_with_a_bar_stays_one_cell():
    table = ResultTable(OPERATIONS, PARAMETERS, (ResultColumn("a|b", (0.5, 0.5, 0.5), 1),))
    assert r"a\|b test accuracy (%)" in to_markdown(table)


@pytest.mark.parametrize(
    ("counts", "texts", "name"),
    [
        ((6_900_000, 137_300_000), ["6.90", "137.30"], "M"),
        ((350_000, 2_000_000), ["0.350", "2.000"], "M"),
        ((4_321, 120_000), ["0.0043", "0.1200"], "M"),
        ((4_321, 99_999), ["4.32", "100.00"], "K"),
    ],
)
def test_units_keep_the_smallest_count_legible(counts, texts, name):
    unit = count_unit(counts)
    assert unit.name == name
    assert [unit.text(count) for count in counts] == texts


@pytest.mark.parametrize("accuracies", [(), (0.1, 0.2, 0.3, 0.4)])
def test_accuracies_must_fit_the_costs(accuracies):
    with pytest.raises(ValueError, match="exits, 3 costs"):
        ResultTable(OPERATIONS, PARAMETERS, (ResultColumn("run", accuracies, 1),))


def test_costs_must_fit_each_other():
    with pytest.raises(ValueError, match="2 operation counts, 3 parameter counts"):
        ResultTable(OPERATIONS[:2], PARAMETERS, ())

"""The result table: its exact text, mean and spread over seeds, and the units that it picks."""

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from raygf.evaluation.tables import (
    ResultColumn,
    ResultTable,
    count_unit,
    csv_text,
    operations_text,
    passes_text,
    to_csv,
    to_markdown,
    to_rich,
)

NAN = float("nan")


def test_csv_leaves_what_is_not_known_empty():
    assert csv_text([["a", None, NAN, 0.0, np.float64("nan")]]) == "a,,,0.0,\n"


META = ResultColumn("Meta-GF", [(0.9123, 0.95, 0.9678)], 160, [75.31], training_operations=398_592_000_000)
JOINT = ResultColumn("SGD", [(0.9, 0.94, 0.97)], 5.125, [NAN], training_operations=12_767_000_000)
ONE_SEED = ResultTable((352_104, 801_000, 1_204_567), (30_123, 80_456, 120_999), (META, JOINT))

OURS = ResultColumn("ours", [[0.5, 0.7], [0.6, 0.9]], 12, [10.0, 14.0], [[0.8, 0.9], [0.8, 1.0]])
SGD = ResultColumn("a|b", [[0.25, 0.5]], 12, [NAN])
SEEDS = ResultTable((1_000_000, 2_500_000), (20_000, 300_000), (OURS, SGD), "top-1")


MARKDOWN = """\
| Exit                | Operations (M) | Parameters (M) | Meta-GF test accuracy (%) | SGD test accuracy (%) |
| :------------------ | -------------: | -------------: | ------------------------: | --------------------: |
| Exit-1              |          0.352 |          0.030 |                     91.23 |                 90.00 |
| Exit-2              |          0.801 |          0.080 |                     95.00 |                 94.00 |
| Exit-3              |          1.205 |          0.121 |                     96.78 |                 97.00 |
| Average             |                |                |                     94.34 |                 93.67 |
| Training passes     |                |                |                       160 |                   5.1 |
| Training operations |                |                |                     399 G |                12.8 G |
| Wall time (s)       |                |                |                      75.3 |                     - |
"""


def test_latency_stands_beside_operations_and_says_where():
    table = replace(ONE_SEED, latency={1: (0.5, 1.234, 2.0), 64: (10.0, 20.0, 30.0)}, note="on a fast one")
    header, _, _, second, *_, last = to_markdown(table).splitlines()
    assert "| Parameters (M) | Batch 1 (ms) | Batch 64 (ms) | Meta-GF" in header
    assert [cell.strip() for cell in second.split("|")][3:6] == ["0.080", "1.23", "20.00"]
    assert last == "on a fast one"
    rows = list(csv.DictReader(io.StringIO(to_csv([table, SEEDS]))))
    assert [row["ms_batch_64"] for row in rows[:5]] == ["10.0", "20.0", "30.0", "", "10.0"]
    assert {row["ms_batch_1"] for row in rows if row["run"] == "ours"} == {""}


def test_markdown_of_seeds_by_hand():
    """Standard deviations of two values: their difference over √2."""
    header, _, *rows = (
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in to_markdown(SEEDS).splitlines()
    )
    assert header == [
        *("Exit", "Operations (M)", "Parameters (M)", "ours top-1 (%)", "ours top-5 (%)", r"a\|b top-1 (%)")
    ]
    assert rows == [
        ["Exit-1", "1.00", "0.020", "55.00 ± 7.07", "80.00 ± 0.00", "25.00"],
        ["Exit-2", "2.50", "0.300", "80.00 ± 14.14", "95.00 ± 7.07", "50.00"],
        ["Average", "", "", "67.50 ± 10.61", "87.50 ± 3.54", "37.50"],
        ["Training passes", "", "", "12", "", "12"],
        ["Training operations", "", "", "0", "", "0"],
        ["Wall time (s)", "", "", "12.0 ± 2.8", "", "-"],
        ["Seeds", "", "", "2", "", "1"],
    ]


def test_terminal_shows_the_cells_of_the_markdown():
    assert to_markdown(ONE_SEED) == MARKDOWN
    text = io.StringIO()
    Console(file=text, width=120).print(to_rich(ONE_SEED, title="Test accuracy"))
    lines = [line.split() for line in text.getvalue().splitlines()]
    rows = [row.replace("|", " ").split() for row in MARKDOWN.splitlines()[2:]]
    assert ["Test", "accuracy"] in lines and len(rows) == 7
    assert [line for line in lines if line in rows] == rows


def test_csv_by_hand():
    rows = list(csv.DictReader(io.StringIO(to_csv([SEEDS]))))
    places = [(run, exit) for run in ("ours", "a|b") for exit in ("1", "2", "average")]
    assert [(row["run"], row["exit"]) for row in rows] == places
    assert (rows[1]["operations"], rows[1]["parameters"], rows[1]["seeds"]) == ("2500000", "300000", "2")
    assert float(rows[1]["top1_mean"]) == pytest.approx(0.8)
    assert float(rows[1]["top1_std"]) == pytest.approx(0.2 / 2**0.5)
    assert float(rows[2]["top5_mean"]) == pytest.approx(0.875)
    assert (rows[3]["top1_mean"], rows[3]["top1_std"], rows[3]["top5_mean"]) == ("0.25", "", "")


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
    assert (unit.name, [unit.text(count) for count in counts]) == (name, texts)


def test_compute_is_readable():
    assert [passes_text(passes) for passes in (8.0, 5.125, 7 + 1 / 3, 0)] == ["8", "5.1", "7.3", "0"]
    counts = {0: "0", 999: "999", 999_999: "1 M", 1_240: "1.24 K", 10**18: "1 E", 123_456_789: "123 M"}
    assert [operations_text(count) for count in counts] == list(counts.values())

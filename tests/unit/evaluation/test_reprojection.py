"""Eq. 7: what the paper prints, what follows from it, and what the losses really do."""

from __future__ import annotations

import csv
import io
import math

import pytest
import torch

from raygf.evaluation.reprojection import (
    ANGLES,
    EPSILON,
    RATIOS,
    cases_csv,
    cases_markdown,
    check_case,
    check_cases,
    reproject,
)

CASES = check_cases()


def test_a_case_by_hand():
    """g_1 = (1, 0), g_2 = (−1/4, √3/4): ratio 1/2, 120°. ĝ_1 = (3/4, √3/4), ĝ_2 = (0, √3/4)."""
    case = check_case(0.5, 120.0)
    assert case.printed_threshold == pytest.approx(1 / 3)
    assert case.exact_threshold == pytest.approx(1 / 2)
    assert case.printed_both == pytest.approx(9 / 16 + 12 / 16)  # ‖(3/4, √3/2)‖²
    assert case.printed_small == pytest.approx(1 + 3 / 16)  # ‖(1, √3/4)‖²
    assert case.exact_both == pytest.approx(9 / 16 + 6 / 16)  # (3/4, √3/2)·(3/4, √3/4)
    assert case.exact_small == pytest.approx(3 / 4 + 3 / 16)


def test_reprojection_by_hand():
    g_1, g_2 = torch.tensor([2.0, 0.0]), torch.tensor([-1.0, 1.0])
    assert reproject(g_1, g_2).tolist() == [1.0, 1.0]
    assert reproject(g_2, g_1).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.ratio:g} at {case.angle:g}")
def test_printed_terms_are_squared_lengths_of_the_update(case):
    """Eqs. 4 and 6 are ‖u‖², not u·(g_1 + g_2)."""
    turn = math.radians(case.angle)
    g_1 = torch.tensor([1.0, 0.0], dtype=torch.float64)
    g_2 = case.ratio * torch.tensor([math.cos(turn), math.sin(turn)], dtype=torch.float64)
    both = reproject(g_1, g_2) + reproject(g_2, g_1)
    small = g_1 + reproject(g_2, g_1)
    assert case.printed_both == pytest.approx(float(both @ both))
    assert case.printed_small == pytest.approx(float(small @ small))
    assert case.printed_both > case.exact_both + 1e-3


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.ratio:g} at {case.angle:g}")
def test_equation_7_decides_the_printed_terms(case):
    assert (case.printed_both > case.printed_small) == (case.ratio > case.printed_threshold)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.ratio:g} at {case.angle:g}")
def test_minus_cosine_decides_the_losses(case):
    assert (case.exact_both > case.exact_small) == (case.ratio > case.exact_threshold)
    assert (case.measured_both > case.measured_small) == (case.ratio > case.exact_threshold)
    for measured, exact in ((case.measured_both, case.exact_both), (case.measured_small, case.exact_small)):
        assert measured == pytest.approx(exact, abs=5 * EPSILON)


def test_the_two_conditions_disagree_in_places():
    """Otherwise the distinction would be idle: both ways, and cases where each holds and fails."""
    printed = [case.ratio > case.printed_threshold for case in CASES]
    exact = [case.ratio > case.exact_threshold for case in CASES]
    assert set(zip(printed, exact, strict=True)) == {(a, b) for a in (True, False) for b in (True, False)}


def test_table_by_hand():
    lines = cases_markdown([check_case(0.5, 135.0)]).splitlines()
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells[:4] == ["0.5", "135", "0.707", "no"]
    assert cells[6:8] == ["0.707", "no"]
    assert cells[8:10] == ["0.625", "0.771"]
    assert len(cases_markdown(CASES).splitlines()) == 2 + len(RATIOS) * len(ANGLES)


def test_csv_has_every_number():
    rows = list(csv.DictReader(io.StringIO(cases_csv(CASES))))
    assert len(rows) == len(CASES)
    assert float(rows[3]["measured_small"]) == CASES[3].measured_small
    assert float(rows[3]["printed_threshold"]) == CASES[3].printed_threshold

"""The toy problem: gradients against autograd, methods against steps by hand; Eq. 7 against the losses."""

import csv
import io
import math

import pytest
import torch
from torch.testing import assert_close
from torchjd.aggregation import PCGradWeighting
from toy import (
    ANGLES,
    LR,
    RATIOS,
    START,
    cases_csv,
    cases_markdown,
    check_case,
    check_cases,
    gradients,
    loss_figure,
    losses_at,
    reproject,
    shared_cosine_at,
    task_losses,
    thetas,
    train_alone,
    train_metagf,
    train_sgd,
    train_weighted,
    trajectory_csv,
    trajectory_figure,
)

BEGIN = torch.tensor(START, dtype=torch.float64)


@pytest.fixture(scope="module")
def runs():
    weighting = PCGradWeighting()
    methods = [train_sgd(40), train_weighted("PCGrad", weighting, 40), train_metagf(40)]
    return methods, [train_alone(task, 40) for task in (0, 1)]


def test_bowls_lie_where_the_docstring_says():
    """Below the axis; at (7, −8.4) and (−7, −8.4) the losses have their least values."""
    x = torch.linspace(-11, 11, 221, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(x, x, indexing="xy"), dim=-1)
    for task, place in ((0, 7.0), (1, -7.0)):
        values = task_losses(grid, grid)[task]
        best = grid.reshape(-1, 2)[values.argmin()]
        assert best[0].item() == pytest.approx(place, abs=0.06)
        assert best[1].item() == pytest.approx(-8.4, abs=0.06)
    # On the axis the blend is 0; far below, the bowl alone: f_1(7, −8) = −20·tanh 4.
    zero = torch.tensor([3.0, 0.0], dtype=torch.float64)
    assert [loss.item() for loss in task_losses(zero, zero)] == [0.0, 0.0]
    low = torch.tensor([7.0, -8.0], dtype=torch.float64)
    expected = -20 * torch.tanh(torch.tensor(4.0, dtype=torch.float64))
    assert_close(task_losses(low, low)[0], expected)


@pytest.mark.parametrize("shift", [0.0, -1.3, 0.4])
def test_gradients_are_those_of_autograd_and_sgd_follows_their_sum(shift):
    point = BEGIN + shift
    expected = torch.autograd.functional.jacobian(losses_at, point)
    assert_close(gradients(point), expected)
    assert expected[0, 6:].tolist() == expected[1, 4:6].tolist() == [0.0, 0.0]  # each task's own numbers
    assert_close(train_sgd(1).points[1], BEGIN - LR * gradients(BEGIN).sum(dim=0))


def test_pcgrads_weights_give_equation_3():
    """ĝ_1 + ĝ_2, each gradient without its part along the other, written out by hand."""
    # θ_1 lies in the bowls, θ_2 on its way there: the tasks disagree about w_1 and w_2.
    point = torch.tensor([0.5, -2.0, 0.5, -2.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    assert shared_cosine_at(point) < 0
    g_1, g_2 = gradients(point)[:, :4]
    hat_1 = g_1 - (g_1 @ g_2) / (g_2 @ g_2) * g_2
    hat_2 = g_2 - (g_1 @ g_2) / (g_1 @ g_1) * g_1
    rows = torch.stack([g_1, g_2])
    weights = PCGradWeighting()(rows @ rows.T).double()
    assert_close(weights @ rows, hat_1 + hat_2, rtol=1e-5, atol=1e-6)
    assert abs(float(hat_1 @ g_2)) < 1e-9 and abs(float(hat_2 @ g_1)) < 1e-9


def test_metagf_mixes_the_deltas_of_what_is_shared_and_keeps_what_a_task_has_alone(runs):
    """w_1 moves to between where the two tasks alone take it; a belongs to task 1, so its weight is 1."""
    (*_, metagf), alone = runs
    assert metagf.steps.tolist() == [0, 10, 20, 30, 40]
    merged, one, two = (run.points[index] for run, index in ((metagf, 1), (alone[0], 10), (alone[1], 10)))
    assert (merged[:4] > torch.minimum(one, two)[:4] - 1e-12).all()
    assert (merged[:4] < torch.maximum(one, two)[:4] + 1e-12).all()
    assert_close(merged[4:6], one[4:6])
    assert_close(merged[6:], two[6:])


def test_every_method_goes_downhill(runs):
    methods, alone = runs
    for run in methods:
        assert losses_at(run.points[-1]).sum() < losses_at(BEGIN).sum() - 1
    for task, run in enumerate(alone):
        assert losses_at(run.points[-1])[task] < losses_at(BEGIN)[task] - 0.5


def test_trajectories_are_what_was_trained(runs):
    methods, alone = runs
    figure = trajectory_figure(methods, alone)
    panels = figure.axes[:3]
    assert [axes.get_title() for axes in panels] == ["joint SGD", "PCGrad", "Meta-GF"]
    drawn = {line.get_label(): line for line in panels[2].lines}
    path = thetas(methods[2].points)[1]
    assert list(drawn[r"$\theta_2$"].get_xdata()) == pytest.approx(path[:, 0].tolist())
    assert list(drawn[r"$\theta_2$"].get_ydata()) == pytest.approx(path[:, 1].tolist())
    for task, run in enumerate(alone):
        reference = thetas(run.points)[task]
        assert list(drawn[run.method].get_xdata()) == pytest.approx(reference[:, 0].tolist())
    assert len({drawn[run.method].get_linestyle() for run in alone}) == 2
    assert (list(drawn["start"].get_xdata()), list(drawn["start"].get_ydata())) == ([10.0], [2.0])
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert not any(legend.get_window_extent().overlaps(axes.get_window_extent()) for axes in panels)


def test_loss_figure_draws_totals_and_cosines(runs):
    methods, alone = runs
    left, right = loss_figure(methods, alone).axes
    lines = {line.get_label(): line for line in left.lines}
    total = losses_at(methods[0].points).sum(dim=1)
    assert list(lines["joint SGD"].get_ydata()) == pytest.approx(total.tolist())
    best = losses_at(alone[0].points)[:, 0] + losses_at(alone[1].points)[:, 1]
    assert list(lines["each task alone"].get_ydata()) == pytest.approx(best.tolist())
    cosines = {line.get_label(): list(line.get_ydata()) for line in right.lines}
    assert cosines["Meta-GF"] == pytest.approx([shared_cosine_at(point) for point in methods[2].points])
    table = list(csv.DictReader(io.StringIO(trajectory_csv(methods))))
    assert len(table) == 41 + 41 + 5
    assert (table[0]["method"], table[0]["step"], table[0]["theta_1_x"]) == ("joint SGD", "0", "10.0")
    assert float(table[-1]["f_2"]) == losses_at(methods[2].points[-1])[1].item()


def test_a_case_by_hand():
    """g_1 = (1, 0), g_2 = (−1/4, √3/4): ratio 1/2, 120°. ĝ_1 = (3/4, √3/4), ĝ_2 = (0, √3/4)."""
    case = check_case(0.5, 120.0)
    assert case.printed_threshold == pytest.approx(1 / 3)
    assert case.exact_threshold == pytest.approx(1 / 2)
    assert case.printed_both == pytest.approx(9 / 16 + 12 / 16)  # ‖(3/4, √3/2)‖²
    assert case.printed_small == pytest.approx(1 + 3 / 16)  # ‖(1, √3/4)‖²
    assert case.exact_both == pytest.approx(9 / 16 + 6 / 16)  # (3/4, √3/2)·(3/4, √3/4)
    assert case.exact_small == pytest.approx(3 / 4 + 3 / 16)
    g_1, g_2 = torch.tensor([2.0, 0.0]), torch.tensor([-1.0, 1.0])
    assert reproject(g_1, g_2).tolist() == [1.0, 1.0]
    assert reproject(g_2, g_1).tolist() == [0.0, 1.0]


def test_equation_7_decides_the_printed_terms_and_minus_cosine_the_losses():
    """Eqs. 4 and 6 are ‖u‖², not u·(g_1 + g_2); the two conditions disagree both ways."""
    verdicts = set()
    for case in check_cases():
        turn = math.radians(case.angle_degrees)
        g_1 = torch.tensor([1.0, 0.0], dtype=torch.float64)
        g_2 = case.ratio * torch.tensor([math.cos(turn), math.sin(turn)], dtype=torch.float64)
        both, small = reproject(g_1, g_2) + reproject(g_2, g_1), g_1 + reproject(g_2, g_1)
        assert case.printed_both == pytest.approx(float(both @ both))
        assert case.printed_small == pytest.approx(float(small @ small))
        assert case.printed_both > case.exact_both + 1e-3
        assert case.measured_both == pytest.approx(case.exact_both, abs=5 * LR)
        assert case.measured_small == pytest.approx(case.exact_small, abs=5 * LR)
        printed, exact = case.ratio > case.printed_threshold, case.ratio > case.exact_threshold
        assert (case.printed_both > case.printed_small) == printed
        assert (case.exact_both > case.exact_small) == exact
        assert (case.measured_both > case.measured_small) == exact
        verdicts.add((printed, exact))
    assert len(verdicts) == 4


def test_table_of_equation_7_by_hand():
    lines = cases_markdown([check_case(0.5, 135.0)]).splitlines()
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells[:4] == ["0.5", "135", "0.707", "no"]
    assert cells[6:8] == ["0.707", "no"]
    assert cells[8:10] == ["0.625", "0.771"]
    cases = check_cases()
    rows = list(csv.DictReader(io.StringIO(cases_csv(cases))))
    assert len(rows) == len(cases) == len(cases_markdown(cases).splitlines()) - 2 == len(RATIOS) * len(ANGLES)
    assert float(rows[3]["measured_small"]) == cases[3].measured_small
    assert float(rows[3]["printed_threshold"]) == cases[3].printed_threshold

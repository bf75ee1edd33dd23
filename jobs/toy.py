"""The paper's toy problem: trajectories of SGD, PCGrad and Meta-GF on two tasks, and Eq. 7 in numbers.

python jobs/toy.py --out toy

Meta-GF paper, Section 3.1 and Fig. 1. Two tasks share two points of the plane, w_1 and w_2, and mix them with
numbers of their own: ``θ_1 = a_1 w_1 + a_2 w_2``, ``θ_2 = b_1 w_1 + b_2 w_2``; minimised is
``f_1(θ_1) + f_2(θ_2)``. The paper gives the start, w_1 = (5, 1.5), w_2 = (5, 0.5), a = b = (1, 1), and the
learning rate 0.001, but **does not print f_1 and f_2**. In their place stand the two losses of CAGrad's toy
problem (Liu, Liu, Jin, Stone, Liu: "Conflict-Averse Gradient Descent for Multi-task Learning", NeurIPS 2021),
which the paper cites and compares with: two basins, at (7, −8.4) and (−7, −8.4), behind a steep valley. So
the curves have the form of the paper's, not its numbers. The bottom of that valley is a logarithmic pole: a
step that falls near it can go anywhere, so a method's result there is one trajectory, not a statistic.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from raygf.errors import loading

with loading():
    import numpy as np
    import torch
    from matplotlib.axes import Axes
    from matplotlib.contour import QuadContourSet
    from matplotlib.figure import Figure
    from torch import Tensor
    from torchjd.aggregation import PCGradWeighting

    from raygf.cli import main, parse_flags
    from raygf.compute import torch_threads
    from raygf.config.fields import Limits, Section
    from raygf.config.run import MILLION, Name
    from raygf.evaluation.figures import legend_outside, new_figure, plain_axes, run_style
    from raygf.evaluation.report import write_files
    from raygf.evaluation.tables import csv_text, markdown_table
    from raygf.fusion.fuse import fuse, fusion_weights
    from raygf.fusion.learned import carry
    from raygf.methods.registry import method_title
    from raygf.training.space import FlatSpace, Segments, Slot


@dataclass(frozen=True)
class ToyConfig(Section):
    """What to draw, and where to write it."""

    out: Name = "toy"
    """Folder for the figures and tables."""
    steps: Annotated[int, Limits(10, MILLION)] = 1500
    """SGD steps of each task."""


def draw_toy(argv: Sequence[str]) -> dict[str, Any]:
    """Train with the three methods, write figures and tables, print the table of Eq. 7."""
    config = parse_flags(ToyConfig, "The Meta-GF paper's toy problem (Section 3.1, Fig. 1).", argv)
    started = time.perf_counter()
    with torch_threads(1):  # eight parameters: more threads would only wait for each other
        alone = [train_alone(task, config.steps) for task in (0, 1)]
        methods = [
            train_sgd(config.steps),
            train_weighted(method_title("pcgrad"), PCGradWeighting(), config.steps),
            train_metagf(config.steps),
        ]
    cases = check_cases()
    paths = write_files(
        Path(config.out),
        {
            "toy_trajectories.png": trajectory_figure(methods, alone),
            "toy_losses.png": loss_figure(methods, alone),
            "toy_trajectories.csv": trajectory_csv([*methods, *alone]),
            "eq7.md": cases_markdown(cases),
            "eq7.csv": cases_csv(cases),
        },
    )
    print(cases_markdown(cases))
    return {
        "final_losses": {run.method: losses_at(run.points[-1]).tolist() for run in methods},
        "steps": config.steps,
        "files": [str(path) for path in paths],
        "seconds": round(time.perf_counter() - started, 3),
    }


# The problem: eight parameters, two losses and their gradients.

START = (5.0, 1.5, 5.0, 0.5, 1.0, 1.0, 1.0, 1.0)
"""w_1, w_2, a, b."""
LR = 0.001
"""The paper's learning rate in Section 3.1."""
SHARED = slice(0, 4)
"""Where w_1 and w_2 lie in the vector of all eight parameters."""


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Every point that a method went through, S steps: (S + 1, 8), float64.

    ``steps`` (points,): steps that each task had taken by then.
    """

    method: str
    steps: Tensor
    points: Tensor


def task_losses(theta_1: Tensor, theta_2: Tensor) -> tuple[Tensor, Tensor]:
    """``f_1(θ_1)`` and ``f_2(θ_2)`` of points (..., 2): (...,) each.

    Above the axis (y > 0) a loss is the logarithm of the distance to a curve, below it a bowl; tanh(y/2)
    blends them.
    """
    return _loss(theta_1, -7.0, 0.0, 1.0, 7.0), _loss(theta_2, 3.0, 2.0, -1.0, -7.0)


def _loss(theta: Tensor, offset: float, constant: float, sign: float, centre: float) -> Tensor:
    x, y = theta[..., 0], theta[..., 1]
    distance = (0.5 * (offset - x) + sign * torch.tanh(y) + constant).abs()
    ridge = distance.clamp(min=5e-6).log() + 6
    bowl = ((centre - x) ** 2 + 0.1 * (y + 8) ** 2) / 10 - 20
    blend = torch.tanh(0.5 * y)
    return ridge * blend.clamp(min=0) + bowl * (-blend).clamp(min=0)


def thetas(point: Tensor) -> tuple[Tensor, Tensor]:
    """``θ_1`` and ``θ_2`` (..., 2) of parameters (..., 8)."""
    w_1, w_2, a, b = torch.split(point, 2, dim=-1)
    return a[..., :1] * w_1 + a[..., 1:] * w_2, b[..., :1] * w_1 + b[..., 1:] * w_2


def losses_at(point: Tensor) -> Tensor:
    """Both tasks' losses (..., 2) at parameters (..., 8)."""
    return torch.stack(task_losses(*thetas(point)), dim=-1)


def gradients(point: Tensor) -> Tensor:
    """The two tasks' gradients (2, 8) at ``point`` (8,): by autograd to θ, from there by the chain rule."""
    both = [theta.detach().requires_grad_() for theta in thetas(point)]
    slope_1, slope_2 = torch.autograd.grad(torch.stack(task_losses(*both)).sum(), both)
    w_1, w_2, a, b = torch.split(point, 2)
    rows = point.new_zeros(2, 8)
    rows[0, :6] = torch.cat([a[0] * slope_1, a[1] * slope_1, (w_1 @ slope_1)[None], (w_2 @ slope_1)[None]])
    rows[1, :4] = torch.cat([b[0] * slope_2, b[1] * slope_2])
    rows[1, 6:] = torch.stack([w_1 @ slope_2, w_2 @ slope_2])
    return rows


def shared_cosine_at(point: Tensor) -> float:
    """Cosine between the tasks' gradients over w_1 and w_2 at ``point`` (8,)."""
    rows = gradients(point)[:, SHARED]
    return float(torch.nn.functional.cosine_similarity(rows[0], rows[1], dim=0))


# The methods.


def train_sgd(steps: int) -> Trajectory:
    """Joint SGD: the gradients are added."""
    return _descend(method_title("sgd"), lambda rows: rows.sum(dim=0), steps)


def train_alone(task: int, steps: int, start: Tensor | None = None) -> Trajectory:
    """One task (0 or 1) by itself, from ``start`` (8,): training without interference."""
    return _descend(f"task {task + 1} alone", lambda rows: rows[task], steps, start)


def train_weighted(method: str, weighting: Callable[[Tensor], Tensor], steps: int) -> Trajectory:
    """Steps along ``Σ_i w_i g_i`` on what the tasks share, along its own gradient on what a task has alone.

    Args:
        weighting: From the Gramian (2, 2) of the tasks' gradients over w_1 and w_2 to the weights (2,).
    """

    def direction(rows: Tensor) -> Tensor:
        weights = weighting(rows[:, SHARED] @ rows[:, SHARED].T).to(rows)
        merged = rows.sum(dim=0)
        merged[SHARED] = weights @ rows[:, SHARED]
        return merged

    return _descend(method, direction, steps)


def _descend(
    method: str, direction: Callable[[Tensor], Tensor], steps: int, start: Tensor | None = None
) -> Trajectory:
    """Gradient descent with the direction made of both gradients (2, 8) → (8,)."""
    point = torch.tensor(START, dtype=torch.float64) if start is None else start
    points = [point]
    for _ in range(steps):
        point = point - LR * direction(gradients(point))
        points.append(point)
    return Trajectory(method, torch.arange(steps + 1), torch.stack(points))


SPACE = FlatSpace(
    (Slot("w1", (2,), 0, 2), Slot("w2", (2,), 2, 4), Slot("a", (2,), 4, 6), Slot("b", (2,), 6, 8))
)
OWNED = torch.tensor([[True, True, True, False], [True, True, False, True]])
"""Which task (row) depends on which of w_1, w_2, a, b."""


def train_metagf(steps: int, epoch: int = 10) -> Trajectory:
    """Meta-GF: both tasks take ``epoch`` steps alone, then as many steps of Adam fit the fusion weights.

    The paper's Algorithm 1 with raygf's own segments (here w_1, w_2, a and b), weights and merge.
    """
    segments, eta = Segments("tensor", SPACE), torch.ones(2, 4, dtype=torch.float64)
    point = torch.tensor(START, dtype=torch.float64)
    points = [point]
    for _ in range(steps // epoch):
        deltas = [train_alone(task, epoch, point).points[-1] - point for task in (0, 1)]
        fitted = _fit(eta, point, deltas, segments, epoch)
        point = fuse(point, deltas, fusion_weights(fitted, OWNED), segments)
        eta = carry(eta, fitted, 0.9)
        points.append(point)
    return Trajectory(method_title("metagf"), epoch * torch.arange(len(points)), torch.stack(points))


def _fit(eta: Tensor, point: Tensor, deltas: list[Tensor], segments: Segments, steps: int) -> Tensor:
    """η (2, 4) after some steps of Adam on ``F(W + Σ_i α_i Δ_i)`` (paper, Eq. 11)."""
    fitted = torch.nn.Parameter(eta.clone())
    adam = torch.optim.Adam([fitted], lr=0.1)
    for _ in range(steps):
        adam.zero_grad()
        total = losses_at(fuse(point, deltas, fusion_weights(fitted, OWNED), segments)).sum()
        torch.autograd.backward(total)
        adam.step()
    return fitted.detach()


# The figures.


def trajectory_figure(trajectories: Sequence[Trajectory], alone: Sequence[Trajectory]) -> Figure:
    """A panel a method: where θ_1 and θ_2 went, over the contours of f_1 + f_2 at one common θ.

    Args:
        alone: the two tasks trained by themselves, drawn dashed and dotted in every panel.
    """
    figure = new_figure(4.2 * len(trajectories) + 1.2, 4.6)
    panels = figure.subplots(1, len(trajectories), sharey=True, squeeze=False)[0]
    for axes, trajectory in zip(panels, trajectories, strict=True):
        contours = _draw_surface(axes)
        for task in (0, 1):
            reference = thetas(alone[task].points)[task]
            line = {"color": "black", "linestyle": ("--", ":")[task], "linewidth": 1.6}
            axes.plot(*reference.T, **line, label=alone[task].method)
            path, colour = thetas(trajectory.points)[task], run_style(task)["color"]
            axes.plot(*path.T, color=colour, linewidth=2.2, label=rf"$\theta_{task + 1}$")
            axes.plot(*path[-1], color=colour, marker="*", markersize=11, markeredgecolor="white")
        axes.plot(*thetas(trajectory.points)[0][0], "o", color="black", markersize=6, label="start")
        axes.set_title(trajectory.method)
        axes.set_xlabel(r"$\theta_x$")
    panels[0].set_ylabel(r"$\theta_y$")
    figure.colorbar(contours, ax=list(panels), pad=0.02, label=r"$f_1(\theta) + f_2(\theta)$")
    legend_outside(figure, panels[0], below=5)
    return figure


def _draw_surface(axes: Axes) -> QuadContourSet:
    x, y = np.meshgrid(np.linspace(-11.0, 12.0, 240), np.linspace(-10.0, 4.0, 240))
    f_1, f_2 = task_losses(*2 * [torch.from_numpy(np.stack([x, y], axis=-1))])
    total = (f_1 + f_2).numpy()
    contours = axes.contourf(x, y, total, levels=24, cmap="Greys_r", alpha=0.85)
    axes.contour(x, y, total, levels=12, colors="white", linewidths=0.4, alpha=0.7)
    return contours


def loss_figure(trajectories: Sequence[Trajectory], alone: Sequence[Trajectory]) -> Figure:
    """Left: the total loss over the steps; right: cosine between the tasks' gradients on what they share."""
    figure = new_figure(11, 4)
    left, right = figure.subplots(1, 2)
    for index, run in enumerate(trajectories):
        style = run_style(index) | {"marker": None, "label": run.method}
        left.plot(run.steps, losses_at(run.points).sum(dim=-1), **style)
        count = len(run.points)
        picked = sorted({round(i) for i in np.linspace(0, count - 1, min(count, 200))})
        right.plot(run.steps[picked], [shared_cosine_at(point) for point in run.points[picked]], **style)
    best = sum(losses_at(run.points)[:, task] for task, run in enumerate(alone))
    left.plot(alone[0].steps, best, color="black", linestyle=":", label="each task alone")
    left.set_ylabel(r"total loss $f_1(\theta_1) + f_2(\theta_2)$")
    right.set_ylabel(r"cosine of the gradients on $\mathbf{w}_1, \mathbf{w}_2$")
    right.axhline(0, color="grey", linewidth=0.8)
    for axes in (left, right):
        axes.set_xlabel("SGD steps of each task")
        plain_axes(axes)
    legend_outside(figure, left)
    return figure


def trajectory_csv(trajectories: Sequence[Trajectory]) -> str:
    """One line a method and step: θ_1, θ_2 and both losses."""
    rows: list[list[object]] = [
        ["method", "step", "theta_1_x", "theta_1_y", "theta_2_x", "theta_2_y", "f_1", "f_2"]
    ]
    for trajectory in trajectories:
        table = torch.cat([*thetas(trajectory.points), losses_at(trajectory.points)], dim=-1)
        lines = zip(trajectory.steps.tolist(), table.tolist(), strict=True)
        rows += [[trajectory.method, step, *values] for step, values in lines]
    return csv_text(rows)


# Eq. 7.

RATIOS, ANGLES = (0.1, 0.3, 0.45, 0.7, 0.9), (100.0, 120.0, 135.0, 150.0, 165.0)


@dataclass(frozen=True)
class Case:
    """What projecting conflicting gradients costs (Eqs. 1–7): one pair of gradients.

    Two gradients g_1, g_2 with ``ratio`` ‖g_2‖/‖g_1‖ ≤ 1 and an angle α above 90°. PCGrad replaces both by
    their parts normal to each other (Eq. 3), ``u = ĝ_1 + ĝ_2`` ("both"); the other way projects only the
    small one, ``u = g_1 + ĝ_2`` ("small"). Eq. 7 says that projecting both is the better way if and only if
    ``‖g_2‖/‖g_1‖ > −0.5 cos α / sin² α``, the printed threshold.

    **The paper's Eqs. 4–6 are not the first-order change of the loss.** To first order a step ``−ε u`` lowers
    ``f_1 + f_2`` by ``ε u·(g_1 + g_2)``; what Eqs. 4, 5 and 6 print is ``ε ‖u‖²``, which is the same only for
    the plain sum ``u = g_1 + g_2`` (Eq. 2). Eq. 7 follows from the printed terms, and does so exactly. With
    the first-order terms the condition is ``‖g_2‖/‖g_1‖ > −cos α``, the exact threshold: as much about the
    norms, with another threshold. The change measured on quadratic losses with these gradients, after a step
    of ε = 0.001, sides with the first-order terms.

    The six reductions of f_1 + f_2 are per unit of ε and of ‖g_1‖².
    """

    ratio: float
    angle_degrees: float
    printed_threshold: float
    exact_threshold: float
    printed_both: float
    """Eq. 4 of the paper."""
    printed_small: float
    """Eq. 6 of the paper."""
    exact_both: float
    exact_small: float
    measured_both: float
    measured_small: float


def check_cases() -> list[Case]:
    """A case for every pair of ``RATIOS`` and ``ANGLES``."""
    return [check_case(ratio, angle) for ratio in RATIOS for angle in ANGLES]


def check_case(ratio: float, angle: float) -> Case:
    """The case of ``g_1 = (1, 0)`` and ``g_2`` of length ``ratio`` at ``angle`` degrees to it."""
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    g_1 = torch.tensor([1.0, 0.0], dtype=torch.float64)
    g_2 = ratio * torch.tensor([cosine, sine], dtype=torch.float64)
    dot, one, two, total = g_1 @ g_2, g_1 @ g_1, g_2 @ g_2, g_1 + g_2
    printed_both = one + two - dot**2 / one - dot**2 / two + 2 * dot * (dot**2 / (one * two) - 1)
    both, small = reproject(g_1, g_2) + reproject(g_2, g_1), g_1 + reproject(g_2, g_1)
    exact = [float(update @ total) for update in (both, small)]
    measured = [_measured(total, update) for update in (both, small)]
    thresholds = -0.5 * cosine / sine**2, -cosine
    return Case(
        ratio, angle, *thresholds, float(printed_both), float(one + two - dot**2 / one), *exact, *measured
    )


def reproject(gradient: Tensor, other: Tensor) -> Tensor:
    """Eq. 3: the part of ``gradient`` (d,) that is normal to ``other`` (d,)."""
    return gradient - (gradient @ other) / (other @ other) * other


def _measured(total: Tensor, update: Tensor) -> float:
    """Reduction of ``Σ_i g_i·x + ‖x‖²/2`` (i = 1, 2) by the step ``x = −ε u`` from 0, divided by ε = LR."""
    x = -LR * update
    return -float(total @ x + x @ x) / LR


def cases_markdown(cases: Sequence[Case]) -> str:
    """One row a case; "yes" where projecting both lowers the loss more."""
    header = ["‖g₂‖/‖g₁‖", "α (°)", "Eq. 7: −0.5 cos α/sin² α", "holds", "Eq. 4", "Eq. 6", "−cos α", "holds"]
    header += ["first order, both", "first order, small", "measured, both", "measured, small"]
    return markdown_table(header, [_case_row(case) for case in cases])


def _case_row(case: Case) -> list[str]:
    def condition(threshold: float) -> tuple[str, str]:
        return f"{threshold:.3f}", "yes" if case.ratio > threshold else "no"

    printed = case.printed_both, case.printed_small
    other = case.exact_both, case.exact_small, case.measured_both, case.measured_small
    return [
        *(f"{case.ratio:g}", f"{case.angle_degrees:g}"),
        *(*condition(case.printed_threshold), *(f"{number:.3f}" for number in printed)),
        *(*condition(case.exact_threshold), *(f"{number:.3f}" for number in other)),
    ]


def cases_csv(cases: Sequence[Case]) -> str:
    """The numbers of ``cases_markdown`` in full."""
    return csv_text([[field.name for field in fields(Case)], *(astuple(case) for case in cases)])


if __name__ == "__main__":
    sys.exit(main(draw_toy))

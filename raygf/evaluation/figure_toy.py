"""The toy problem's figures: trajectories over the loss surface (Meta-GF paper, Fig. 1), and losses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure

from raygf.evaluation.figures import csv_text, new_figure, plain_axes, run_style
from raygf.evaluation.toy import Trajectory, losses_at, shared_cosine_at, task_losses, thetas

_X, _Y, _GRID = (-11.0, 12.0), (-10.0, 4.0), 240
_POINTS = 200
"""Points of a trajectory at which cosines are computed."""


def trajectory_figure(trajectories: Sequence[Trajectory], alone: Sequence[Trajectory]) -> Figure:
    """A panel a method: where θ_1 and θ_2 went, over the contours of f_1 + f_2 at one common θ.

    Args:
        alone: the two tasks trained by themselves, drawn dotted in every panel.
    """
    figure = new_figure(4.2 * len(trajectories) + 1.2, 4.6)
    panels = figure.subplots(1, len(trajectories), sharey=True, squeeze=False)[0]
    contours = None
    for axes, trajectory in zip(panels, trajectories, strict=True):
        contours = _draw_surface(axes)
        for task in (0, 1):
            reference = thetas(alone[task].points)[task]
            label = None if task else "each task alone"
            axes.plot(*reference.T, color="black", linestyle=":", linewidth=1.6, label=label)
            path = thetas(trajectory.points)[task]
            colour = run_style(task)["color"]
            axes.plot(*path.T, color=colour, linewidth=2.2, label=rf"$\theta_{task + 1}$")
            axes.plot(*path[-1], color=colour, marker="*", markersize=11, markeredgecolor="white")
        axes.plot(*thetas(trajectory.points)[0][0], "o", color="black", markersize=6, label="start")
        axes.set_title(trajectory.method)
        axes.set_xlabel(r"$\theta_x$")
    panels[0].set_ylabel(r"$\theta_y$")
    assert contours is not None
    figure.colorbar(contours, ax=list(panels), pad=0.02, label=r"$f_1(\theta) + f_2(\theta)$")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def loss_figure(trajectories: Sequence[Trajectory], alone: Sequence[Trajectory]) -> Figure:
    """Left: the total loss over the steps; right: cosine between the tasks' gradients on what they share."""
    figure = new_figure(11, 4)
    left, right = figure.subplots(1, 2)
    for index, trajectory in enumerate(trajectories):
        style = run_style(index) | {"marker": None, "label": trajectory.method}
        left.plot(trajectory.steps, losses_at(trajectory.points).sum(dim=-1), **style)
        picked = _picked(trajectory)
        right.plot(
            trajectory.steps[picked], [shared_cosine_at(trajectory.points[i]) for i in picked], **style
        )
    best = sum(losses_at(trajectory.points)[:, task] for task, trajectory in enumerate(alone))
    left.plot(alone[0].steps, best, color="black", linestyle=":", label="each task alone")
    left.set_ylabel(r"total loss $f_1(\theta_1) + f_2(\theta_2)$")
    right.set_ylabel(r"cosine of the gradients on $\mathbf{w}_1, \mathbf{w}_2$")
    right.axhline(0, color="grey", linewidth=0.8)
    for axes in (left, right):
        axes.set_xlabel("SGD steps of each task")
        plain_axes(axes)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", frameon=False)
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


def _draw_surface(axes: Axes) -> QuadContourSet:
    x, y = np.meshgrid(np.linspace(*_X, _GRID), np.linspace(*_Y, _GRID))
    grid = torch.from_numpy(np.stack([x, y], axis=-1))
    total = sum(task_losses(grid, grid)).numpy()  # type: ignore[union-attr]
    contours = axes.contourf(x, y, total, levels=24, cmap="Greys_r", alpha=0.85)
    axes.contour(x, y, total, levels=12, colors="white", linewidths=0.4, alpha=0.7)
    return contours


def _picked(trajectory: Trajectory) -> list[int]:
    count = len(trajectory.points)
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, _POINTS))})

"""The two-task toy problem of the Meta-GF paper's Section 3.1 and Fig. 1.

Two tasks share two points of the plane, w_1 and w_2, and mix them with numbers of their own:
``θ_1 = a_1 w_1 + a_2 w_2``, ``θ_2 = b_1 w_1 + b_2 w_2``; minimised is ``f_1(θ_1) + f_2(θ_2)``. The paper
gives the start, w_1 = (5, 1.5), w_2 = (5, 0.5), a = b = (1, 1), and the learning rate 0.001, but **does not
print f_1 and f_2**. In their place stand the two losses of CAGrad's toy problem (Liu, Liu, Jin, Stone, Liu:
"Conflict-Averse Gradient Descent for Multi-task Learning", NeurIPS 2021), which the paper cites and compares
with: two basins, at (7, −8.4) and (−7, −8.4), behind a steep valley. So the curves have the form of the
paper's, not its numbers. The bottom of that valley is a logarithmic pole: a step that falls near it can go
anywhere, and what becomes of a method there is one trajectory, not a statistic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from raygf.fusion.fuse import carry, fuse, fusion_weights
from raygf.training.space import FlatSpace, Segments, Slot

START = (5.0, 1.5, 5.0, 0.5, 1.0, 1.0, 1.0, 1.0)
"""w_1, w_2, a, b."""
LR = 0.001
SHARED = slice(0, 4)
"""Where w_1 and w_2 lie in the vector of all eight parameters."""

SPACE = FlatSpace(
    (Slot("w1", (2,), 0, 2), Slot("w2", (2,), 2, 4), Slot("a", (2,), 4, 6), Slot("b", (2,), 6, 8))
)
OWNED = torch.tensor([[True, True, True, False], [True, True, False, True]])
"""Which task (row) depends on which of w_1, w_2, a, b."""

_LEAST = 5e-6
_FUSION_LR, _EMA = 0.1, 0.9

Weighting = Callable[[Tensor], Tensor]
"""From the Gramian (2, 2) of the tasks' gradients to their weights (2,)."""


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


def train_weighted(method: str, weighting: Weighting, steps: int) -> Trajectory:
    """Steps along ``Σ_i w_i g_i``, the weights from the Gramian of what the tasks share.

    What a task has for itself gets its own gradient.
    """

    def direction(rows: Tensor) -> Tensor:
        weights = weighting(rows[:, SHARED] @ rows[:, SHARED].T).to(rows)
        merged = rows.sum(dim=0)
        merged[SHARED] = weights @ rows[:, SHARED]
        return merged

    return _descend(method, direction, steps)


def train_sgd(steps: int) -> Trajectory:
    """Joint SGD: the gradients are added."""
    return _descend("SGD", lambda rows: rows.sum(dim=0), steps)


def train_alone(task: int, steps: int, start: Tensor | None = None) -> Trajectory:
    """One task (0 or 1) by itself, from ``start`` (8,): training without interference."""
    return _descend(f"task {task + 1} alone", lambda rows: rows[task], steps, start)


def train_metagf(steps: int, epoch: int = 10) -> Trajectory:
    """Meta-GF: both tasks take ``epoch`` steps alone, then as many steps of Adam fit the fusion weights.

    The paper's Algorithm 1 with this package's own segments, weights and merge; w_1, w_2, a and b are
    segments.
    """
    segments, eta = Segments("tensor", SPACE), torch.ones(2, 4, dtype=torch.float64)
    point = torch.tensor(START, dtype=torch.float64)
    points = [point]
    for _ in range(steps // epoch):
        deltas = [train_alone(task, epoch, point).points[-1] - point for task in (0, 1)]
        fitted = _fit(eta, point, deltas, segments, epoch)
        point = fuse(point, deltas, fusion_weights(fitted, OWNED), segments)
        eta = carry(eta, fitted, _EMA)
        points.append(point)
    return Trajectory("Meta-GF", epoch * torch.arange(len(points)), torch.stack(points))


def shared_cosine_at(point: Tensor) -> float:
    """Cosine between the tasks' gradients over w_1 and w_2 at ``point`` (8,)."""
    rows = gradients(point)[:, SHARED]
    return float(torch.nn.functional.cosine_similarity(rows[0], rows[1], dim=0))


def _loss(theta: Tensor, offset: float, constant: float, sign: float, centre: float) -> Tensor:
    x, y = theta[..., 0], theta[..., 1]
    distance = (0.5 * (offset - x) + sign * torch.tanh(y) + constant).abs()
    ridge = distance.clamp(min=_LEAST).log() + 6
    bowl = ((centre - x) ** 2 + 0.1 * (y + 8) ** 2) / 10 - 20
    blend = torch.tanh(0.5 * y)
    return ridge * blend.clamp(min=0) + bowl * (-blend).clamp(min=0)


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


def _fit(eta: Tensor, point: Tensor, deltas: list[Tensor], segments: Segments, steps: int) -> Tensor:
    """η (2, 4) after some steps of Adam on ``F(W + Σ_i α_i Δ_i)`` (paper, Eq. 11)."""
    fitted = torch.nn.Parameter(eta.clone())
    adam = torch.optim.Adam([fitted], _FUSION_LR)
    for _ in range(steps):
        adam.zero_grad()
        total = losses_at(fuse(point, deltas, fusion_weights(fitted, OWNED), segments)).sum()
        torch.autograd.backward(total)
        adam.step()
    return fitted.detach()

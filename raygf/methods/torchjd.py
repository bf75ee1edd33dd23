"""TorchJD's weightings, Nash-MTL and ConFIG: each from the Gramian of the exits' gradients, by its paper.

TorchJD is imported when a weighting is made: it takes time, and some weightings need extra solvers.
"""

import importlib

import torch
from torch import Tensor, nn

from raygf.methods.base import Setting, Weighting


def scaled(gramian: Tensor) -> tuple[Tensor, Tensor]:
    """The Gramian (n, n) of the gradients divided by their root mean square length, and that length ().

    For TorchJD's solvers: their tolerances are fixed numbers, so that with short gradients they would stop
    too early or take them for zero.
    """
    length = gramian.diagonal().mean().sqrt()
    return gramian / length**2, length


class ScaleFree(nn.Module):
    """``solve``, whose weights do not depend on the gradients' scale, on gradients of ordinary length."""

    def __init__(self, solve: Weighting) -> None:
        super().__init__()
        self.solve = solve  # a module itself: its buffers are what it remembers

    def forward(self, gramian: Tensor) -> Tensor:
        """The weights (n,) for ``gramian`` (n, n)."""
        return self.solve(scaled(gramian)[0])


def _solver(name: str, **options: float) -> Weighting:
    """TorchJD's weighting of this name. Raises ImportError where a solver that it needs is not installed."""
    made: Weighting = getattr(importlib.import_module("torchjd.aggregation"), name)(**options)
    return made


def pcgrad(setting: Setting) -> Weighting:
    """PCGrad: Yu, Kumar, Gupta, Levine, Hausman, Finn, "Gradient Surgery for Multi-Task Learning", NeurIPS
    2020.

    Every gradient is projected onto the normal plane of each other that it conflicts with, in random order
    (from torch's global generator), and the results are added (Meta-GF paper, Eq. 3):
    ``ĝ_i = g_i − (g_i·g_j / ‖g_j‖²) g_j`` where ``g_i·g_j < 0``. Equal or orthogonal gradients are left
    alone: the weights are then all 1 and sum to n.
    """
    return _solver("PCGradWeighting")


def gradvac(setting: Setting) -> Weighting:
    """GradVac: Wang, Tsvetkov, Firat, Cao, "Gradient Vaccine", ICLR 2021.

    Like PCGrad, but every pair is brought to a cosine that is a moving average of what has been seen, not
    just to zero (β = 0.5; of gradients within the round, of deltas in all). Equal gradients: they sum to n.
    """
    return ScaleFree(_solver("GradVacWeighting"))


def cagrad(setting: Setting) -> Weighting:
    """CAGrad: Liu, Liu, Jin, Stone, Liu, "Conflict-Averse Gradient Descent for Multi-task Learning", NeurIPS
    2021.

    ``max_d min_i g_i·d`` subject to ``‖d − g_0‖ ≤ c ‖g_0‖``, ``g_0`` the mean gradient, c the configured
    radius. With ``c = 0`` it is the mean; for equal gradients the weights sum to 1 + c.
    """
    return ScaleFree(_solver("CAGradWeighting", c=setting.config.cagrad_c))


def mgda(setting: Setting) -> Weighting:
    """MGDA: Désidéri, "Multiple-Gradient Descent Algorithm (MGDA)", 2012; Sener, Koltun, NeurIPS 2018.

    The shortest vector of the gradients' convex hull, by Frank-Wolfe steps: ``min_w ‖Σ_i w_i g_i‖²``,
    ``w ≥ 0``, ``Σ w = 1``.
    """
    return _solver("MGDAWeighting")


def upgrad(setting: Setting) -> Weighting:
    """UPGrad: Quinton, Rey, "Jacobian Descent for Multi-Objective Optimization", 2024.

    Every gradient is projected onto the dual cone of all of them (n small quadratic programs), so that no
    loss rises to first order, and the projections are averaged. Equal gradients: the weights sum to 1.
    """
    return ScaleFree(_solver("UPGradWeighting"))


def imtlg(setting: Setting) -> Weighting:
    """IMTL-G: Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021.

    The combination whose projections onto all unit gradients are equal: ``d·g_i/‖g_i‖`` is the same for all
    i. ``Σ w = 1``; weights may be negative.
    """
    return _solver("IMTLGWeighting")


def alignedmtl(setting: Setting) -> Weighting:
    """Aligned-MTL: Senushkin, Patakin, Kuznetsov, Konushin, "Independent Component Alignment for Multi-Task
    Learning", CVPR 2023.

    The gradients' principal components are given equal singular values (the smallest one) and the mean is
    taken. For orthogonal gradients of equal length the weights sum to 1.
    """
    return _solver("AlignedMTLWeighting")


def fairgrad(setting: Setting) -> Weighting:
    """FairGrad: Ban, Ji, "Fair Resource Allocation in Multi-Task Learning", ICML 2024.

    ``G w = w^(-1/α)`` with α = 1 (proportional fairness), n nonlinear equations. The scale falls with the
    gradients' length: for n equal unit gradients each weight is ``1/√n``.
    """
    solve = _solver("FairGradWeighting", alpha=1.0)

    def weights(gramian: Tensor) -> Tensor:
        normalised, length = scaled(gramian)
        return solve(normalised) / length

    return weights


def nashmtl(setting: Setting) -> Weighting:
    """Nash-MTL: Navon et al., "Multi-Task Learning as a Bargaining Game", ICML 2022.

    ``G w = 1/w``, the Nash bargaining solution; the update's length, √n, is made 1. TorchJD has the authors'
    solver, a sequence of linearised problems that from a cold start often stops far from the solution; here
    it is found exactly, from the Gramian alone.
    """

    def weights(gramian: Tensor) -> Tensor:
        normalised, length = scaled(gramian)
        ridge = 1e-5 * torch.eye(len(gramian))  # more than single precision has rounded off
        found: Tensor = bargain(normalised + ridge).to(gramian) / (length * len(gramian) ** 0.5)
        return found

    return weights


def bargain(gramian: Tensor) -> Tensor:
    """The ``w > 0`` (n,), float64, with ``G w = 1/w``: the minimum of the convex ``½ wᵀGw − Σ log w``.

    By Newton steps that are divided by 1 + their length, which reach it from anywhere, for the function is
    self-concordant (Nesterov, Nemirovskii: "Interior-Point Polynomial Algorithms in Convex Programming",
    1994).

    Args:
        gramian: G (n, n), positive definite.

    Raises ArithmeticError: it was not reached, so G is not positive definite.
    """
    gramian = gramian.double()
    weights = gramian.diagonal().rsqrt()
    for _ in range(200):
        slope = gramian @ weights - 1 / weights
        step = torch.linalg.solve(gramian + torch.diag(weights**-2), slope)
        length = (slope @ step).sqrt()
        if length < 1e-8:
            return weights
        weights = weights - step / (1 + length)
    raise ArithmeticError("Newton's method did not reach G w = 1/w")


def conflict_free(setting: Setting) -> Weighting:
    """ConFIG: Liu, Chu, Thuerey, "ConFIG: Towards Conflict-free Training of Physics Informed Neural
    Networks", ICLR 2025.

    The direction that has the same cosine with every gradient, as long as the sum of the gradients'
    projections on it: ``u = pinv(U) 1`` for unit gradients U, ``d = (Σ_i g_i·u) u / ‖u‖²``; worked out here
    from the Gramian alone. For equal gradients the weights sum to n.
    """

    def weights(gramian: Tensor) -> Tensor:
        lengths = gramian.diagonal().sqrt()
        cosines = gramian / torch.outer(lengths, lengths)
        raw = torch.linalg.pinv(cosines, hermitian=True) @ torch.ones_like(lengths) / lengths
        unit = raw / (raw @ gramian @ raw).sqrt()
        found: Tensor = unit * (gramian @ unit).sum()
        return found

    return weights

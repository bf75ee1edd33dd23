"""The weightings of TorchJD, and ConFIG: each from the Gramian of the exits' gradients, by its paper.

TorchJD is imported when a weighting is made: it takes time, and some weightings need extra solvers.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from raygf.config.run import MethodConfig
from raygf.methods.base import Weighting, scale_free, scaled


def pcgrad(config: MethodConfig) -> Weighting:
    """PCGrad: Yu, Kumar, Gupta, Levine, Hausman, Finn, "Gradient Surgery for Multi-Task Learning", NeurIPS
    2020.

    Every gradient is projected onto the normal plane of each other that it conflicts with, in random order,
    and the results are added (Meta-GF paper, Eq. 3): ``ĝ_i = g_i − (g_i·g_j / ‖g_j‖²) g_j`` where ``g_i·g_j <
    0``. Equal or orthogonal gradients are left alone: the weights are then all 1 and sum to n.

    The weighting; its order of projections comes from torch's global generator.
    """
    from torchjd.aggregation import PCGradWeighting

    made: Weighting = PCGradWeighting()
    return made


def gradvac(config: MethodConfig) -> Weighting:
    """GradVac: Wang, Tsvetkov, Firat, Cao, "Gradient Vaccine", ICLR 2021.

    Like PCGrad, but every pair is brought to a cosine that is a moving average of what has been seen (β =
    0.5), not just to zero. Equal gradients: the weights sum to n.

    The weighting; it remembers cosines from step to step within a round.
    """
    from torchjd.aggregation import GradVacWeighting

    return scale_free(GradVacWeighting())


def cagrad(config: MethodConfig) -> Weighting:
    """CAGrad: Liu, Liu, Jin, Stone, Liu, "Conflict-Averse Gradient Descent for Multi-task Learning", NeurIPS
    2021.

    ``max_d min_i g_i·d`` subject to ``‖d − g_0‖ ≤ c ‖g_0‖``, ``g_0`` the mean gradient. With ``c = 0`` it is
    the mean; for equal gradients the weights sum to 1 + c.

    The weighting with the configured radius c.
    """
    from torchjd.aggregation import CAGradWeighting

    return scale_free(CAGradWeighting(c=config.cagrad_c))


def mgda(config: MethodConfig) -> Weighting:
    """MGDA: Désidéri, "Multiple-Gradient Descent Algorithm (MGDA)", 2012; Sener, Koltun, NeurIPS 2018.

    The shortest vector of the gradients' convex hull: ``min_w ‖Σ_i w_i g_i‖²``, ``w ≥ 0``, ``Σ w = 1``.

    The weighting, by Frank-Wolfe steps; its weights sum to 1.
    """
    from torchjd.aggregation import MGDAWeighting

    made: Weighting = MGDAWeighting()
    return made


def upgrad(config: MethodConfig) -> Weighting:
    """UPGrad: Quinton, Rey, "Jacobian Descent for Multi-Objective Optimization", 2024.

    Every gradient is projected onto the dual cone of all of them, so that no loss rises to first order, and
    the projections are averaged. Equal gradients: the weights sum to 1.

    The weighting; solves n small quadratic programs.
    """
    from torchjd.aggregation import UPGradWeighting

    return scale_free(UPGradWeighting())


def imtlg(config: MethodConfig) -> Weighting:
    """IMTL-G: Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021.

    The combination whose projections onto all unit gradients are equal: ``d·g_i/‖g_i‖`` is the same for all
    i, ``Σ w = 1``.

    The weighting; its weights sum to 1 and may be negative.
    """
    from torchjd.aggregation import IMTLGWeighting

    made: Weighting = IMTLGWeighting()
    return made


def alignedmtl(config: MethodConfig) -> Weighting:
    """Aligned-MTL: Senushkin, Patakin, Kuznetsov, Konushin, "Independent Component Alignment for Multi-Task
    Learning", CVPR 2023.

    The gradients' principal components are given equal singular values (the smallest one) and the mean is
    taken.

    The weighting; for orthogonal gradients of equal length the weights sum to 1.
    """
    from torchjd.aggregation import AlignedMTLWeighting

    made: Weighting = AlignedMTLWeighting()
    return made


def fairgrad(config: MethodConfig) -> Weighting:
    """FairGrad: Ban, Ji, "Fair Resource Allocation in Multi-Task Learning", ICML 2024.

    ``G w = w^(-1/α)`` with α = 1 (proportional fairness). The scale falls with the gradients' length: for n
    equal unit gradients each weight is ``1/√n``.

    The weighting; solves n nonlinear equations.
    """
    from torchjd.aggregation import FairGradWeighting

    solve = FairGradWeighting(alpha=1.0)

    def weights(gramian: Tensor) -> Tensor:
        normalised, length = scaled(gramian)
        found: Tensor = solve(normalised) / length
        return found

    return weights


def nashmtl(config: MethodConfig) -> Weighting:
    """Nash-MTL: Navon et al., "Multi-Task Learning as a Bargaining Game", ICML 2022.

    ``G w = 1/w``, the Nash bargaining solution; the update's length, √n, is clipped to 1.

    The weighting; it warm-starts from the step before within a round.
    """
    return _NashMTL()


def conflict_free(config: MethodConfig) -> Weighting:
    """ConFIG: Liu, Chu, Thuerey, "ConFIG: Towards Conflict-free Training of Physics Informed Neural
    Networks", ICLR 2025.

    The direction that has the same cosine with every gradient, as long as the sum of the gradients'
    projections on it: ``u = pinv(U) 1`` for unit gradients U, ``d = (Σ_i g_i·u) u / ‖u‖²``.

    The weighting, worked out from the Gramian alone; for equal gradients the weights sum to n.
    """
    return _conflict_free_weights


def _conflict_free_weights(gramian: Tensor) -> Tensor:
    lengths = gramian.diagonal().sqrt()
    cosines = gramian / torch.outer(lengths, lengths)
    raw = torch.linalg.pinv(cosines, hermitian=True) @ torch.ones_like(lengths) / lengths
    unit = raw / (raw @ gramian @ raw).sqrt()
    weights: Tensor = unit * (gramian @ unit).sum()
    return weights


class _NashMTL:
    """TorchJD's solver takes gradients; any matrix with the same Gramian serves: its Cholesky factor."""

    def __init__(self) -> None:
        self._solver: Any = None

    def __call__(self, gramian: Tensor) -> Tensor:
        from torchjd.aggregation import NashMTL

        if self._solver is None:
            self._solver = NashMTL(n_tasks=len(gramian)).weighting
        normalised, length = scaled(gramian)
        ridge = 1e-6 * torch.eye(len(gramian)).to(gramian)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the solver's advice to its own authors
            weights: Tensor = self._solver(torch.linalg.cholesky(normalised + ridge))
        return weights / length

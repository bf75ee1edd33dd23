"""What projecting conflicting gradients costs: Eqs. 1–7 of the Meta-GF paper (Section 3.1), in numbers.

Two gradients g_1, g_2 with ``‖g_1‖ > ‖g_2‖`` and angle α > 90°. PCGrad replaces both by their parts normal to
each other (Eq. 3), ``u = ĝ_1 + ĝ_2``; the other way projects only the small one, ``u = g_1 + ĝ_2``. Eq. 7
says that projecting both is the better way if and only if ``‖g_2‖/‖g_1‖ > −0.5 cos α / sin² α``.

**The paper's Eqs. 4–6 are not the first-order change of the loss.** To first order a step ``−ε u`` lowers
``f_1 + f_2`` by ``ε u·(g_1 + g_2)``; what Eqs. 4, 5 and 6 print is ``ε ‖u‖²``, which is the same only for the
plain sum ``u = g_1 + g_2`` (Eq. 2). Eq. 7 follows from the printed terms, and does so exactly. With the
first-order terms the condition is ``‖g_2‖/‖g_1‖ > −cos α``: as much about the norms, with another threshold.
A ``Case`` holds both, and the change measured on real losses, which sides with the first-order terms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raygf.evaluation.figures import csv_text
from raygf.evaluation.tables import markdown_table

EPSILON = 1e-3
"""The paper's learning rate in Section 3.1."""

RATIOS, ANGLES = (0.1, 0.3, 0.45, 0.7, 0.9), (100.0, 120.0, 135.0, 150.0, 165.0)


@dataclass(frozen=True)
class Case:
    """One pair of gradients. ``ratio`` = ‖g_2‖/‖g_1‖ ≤ 1, ``angle`` in degrees, above 90.

    All reductions of f_1 + f_2 are per unit of ε and of ‖g_1‖²; ``both``: with ĝ_1 + ĝ_2, ``small``: with
    g_1 + ĝ_2.
    """

    ratio: float
    angle: float
    printed_both: float
    """Eq. 4 of the paper."""
    printed_small: float
    """Eq. 6 of the paper."""
    exact_both: float
    """u·(g_1 + g_2)."""
    exact_small: float
    measured_both: float
    """On quadratic losses with these gradients, after a step of ε = 0.001."""
    measured_small: float

    @property
    def printed_threshold(self) -> float:
        """Right side of Eq. 7: ``−0.5 cos α / sin² α``."""
        return -0.5 * math.cos(math.radians(self.angle)) / math.sin(math.radians(self.angle)) ** 2

    @property
    def exact_threshold(self) -> float:
        """What the first-order terms put in its place: ``−cos α``."""
        return -math.cos(math.radians(self.angle))


def check_case(ratio: float, angle: float) -> Case:
    """The case of ``g_1 = (1, 0)`` and ``g_2`` of length ``ratio`` at ``angle`` degrees to it."""
    turn = math.radians(angle)
    g_1 = torch.tensor([1.0, 0.0], dtype=torch.float64)
    g_2 = ratio * torch.tensor([math.cos(turn), math.sin(turn)], dtype=torch.float64)
    hat_1, hat_2 = reproject(g_1, g_2), reproject(g_2, g_1)
    both, small = hat_1 + hat_2, g_1 + hat_2
    return Case(
        ratio,
        angle,
        printed_both=_equation_4(g_1, g_2),
        printed_small=_equation_6(g_1, g_2),
        exact_both=float(both @ (g_1 + g_2)),
        exact_small=float(small @ (g_1 + g_2)),
        measured_both=_measured(g_1, g_2, both),
        measured_small=_measured(g_1, g_2, small),
    )


def reproject(gradient: Tensor, other: Tensor) -> Tensor:
    """Eq. 3: the part of ``gradient`` (d,) that is normal to ``other`` (d,)."""
    return gradient - (gradient @ other) / (other @ other) * other


def check_cases(ratios: Iterable[float] = RATIOS, angles: Sequence[float] = ANGLES) -> list[Case]:
    """A case for every pair of ``ratios`` and ``angles`` (degrees)."""
    return [check_case(ratio, angle) for ratio in ratios for angle in angles]


def cases_markdown(cases: Sequence[Case]) -> str:
    """One row a case; "yes" where projecting both lowers the loss more."""
    header = ["‖g₂‖/‖g₁‖", "α (°)", "Eq. 7: −0.5 cos α/sin² α", "holds", "Eq. 4", "Eq. 6"]
    header += [
        "−cos α",
        "holds",
        "first order, both",
        "first order, small",
        "measured, both",
        "measured, small",
    ]
    return markdown_table(header, [_row(case) for case in cases])


def cases_csv(cases: Sequence[Case]) -> str:
    """The numbers of ``cases_markdown`` in full."""
    names = [
        "ratio",
        "angle_degrees",
        "printed_threshold",
        "exact_threshold",
        "printed_both",
        "printed_small",
    ]
    names += ["exact_both", "exact_small", "measured_both", "measured_small"]
    rows = [
        [
            *(c.ratio, c.angle, c.printed_threshold, c.exact_threshold, c.printed_both, c.printed_small),
            *(c.exact_both, c.exact_small, c.measured_both, c.measured_small),
        ]
        for c in cases
    ]
    return csv_text([names, *rows])


def _row(case: Case) -> list[str]:
    printed, exact = case.ratio > case.printed_threshold, case.ratio > case.exact_threshold
    numbers = [case.exact_both, case.exact_small, case.measured_both, case.measured_small]
    return [
        *(f"{case.ratio:g}", f"{case.angle:g}"),
        *(f"{case.printed_threshold:.3f}", _word(printed)),
        *(f"{case.printed_both:.3f}", f"{case.printed_small:.3f}"),
        *(f"{case.exact_threshold:.3f}", _word(exact)),
        *(f"{number:.3f}" for number in numbers),
    ]


def _word(holds: bool) -> str:
    return "yes" if holds else "no"


def _equation_4(g_1: Tensor, g_2: Tensor) -> float:
    dot, one, two = g_1 @ g_2, g_1 @ g_1, g_2 @ g_2
    cosine_squared = dot**2 / (one * two)
    return float(one + two - dot**2 / one - dot**2 / two + 2 * dot * (cosine_squared - 1))


def _equation_6(g_1: Tensor, g_2: Tensor) -> float:
    dot, one, two = g_1 @ g_2, g_1 @ g_1, g_2 @ g_2
    return float(one + two - dot**2 / one)


def _measured(g_1: Tensor, g_2: Tensor, update: Tensor) -> float:
    """Reduction of ``Σ_i g_i·x + ‖x‖²/2`` by the step ``x = −ε u`` from 0, divided by ε."""
    x = -EPSILON * update
    return -float((g_1 + g_2) @ x + x @ x) / EPSILON

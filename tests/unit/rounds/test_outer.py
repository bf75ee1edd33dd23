import math

import torch
from torch.testing import assert_close

from raygf.config.run import FusionConfig
from raygf.rounds.outer import OuterStep

START = torch.tensor([1.0, -2.0])
DELTAS = (torch.tensor([0.5, 0.0]), torch.tensor([-1.0, 0.25]))


def walk(kind):
    step, seen = OuterStep(FusionConfig(outer=kind, outer_lr=0.5, outer_momentum=0.8), START), [START]
    for delta in DELTAS:
        seen.append(step.step(seen[-1], seen[-1] + delta))
    return torch.stack(seen[1:])


def test_two_steps_by_hand():
    """v = D₁ = (0.5, 0), then 0.8 v + D₂ = (−0.6, 0.25)."""
    assert_close(walk("momentum"), torch.tensor([[1.25, -2.0], [0.95, -1.875]]))
    # D + 0.8 v = (0.9, 0), then (−1.48, 0.45)
    assert_close(walk("nesterov"), torch.tensor([[1.45, -2.0], [0.71, -1.775]]))
    first = 1 + 0.5 * 0.5 / (0.5 + 1e-3)  # then (0.8·0.1 − 0.2) / 0.36, √((0.99·0.0025 + 0.01) / 0.0199)
    second = first + 0.5 * (-0.12 / 0.36) / (math.sqrt(0.012475 / 0.0199) + 1e-3)
    assert_close(walk("adam")[:, 0], torch.tensor([first, second]))

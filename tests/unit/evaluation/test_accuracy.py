from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny_network import CPU, bind, random_batches, seeded, with_dropout
from torch import nn

from raygf.evaluation.outputs import evaluate
from raygf.training.network import BoundNetwork


class Constant(nn.Module):
    """Two exits: the first always says class 0, the second, with all its might, class 2."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.tensor([math.log(2.0), 0.0, 0.0]))
        self.second = nn.Parameter(torch.tensor([0.0, 0.0, math.log(6.0)]))

    def forward(self, x):
        return [self.first.expand(len(x), 3), self.second.expand(len(x), 3)]


def test_by_hand():
    bound = BoundNetwork(Constant(), CPU)
    images = torch.zeros(4, 1, 4, 4)
    batches = [(images, torch.tensor([0, 0, 2, 1])), (images[:1], torch.tensor([2]))]
    score = evaluate(bound, batches)
    assert score.accuracy == pytest.approx((2 / 5, 2 / 5))
    first = (2 * math.log(2) + 3 * math.log(4)) / 5
    second = (3 * math.log(8) + 2 * math.log(8 / 6)) / 5
    assert score.loss == pytest.approx((first, second))


def test_batching_changes_nothing():
    bound, batches = bind(), random_batches(3)
    images, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    parts = list(zip(images.split(7), labels.split(7), strict=True))
    one, two = evaluate(bound, batches), evaluate(bound, parts)
    assert one.accuracy == pytest.approx(two.accuracy)
    assert one.loss == pytest.approx(two.loss, rel=1e-5)


def test_evaluation_mode_and_no_trace():
    bound = BoundNetwork(seeded(with_dropout).train(), CPU)
    before = bound.state()
    one, two = evaluate(bound, random_batches(2)), evaluate(bound, random_batches(2))
    assert one == two  # no dropout
    assert not bound.network.training
    after = bound.state()
    assert np.array_equal(before.vector, after.vector)
    assert before.sha256() == after.sha256()
    assert not bound.grad.any()


def test_training_goes_on_after_evaluation():
    bound, batches = bind(), random_batches(1)
    evaluate(bound, batches)
    sum(out.sum() for out in bound.network(batches[0][0])).backward()
    assert bound.grad.any()

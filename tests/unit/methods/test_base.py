import math
from itertools import pairwise

import pytest
import torch
from tiny_network import bind, random_batches, setting_of
from torch.testing import assert_close

from raygf.errors import NonFiniteError
from raygf.methods.base import GramianMethod, JointSGD, combine, exit_gradients, weigh
from raygf.training.losses import exit_losses

IMAGES, LABELS = random_batches(1, size=8)[0]


def test_joint_sgd_adds_the_exits_scaled_gradients():
    def direction(coefficients):
        bound = bind()
        method = JointSGD(setting_of(bound))
        method.backward(exit_losses(bound.network(IMAGES), LABELS) * torch.tensor(coefficients), bound)
        return bound.grad

    singles = [direction([float(j == i) for j in range(3)]) for i in range(3)]
    assert all(single.any() for single in singles)
    assert_close(direction([0.5, 2.0, 1.0]), 0.5 * singles[0] + 2 * singles[1] + singles[2])


def test_every_row_is_one_exits_gradient():
    bound = bind()
    bound.network.eval()
    rows = exit_gradients(exit_losses(bound.network(IMAGES), LABELS), bound)
    for exit in range(3):
        loss = exit_losses(bound.network(IMAGES), LABELS)[exit]
        expected = torch.autograd.grad(loss, list(bound.network.parameters()), materialize_grads=True)
        assert_close(rows[exit], torch.cat([grad.flatten() for grad in expected]))


def test_shared_parameters_are_weighted_and_the_others_are_not():
    seen = []

    def weighting(gramian):
        seen.append(gramian)
        return torch.tensor([2.0, -1.0, 0.5])

    rows = torch.tensor([[1.0, 2.0, 5.0, 0.0], [3.0, 1.0, 0.0, 7.0], [0.0, 4.0, 0.0, 0.0]])
    out = torch.empty(4)
    combine(rows, [(0, 2)], weighting, out)
    assert_close(seen[0], rows[:, :2] @ rows[:, :2].T)
    assert_close(out, torch.tensor([2.0 - 3.0, 4.0 - 1.0 + 2.0, 5.0, 7.0]))


def test_the_gramian_is_that_of_the_shared_tensors_alone():
    bound, seen = bind(), []
    setting = setting_of(bound)
    method = GramianMethod(lambda g: (seen.append(g), torch.ones(3))[1], setting)
    assert all(one[1] < two[0] for one, two in pairwise(method._shared))  # stretches that touch are one
    bound.network.eval()
    method.backward(exit_losses(bound.network(IMAGES), LABELS), bound)
    rows = exit_gradients(exit_losses(bound.network(IMAGES), LABELS), bound)
    shared = [s for s, m in zip(bound.space.slots, setting.owned.sum(0).tolist(), strict=True) if m > 1]
    columns = torch.cat([torch.arange(s.start, s.stop) for s in shared])
    assert_close(seen[0], rows[:, columns] @ rows[:, columns].T)
    assert len(columns) < bound.space.size


def test_weights_of_a_gramian_that_says_nothing_or_too_much():
    never = pytest.fail
    assert torch.equal(weigh(never, torch.tensor([[2.0]])), torch.ones(1))  # one exit alone
    assert torch.equal(weigh(never, torch.zeros(3, 3)), torch.zeros(3))  # nothing to weigh
    for bad in (math.nan, math.inf):
        with pytest.raises(NonFiniteError, match="the gradient of exit 2 is not finite"):
            weigh(never, torch.diag(torch.tensor([1.0, bad, bad])))
    with pytest.raises(NonFiniteError, match="weights of the exits' gradients are not finite"):
        weigh(lambda gramian: torch.full((2,), math.nan), torch.eye(2))

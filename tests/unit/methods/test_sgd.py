from __future__ import annotations

import pytest
import torch
from tiny_network import bind, random_batches
from torch.testing import assert_close

from raygf.errors import ConfigError
from raygf.methods.base import JointSGD
from raygf.methods.registry import ROUND_METHODS, STEP_METHODS, check_method, method_names
from raygf.training.losses import exit_losses

IMAGES, LABELS = random_batches(1)[0]


def direction(coefficients: list[float]) -> torch.Tensor:
    bound = bind()
    losses = exit_losses(bound.network(IMAGES), LABELS) * torch.tensor(coefficients)
    JointSGD().backward(losses, bound)
    return bound.grad


def test_direction_is_the_sum_of_the_exits_gradients():
    singles = [direction([float(j == i) for j in range(3)]) for i in range(3)]
    assert all(single.any() for single in singles)
    assert_close(direction([1.0, 1.0, 1.0]), torch.stack(singles).sum(dim=0))


def test_coefficients_scale_their_exits():
    singles = [direction([float(j == i) for j in range(3)]) for i in range(3)]
    assert_close(direction([0.5, 2.0, 0.0]), 0.5 * singles[0] + 2 * singles[1])


def test_one_exit_alone_is_its_own_gradient():
    bound = bind()
    (expected,) = torch.autograd.grad(
        exit_losses(bound.network(IMAGES), LABELS)[1], [bound.network.heads[1][2].weight]
    )
    views = bound.space.views(direction([0.0, 1.0, 0.0]))
    assert_close(views["heads.1.2.weight"], expected)
    assert not views["heads.0.2.weight"].any() and not views["stages.2.0.weight"].any()


def test_registry_knows_all_methods():
    assert set(method_names()) == {*ROUND_METHODS, *STEP_METHODS} >= {"metagf", "sgd"}
    for name in method_names():
        check_method(name)


def test_unknown_method_is_refused_with_those_that_exist():
    with pytest.raises(ConfigError, match=r"method = 'sgdd': must be one of .*metagf.*sgd"):
        check_method("sgdd")

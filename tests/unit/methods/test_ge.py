"""Gradient Equilibrium by the chain rule, BoostNet by its equation."""

import pytest
import torch
from tiny_network import CPU, bind, random_batches, setting_of
from torch import Tensor, nn
from torch.testing import assert_close

from raygf.config.run import MethodConfig
from raygf.methods.base import Setting
from raygf.methods.ge import BoostNetRescaling, GradientEquilibrium
from raygf.models.multi_exit import MultiExitNetwork
from raygf.training.losses import exit_losses
from raygf.training.network import BoundNetwork

IMAGES, LABELS = random_batches(1, size=8)[0]


def test_three_exits_by_the_chain_rule():
    """Each exit's share of a stage's gradient is the mean's: 1/3 at the first stage, 1/2 at the second."""
    linear = [nn.Linear(1, 1, bias=False) for _ in range(6)]
    network = MultiExitNetwork(linear[:3], linear[3:])  # exit i is b_i a_i … a_1 x
    a, b, x = [1.5, 1.75, 2.0], [2.25, 2.5, 2.75], 2.0
    for weight, value in zip(network.parameters(), a + b, strict=True):
        weight.data.fill_(value)
    bound = BoundNetwork(network, CPU)
    method = GradientEquilibrium(Setting(MethodConfig(), network, torch.ones(3, 6) > 0, bound.space))
    method.backward([out.sum() for out in network(torch.tensor([[x]]))], bound)
    first = (b[0] + b[1] * a[1] + b[2] * a[2] * a[1]) * x / 3
    second = (b[1] + b[2] * a[2]) * a[0] * x / 2
    third = b[2] * a[1] * a[0] * x
    heads = [a[0] * x, a[1] * a[0] * x, a[2] * a[1] * a[0] * x]  # plain
    assert bound.grad.tolist() == pytest.approx([first, second, third, *heads])


def features_and_losses(network):
    """What every stage gives, and the exits' losses."""
    seen: list[Tensor] = []
    hooks = [stage.register_forward_hook(lambda *args: seen.append(args[2])) for stage in network.stages]
    losses = exit_losses(network(IMAGES), LABELS)
    for hook in hooks:
        hook.remove()
    return seen, losses


def test_boostnets_stages_get_the_mean_of_the_exits_behind_them_as_gradient_equilibriums():
    """dL/db_i = 1/(n − i + 1) Σ_{j ≥ i} dL_j/db_i."""
    bound = bind()
    network = bound.network.eval()
    features, losses = features_and_losses(network)
    plain = [
        [torch.autograd.grad(loss, feature, retain_graph=True)[0] for loss in losses[number:]]
        for number, feature in enumerate(features)
    ]
    found = []
    for make in (BoostNetRescaling, GradientEquilibrium):
        method = make(setting_of(bound))
        features, losses = features_and_losses(network)
        found.append(torch.autograd.grad(sum(losses), features))
        method.close()
    for boostnet, equilibrium, exits in zip(*found, plain, strict=True):
        assert_close(boostnet, torch.stack(exits).mean(dim=0))
        assert torch.equal(boostnet, equilibrium)

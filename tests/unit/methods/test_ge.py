"""Gradient Equilibrium by the chain rule."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from raygf.compute import Compute
from raygf.errors import ConfigError
from raygf.methods.ge import GradientEquilibrium
from raygf.models.multi_exit import MultiExitNetwork
from raygf.training.network import BoundNetwork

CPU = Compute("cpu", "fp32", "contiguous")


def chain(exits: int) -> MultiExitNetwork:
    """Scalar stages and heads with weights a_i and b_i: exit i is b_i a_i … a_1 x."""
    network = MultiExitNetwork(
        [nn.Linear(1, 1, bias=False) for _ in range(exits)],
        [nn.Linear(1, 1, bias=False) for _ in range(exits)],
    )
    for number, weight in enumerate(network.parameters()):
        weight.data.fill_(1.5 + number / 4)
    return network


def gradients(exits: int, equilibrium: bool) -> dict[str, float]:
    bound = BoundNetwork(chain(exits), CPU)
    method = GradientEquilibrium(bound.network) if equilibrium else None
    losses = torch.stack([out.sum() for out in bound.network(torch.tensor([[2.0]]))])
    if method:
        method.backward(losses, bound)
        method.close()
    else:
        losses.sum().backward()
    return {name: grad.item() for name, grad in bound.space.views(bound.grad).items()}


def test_three_exits_by_the_chain_rule():
    """Each exit's share of a stage's gradient is the mean's: 1/3 at the first stage, 1/2 at the second."""
    a = [1.5, 1.75, 2.0]
    b = [2.25, 2.5, 2.75]
    x = 2.0
    found = gradients(3, equilibrium=True)
    first = (b[0] + b[1] * a[1] + b[2] * a[2] * a[1]) * x / 3
    second = (b[1] + b[2] * a[2]) * a[0] * x / 2
    third = b[2] * a[1] * a[0] * x
    assert found["stages.0.weight"] == pytest.approx(first)
    assert found["stages.1.weight"] == pytest.approx(second)
    assert found["stages.2.weight"] == pytest.approx(third)


def test_heads_keep_their_plain_gradients():
    found, plain = gradients(3, equilibrium=True), gradients(3, equilibrium=False)
    assert all(found[name] == plain[name] for name in found if name.startswith("heads"))
    assert found["stages.0.weight"] != plain["stages.0.weight"]


def test_one_exit_is_plain():
    assert gradients(1, equilibrium=True) == gradients(1, equilibrium=False)


def test_closing_takes_the_hooks_out():
    network = chain(2)
    GradientEquilibrium(network).close()
    assert not any(module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize("branch", [0, 1])
def test_only_the_part_that_heads_read_is_scaled(branch):
    """Of a state of two tensors the other one goes on as it is."""

    class Two(nn.Module):
        def forward(self, state):
            one, two = (state, state) if isinstance(state, torch.Tensor) else state
            return (one * 3, two * 5)

    class Read(nn.Module):
        def forward(self, state):
            return state[branch]

    network = MultiExitNetwork([Two(), Two()], [Read(), nn.Identity()])
    network.branch = branch
    x = torch.ones(1, 1, requires_grad=True)
    method = GradientEquilibrium(network)
    shallow, (one, two) = network(x)
    torch.autograd.grad([shallow], [x], retain_graph=True)
    (own,) = torch.autograd.grad([(one, two)[branch]], [x], retain_graph=True)
    (other,) = torch.autograd.grad([(one, two)[1 - branch]], [x])
    method.close()
    factors = (9.0, 25.0)
    assert_close(own, torch.full_like(own, factors[branch] / 2))
    assert_close(other, torch.full_like(other, factors[1 - branch]))


def test_a_network_without_stages_is_refused():
    with pytest.raises(ConfigError, match="needs a network of stages and heads"):
        GradientEquilibrium(nn.Linear(1, 1))

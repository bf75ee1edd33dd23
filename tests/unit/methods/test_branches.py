import pytest
import torch
from torch import nn
from torch.testing import assert_close

from raygf.errors import ConfigError
from raygf.methods.branches import BranchMethod
from raygf.methods.ge import equilibrium
from raygf.models.multi_exit import MultiExitNetwork


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
    method = BranchMethod("ge", network, equilibrium)
    shallow, (one, two) = network(x)
    torch.autograd.grad([shallow], [x], retain_graph=True)
    (own,) = torch.autograd.grad([(one, two)[branch]], [x], retain_graph=True)
    (other,) = torch.autograd.grad([(one, two)[1 - branch]], [x])
    method.close()
    factors = (9.0, 25.0)
    assert_close(own, torch.full_like(own, factors[branch] / 2))
    assert_close(other, torch.full_like(other, factors[1 - branch]))


def test_a_network_without_stages_is_refused_by_the_methods_name():
    with pytest.raises(ConfigError, match="method = 'dfs' needs a network of stages and heads"):
        BranchMethod("dfs", nn.Linear(1, 1), equilibrium)

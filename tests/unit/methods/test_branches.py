import pytest
import torch
from torch import nn
from torch.testing import assert_close

from raygf.errors import ConfigError
from raygf.methods.branches import BranchMethod
from raygf.methods.ge import equilibrium
from raygf.models.multi_exit import MultiExitNetwork


@pytest.mark.parametrize(("branch", "onward"), [(0, None), (1, None), (0, 1), (1, 0)])
def test_only_the_parts_that_heads_and_deeper_stages_read_are_scaled(branch, onward):
    """Of a state of two tensors the other one goes on as it is; the next stage may read another one."""

    class Two(nn.Module):
        def forward(self, state):
            one, two = (state, state) if isinstance(state, torch.Tensor) else state
            return (one * 3, two * 5)

    class Read(nn.Module):
        def forward(self, state):
            return state[branch]

    network = MultiExitNetwork([Two(), Two()], [Read(), nn.Identity()])
    network.branch, network.onward = branch, onward
    deeper = branch if onward is None else onward
    x = torch.ones(1, 1, requires_grad=True)
    method = BranchMethod("ge", network, equilibrium)
    shallow, (one, two) = network(x)
    torch.autograd.grad([shallow], [x], retain_graph=True)
    (read,) = torch.autograd.grad([(one, two)[deeper]], [x], retain_graph=True)
    (other,) = torch.autograd.grad([(one, two)[1 - deeper]], [x])
    method.close()
    factors = (9.0, 25.0)
    assert_close(read, torch.full_like(read, factors[deeper] / 2))
    assert_close(other, torch.full_like(other, factors[1 - deeper]))


def test_a_network_without_stages_is_refused_by_the_methods_name():
    with pytest.raises(ConfigError, match="method = 'dfs' needs a network of stages and heads"):
        BranchMethod("dfs", nn.Linear(1, 1), equilibrium)

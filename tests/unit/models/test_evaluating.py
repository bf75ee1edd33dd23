"""A look at a network leaves no traces."""

import pytest
import torch
from torch import nn

from raygf.models.multi_exit import evaluating


class CountsCalls(nn.Module):
    """Changes one buffer in place and replaces another, even in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.last = x
        return x


def test_modes_come_back_module_by_module() -> None:
    network = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
    network[0].eval()
    with evaluating(network):
        assert not any(module.training for module in network.modules())
        assert not torch.is_grad_enabled()
    assert [module.training for module in network.modules()] == [True, False, True]
    assert torch.is_grad_enabled()


def test_buffers_keep_content_and_identity() -> None:
    network = CountsCalls()
    calls, last = network.calls, network.last
    with evaluating(network):
        network(torch.ones(2))
        assert calls == 1
    assert network.calls is calls and calls == 0
    assert network.last is last and last.tolist() == [0, 0]


def test_modes_come_back_after_an_error() -> None:
    network = nn.Dropout()
    with pytest.raises(KeyError), evaluating(network):
        raise KeyError
    assert network.training

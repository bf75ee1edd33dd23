from __future__ import annotations

import torch
from tiny_network import SPEC, Tied, seeded, three_exits
from torch import nn

from raygf.training.space import FlatSpace, find_ownership

EXAMPLE = torch.zeros(2, SPEC.channels, SPEC.height, SPEC.width)


def owners(network: nn.Module, example: torch.Tensor = EXAMPLE) -> dict[str, list[int]]:
    """For every tensor the exits that own it."""
    space = FlatSpace.of(network)
    mask = find_ownership(network, example, space)
    assert mask.dtype == torch.bool
    return {name: mask[:, t].nonzero().flatten().tolist() for t, name in enumerate(space.names)}


def test_a_head_belongs_to_its_exit_alone():
    found = owners(seeded(three_exits))
    for exit in range(3):
        assert found[f"heads.{exit}.2.weight"] == [exit]
        assert found[f"heads.{exit}.2.bias"] == [exit]


def test_a_stage_belongs_to_all_exits_from_it_on():
    found = owners(seeded(three_exits))
    for depth in range(3):
        for tensor in ("0.weight", "1.weight", "1.bias"):
            assert found[f"stages.{depth}.{tensor}"] == list(range(depth, 3))


def test_an_unused_parameter_belongs_to_no_exit():
    network = seeded(three_exits)
    network.spare = nn.Linear(2, 2)
    found = owners(network)
    assert found["spare.weight"] == found["spare.bias"] == []


def test_a_tied_weight_belongs_to_every_exit_that_uses_it():
    assert owners(Tied())["first.weight"] == [0, 1]


def test_a_detached_path_is_not_owned():
    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            x = self.trunk(x)
            return [self.a(x.detach()), self.b(x)]

    found = owners(Detached(), torch.zeros(1, 2))
    assert found["trunk.weight"] == [1]
    assert found["a.weight"] == [0]


def test_frozen_parameters_have_no_column():
    network = seeded(three_exits)
    network.stages[0][0].weight.requires_grad_(False)
    assert "stages.0.0.weight" not in owners(network)


def test_the_probe_leaves_no_trace():
    network = seeded(three_exits).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    find_ownership(network, EXAMPLE + 5, FlatSpace.of(network))
    assert network.training and network.stages[0][1].training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


def test_the_probe_works_where_gradients_are_off():
    network = seeded(three_exits)
    with torch.no_grad():
        mask = find_ownership(network, EXAMPLE, FlatSpace.of(network))
        assert not torch.is_grad_enabled()
    assert mask.any(dim=0).all()

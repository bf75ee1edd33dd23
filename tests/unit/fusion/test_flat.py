from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_network import Tied, bind, seeded, space_of, three_exits
from torch import nn

from raygf.training.space import FlatSpace

SHAPES = st.lists(st.lists(st.integers(1, 5), max_size=3).map(tuple), min_size=1, max_size=6)


@settings(deadline=None, max_examples=40)
@given(SHAPES)
def test_pack_of_views_is_the_vector(shapes):
    space = space_of(*shapes)
    vector = torch.randn(space.size)
    assert torch.equal(space.pack(space.views(vector)), vector)


@settings(deadline=None, max_examples=40)
@given(SHAPES)
def test_views_of_pack_are_the_tensors(shapes):
    space = space_of(*shapes)
    tensors = {name: torch.randn(shape) for name, shape in zip(space.names, shapes, strict=True)}
    views = space.views(space.pack(tensors))
    assert views.keys() == tensors.keys()
    assert all(torch.equal(views[name], tensors[name]) for name in tensors)


@settings(deadline=None, max_examples=40)
@given(SHAPES)
def test_slots_tile_the_vector(shapes):
    space = space_of(*shapes)
    edges = [0, *(slot.stop for slot in space.slots)]
    assert [slot.start for slot in space.slots] == edges[:-1]
    assert edges[-1] == space.size == sum(torch.Size(shape).numel() for shape in shapes)


def test_views_share_the_vectors_memory():
    space = space_of((2, 3), (4,))
    vector = torch.zeros(10)
    space.views(vector)["0"][1, 2] = 7.0
    assert vector[5] == 7.0
    vector[6] = 3.0
    assert space.views(vector)["1"][0] == 3.0


def test_pack_copies():
    space = space_of((3,))
    tensors = {"0": torch.ones(3)}
    space.pack(tensors).zero_()
    assert torch.equal(tensors["0"], torch.ones(3))


def test_packed_vector_has_no_graph():
    space = space_of((3,))
    assert not space.pack({"0": torch.ones(3, requires_grad=True)}).requires_grad


def test_order_is_that_of_named_parameters():
    network = seeded(three_exits)
    names = [name for name, _ in network.named_parameters()]
    space = FlatSpace.of(network)
    assert list(space.names) == names
    expected = torch.cat([p.detach().flatten() for p in network.parameters()])
    assert torch.equal(space.pack(dict(network.named_parameters())), expected)


def test_gradient_flows_through_views():
    space = space_of((2, 2), (3,))
    vector = torch.arange(7.0, requires_grad=True)
    views = space.views(vector)
    (2 * views["0"].sum() + (views["1"] ** 2).sum()).backward()
    assert torch.equal(vector.grad, torch.tensor([2.0, 2, 2, 2, 8, 10, 12]))


def test_tied_weight_counts_once():
    space = FlatSpace.of(Tied())
    assert space.names == ("into.weight", "into.bias", "first.weight", "first.bias", "second.bias")
    assert space.size == 16 * 3 + 3 + 9 + 3 + 3


def test_frozen_parameters_are_left_out():
    network = seeded(three_exits)
    network.stages[1][0].weight.requires_grad_(False)
    space = FlatSpace.of(network)
    assert "stages.1.0.weight" not in space.names
    assert space.size == sum(p.numel() for p in network.parameters()) - 144


def test_a_network_without_trainable_parameters_is_refused():
    with pytest.raises(ValueError, match="no trainable parameter"):
        FlatSpace.of(nn.ReLU())


def test_other_number_formats_are_refused_by_name():
    with pytest.raises(ValueError, match=r"parameter weight is torch.float64"):
        FlatSpace.of(nn.Linear(2, 2).double())


def test_scalar_parameter_keeps_its_shape():
    space = space_of((), (2,))
    assert space.views(torch.ones(3))["0"].shape == ()


def test_bound_space_has_all_parameters():
    assert bind().space.size == 393

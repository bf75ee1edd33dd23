from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_network import SPEC, Tied, seeded, segment_numbers, space_of, three_exits
from torch import nn

from raygf.training import space as module
from raygf.training.space import FlatSpace, Segments, find_ownership

KINDS = ("tensor", "channel", "block", "network")
SHAPES = st.lists(st.lists(st.integers(1, 6), max_size=3).map(tuple), min_size=1, max_size=6)
EXAMPLE = torch.zeros(2, SPEC.channels, SPEC.height, SPEC.width)


@settings(deadline=None, max_examples=40)
@given(SHAPES)
def test_packing_and_viewing_undo_each_other(shapes):
    space = space_of(*shapes)
    vector = torch.randn(space.size, requires_grad=True)
    views = space.views(vector)
    packed = space.pack(views)
    assert torch.equal(packed, vector) and not packed.requires_grad
    assert packed.data_ptr() != vector.data_ptr() == views["0"].data_ptr()
    assert [views[name].shape for name in space.names] == [torch.Size(shape) for shape in shapes]
    sum((view**2).sum() for view in views.values()).backward()
    assert torch.equal(vector.grad, 2 * vector)


def test_parameters_keep_their_order_without_the_frozen_and_the_tied():
    network = seeded(three_exits)
    network.stages[1][0].weight.requires_grad_(False)
    space, named = FlatSpace.of(network), dict(network.named_parameters())
    assert list(space.names) == [name for name in named if name != "stages.1.0.weight"]
    assert torch.equal(space.pack(named), torch.cat([named[name].flatten() for name in space.names]))
    space = FlatSpace.of(Tied())
    assert space.names == ("into.weight", "into.bias", "first.weight", "first.bias", "second.bias")
    assert space.size == 16 * 3 + 3 + 9 + 3 + 3


def test_a_network_without_trainable_float32_parameters_is_refused():
    with pytest.raises(ValueError, match="no trainable parameter"):
        FlatSpace.of(nn.ReLU())
    with pytest.raises(ValueError, match=r"parameter weight is torch.float64"):
        FlatSpace.of(nn.Linear(2, 2).double())


def cover(segments):
    """Segment of every element according to the blocks; −1 where no block or more than one lies."""
    numbers = torch.full((segments.space.size,), -1)
    times = torch.zeros(segments.space.size, dtype=torch.int64)
    for block in segments.blocks:
        length, rest = divmod(block.stop - block.start, block.parts)
        assert rest == 0 and length > 0
        for part in range(block.parts):
            stretch = slice(block.start + part * length, block.start + (part + 1) * length)
            numbers[stretch] = block.first + part
            times[stretch] += 1
    numbers[times != 1] = -1
    return numbers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 5, 1 << 16])
@settings(deadline=None, max_examples=25)
@given(shapes=SHAPES)
def test_blocks_are_short_and_put_every_element_into_its_segment(kind, size, shapes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", size)
        segments = Segments(kind, space_of(*shapes))
    numbers = segment_numbers(kind, shapes)
    assert torch.equal(cover(segments), numbers)
    assert torch.equal(segments.lengths, torch.bincount(numbers, minlength=segments.count))
    for block in segments.blocks:
        assert block.stop - block.start <= size or (kind == "channel" and block.parts == 1)


@pytest.mark.parametrize(
    ("kind", "shapes", "blocks"),
    [
        ("tensor", [(5,), (85,), (2,)], [(0, 5, 0, 1), (5, 75, 1, 1), (75, 90, 1, 1), (90, 92, 2, 1)]),
        ("channel", [(7, 30)], [(0, 60, 0, 2), (60, 120, 2, 2), (120, 180, 4, 2), (180, 210, 6, 1)]),
    ],
)
def test_a_long_tensor_is_cut_into_pieces_and_its_channels_are_grouped_whole(
    monkeypatch, kind, shapes, blocks
):
    monkeypatch.setattr(module, "_BLOCK", 70)
    segments = Segments(kind, space_of(*shapes))
    assert [(b.start, b.stop, b.first, b.parts) for b in segments.blocks] == blocks


def test_of_slots():
    space = space_of((4, 3), (2,), ())
    assert Segments("tensor", space).of_slots == [slice(0, 1), slice(1, 2), slice(2, 3)]
    assert Segments("channel", space).of_slots == [slice(0, 4), slice(4, 6), slice(6, 7)]
    assert Segments("network", space).of_slots == [slice(0, 1)] * 3


def test_spread_repeats_a_tensors_mask_over_its_channels():
    space = space_of((2, 3), (3,))
    mask = torch.tensor([[True, False], [True, True], [False, False]])
    assert torch.equal(Segments("tensor", space).spread(mask), mask)
    assert Segments("channel", space).spread(mask).int().tolist() == [
        [1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1],
        [0, 0, 0, 0, 0],
    ]
    assert Segments("network", space).spread(mask).tolist() == [[True], [True], [False]]


def test_a_block_is_what_lies_between_two_exits_or_a_head_or_a_top_module():
    """Ownership by block: a stage belongs to all exits from its own on, a head to its exit."""
    space = FlatSpace.of(three_exits())
    blocks = Segments("block", space)
    assert blocks.count == 6 and blocks.of_slots == [
        slice(s, s + 1) for s in [0] * 3 + [1] * 3 + [2] * 3 + [3, 3, 4, 4, 5, 5]
    ]
    assert blocks.lengths.tolist() == [36 + 8, 144 + 8, 144 + 8, 15, 15, 15]
    mask = blocks.spread(find_ownership(three_exits(), torch.zeros(2, 1, 4, 4), space))
    assert mask.int().tolist() == [[1, 0, 0, 1, 0, 0], [1, 1, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1]]
    means = torch.arange(6.0)[None]
    assert blocks.slot_means(means).tolist() == [[0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 4, 4, 5, 5]]
    own = nn.Sequential(
        OrderedDict(stem=nn.Linear(3, 2), body=nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    )
    assert Segments("block", FlatSpace.of(own)).of_slots == [slice(0, 1)] * 2 + [slice(1, 2)] * 4
    assert Segments("block", FlatSpace.of(own)).name(1) == "body.0.weight"


def test_slot_means():
    space = space_of((2, 3), (1,))
    values = torch.tensor([[1.0, 3.0, 5.0]])
    assert Segments("channel", space).slot_means(values).tolist() == [[2.0, 5.0]]
    assert Segments("tensor", space).slot_means(torch.tensor([[1.0, 4.0]])).tolist() == [[1.0, 4.0]]
    assert Segments("network", space).slot_means(torch.tensor([[0.5]])).tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=25)
@given(shapes=SHAPES)
def test_mean_of_a_spread_mask_is_the_mask(kind, shapes):
    segments = Segments(kind, space_of(*shapes))
    mask = torch.tensor([[True] * len(shapes), [False] * len(shapes)])
    assert torch.equal(segments.slot_means(segments.spread(mask).float()), mask.float())


def owners(network, example=EXAMPLE):
    """For every tensor the exits that own it."""
    space = FlatSpace.of(network)
    mask = find_ownership(network, example, space)
    assert mask.dtype == torch.bool
    return {name: mask[:, t].nonzero().flatten().tolist() for t, name in enumerate(space.names)}


def test_a_stage_belongs_to_all_exits_from_it_on_and_a_head_to_its_own():
    found = owners(seeded(three_exits))
    for depth in range(3):
        for tensor in ("0.weight", "1.weight", "1.bias"):
            assert found[f"stages.{depth}.{tensor}"] == list(range(depth, 3))
        assert found[f"heads.{depth}.2.weight"] == found[f"heads.{depth}.2.bias"] == [depth]


def test_an_unused_parameter_belongs_to_no_exit_and_a_tied_weight_to_all_its_users():
    network = seeded(three_exits)
    network.spare = nn.Linear(2, 2)
    found = owners(network)
    assert found["spare.weight"] == found["spare.bias"] == []
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


def test_finding_owners_leaves_no_trace_and_works_where_gradients_are_off():
    network = seeded(three_exits).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        mask = find_ownership(network, EXAMPLE + 5, FlatSpace.of(network))
        assert not torch.is_grad_enabled()
    assert mask.any(dim=0).all()
    assert network.training and network.stages[0][1].training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())

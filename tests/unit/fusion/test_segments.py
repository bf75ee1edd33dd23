from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_network import segment_numbers, space_of

from raygf.training import space as module
from raygf.training.space import Segments

KINDS = ("tensor", "channel", "network")
SHAPES = st.lists(st.lists(st.integers(1, 6), max_size=3).map(tuple), min_size=1, max_size=6)


def cover(segments: Segments) -> torch.Tensor:
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


@pytest.fixture(params=[1, 3, 7, 1 << 16])
def block_size(request, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", request.param)
    return request.param


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 5, 1 << 16])
def test_blocks_put_every_element_into_its_segment(kind, size):
    @settings(deadline=None, max_examples=25)
    @given(SHAPES)
    def check(shapes):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_BLOCK", size)
            assert torch.equal(cover(Segments(kind, space_of(*shapes))), segment_numbers(kind, shapes))

    check()


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=25)
@given(shapes=SHAPES)
def test_lengths_count_the_elements(kind, shapes):
    segments = Segments(kind, space_of(*shapes))
    expected = torch.bincount(segment_numbers(kind, shapes), minlength=segments.count)
    assert torch.equal(segments.lengths, expected)
    assert segments.lengths.sum() == segments.space.size


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_short(kind, block_size):
    segments = Segments(kind, space_of((3, 4), (20,), (2, 15), ()))
    for block in segments.blocks:
        assert block.stop - block.start <= block_size or block.parts == 1
        if kind != "channel":
            assert block.stop - block.start <= block_size


def test_a_long_tensor_is_cut_into_pieces_of_one_segment():
    block = module._BLOCK
    segments = Segments("tensor", space_of((5,), (block + 70,), (2,)))
    assert [(b.start, b.stop, b.first, b.parts) for b in segments.blocks] == [
        (0, 5, 0, 1),
        (5, 5 + block, 1, 1),
        (5 + block, block + 75, 1, 1),
        (block + 75, block + 77, 2, 1),
    ]
    assert segments.lengths.tolist() == [5, block + 70, 2]


def test_channels_of_a_long_tensor_are_grouped_whole(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 70)
    segments = Segments("channel", space_of((7, 30)))
    assert [(b.start, b.stop, b.first, b.parts) for b in segments.blocks] == [
        (0, 60, 0, 2),
        (60, 120, 2, 2),
        (120, 180, 4, 2),
        (180, 210, 6, 1),
    ]


@pytest.mark.parametrize(("kind", "count"), [("tensor", 3), ("channel", 4 + 4 + 1), ("network", 1)])
def test_count(kind, count):
    assert Segments(kind, space_of((4, 3), (4,), ())).count == count


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

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_network import dense_fuse, random_vectors, segment_numbers, space_of
from torch.testing import assert_close

from raygf.fusion.fuse import add_by_block, add_by_exit, dot_by_block, dot_by_exit, fuse
from raygf.training import space as module
from raygf.training.network import as_tensor
from raygf.training.space import Segments

KINDS = ("tensor", "channel", "network")
SHAPES = ((3, 2, 2), (3,), (), (2, 5))
SIZE = 12 + 3 + 1 + 10


@st.composite
def cases(draw):
    kind = draw(st.sampled_from(KINDS))
    shapes = draw(st.lists(st.lists(st.integers(1, 5), max_size=3).map(tuple), min_size=1, max_size=5))
    return kind, shapes, draw(st.integers(1, 4)), draw(st.sampled_from([2, 5, 1 << 16]))


@settings(deadline=None, max_examples=40)
@given(cases())
def test_both_walks_equal_the_dense_formula(case):
    kind, shapes, n, block = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", block)
        segments = Segments(kind, space_of(*shapes))
    numbers = segment_numbers(kind, shapes)
    base, vector, *deltas = random_vectors(n + 2, segments.space.size, dtype=torch.float64)
    weights = torch.randn(n, segments.count, dtype=torch.float64)
    expected = dense_fuse(base, deltas, weights, numbers)
    assert_close(add_by_block(base, deltas, weights, segments), expected)
    assert_close(add_by_exit(base, deltas, weights, segments), expected)
    # Σ over a segment, written with a one-hot matrix (P, S).
    hot = torch.nn.functional.one_hot(numbers, segments.count).double()
    sums = torch.stack([(vector * delta) @ hot for delta in deltas])
    assert_close(dot_by_block(vector, deltas, weights, segments), sums)
    assert_close(dot_by_exit(vector, deltas, weights, segments), sums)


@settings(deadline=None, max_examples=30)
@given(cases(), st.integers(0, 1000))
def test_both_walks_agree_where_exits_own_only_a_part(case, seed):
    """A weight of exactly 0 means: not owned. It adds nothing and gets no gradient."""
    kind, shapes, n, block = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", block)
        segments = Segments(kind, space_of(*shapes))
    numbers = segment_numbers(kind, shapes)
    base, vector, *deltas = random_vectors(n + 2, segments.space.size, dtype=torch.float64)
    stream = torch.Generator().manual_seed(seed)
    owned = torch.rand(n, segments.count, generator=stream) < 0.5
    weights = torch.rand(n, segments.count, dtype=torch.float64, generator=stream) * owned
    expected = dense_fuse(base, deltas, weights, numbers)
    assert_close(add_by_block(base, deltas, weights, segments), expected)
    assert_close(add_by_exit(base, deltas, weights, segments), expected)
    hot = torch.nn.functional.one_hot(numbers, segments.count).double()
    sums = torch.stack([(vector * delta) @ hot for delta in deltas]) * owned
    assert_close(dot_by_block(vector, deltas, weights, segments), sums)
    assert_close(dot_by_exit(vector, deltas, weights, segments), sums)


@pytest.mark.parametrize("kind", KINDS)
def test_long_tensors(kind, monkeypatch):
    """Longer than a block, in float32; sums of 70 000 products of order 1 are good to about 1e-4."""
    monkeypatch.setattr(module, "_BLOCK", 1 << 14)
    shapes = ((7, 10_000), (5,))
    segments = Segments(kind, space_of(*shapes))
    base, *deltas = random_vectors(3, 70_005)
    weights = torch.randn(2, segments.count)
    expected = dense_fuse(base, deltas, weights, segment_numbers(kind, shapes))
    assert_close(add_by_block(base, deltas, weights, segments), expected)
    sums = dot_by_exit(base.double(), [d.double() for d in deltas], weights, segments)
    assert_close(dot_by_block(base, deltas, weights, segments).double(), sums, atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_check(kind):
    segments = Segments(kind, space_of(*SHAPES))
    base, *deltas = random_vectors(4, SIZE, dtype=torch.float64)
    weights = torch.randn(3, segments.count, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: fuse(base, deltas, w, segments).sin(), (weights,))


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_equals_that_of_the_dense_formula(kind):
    segments = Segments(kind, space_of(*SHAPES))
    base, target, *deltas = random_vectors(5, SIZE)
    weights = torch.randn(3, segments.count, requires_grad=True)
    (fuse(base, deltas, weights, segments) - target).square().sum().backward()
    naive = weights.detach().clone().requires_grad_()
    dense = dense_fuse(base, deltas, naive, segment_numbers(kind, SHAPES))
    (dense - target).square().sum().backward()
    assert_close(weights.grad, naive.grad, atol=1e-4, rtol=1e-5)


def test_the_graph_is_one_node_that_saves_nothing_large():
    segments = Segments("tensor", space_of(*SHAPES))
    base, *deltas = random_vectors(4, SIZE)
    for tensor in (base, *deltas):
        tensor.requires_grad_()
    weights = torch.rand(3, segments.count, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        fused = fuse(base, deltas, weights, segments)
    assert all(tensor.numel() <= weights.numel() for tensor in saved)
    leaves = [node.variable for node, _ in fused.grad_fn.next_functions if node is not None]
    assert any(leaf is weights for leaf in leaves)
    fused.sum().backward()
    assert weights.grad is not None
    assert base.grad is None and all(delta.grad is None for delta in deltas)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("add", [add_by_block, add_by_exit])
def test_one_exit_alone_with_weight_one_is_its_own_training(kind, add):
    segments = Segments(kind, space_of(*SHAPES))
    base, delta = random_vectors(2, SIZE)
    assert torch.equal(add(base, [delta], torch.ones(1, segments.count), segments), base + delta)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("add", [add_by_block, add_by_exit])
def test_zero_weights_leave_every_bit(kind, add):
    segments = Segments(kind, space_of(*SHAPES))
    base, *deltas = random_vectors(4, SIZE)
    fused = add(base, deltas, torch.zeros(3, segments.count), segments)
    assert torch.equal(fused, base)
    assert fused.data_ptr() != base.data_ptr()


def test_what_an_exit_does_not_own_is_not_read():
    segments = Segments("tensor", space_of(*SHAPES))
    base, one, two = random_vectors(3, SIZE)
    weights = torch.tensor([[0.5, 0.0, 0.0, 1.0], [0.5, 0.0, 1.0, 0.0]], requires_grad=True)
    clean = fuse(base, [one, two], weights, segments)
    one[12:16] = two[12:15] = two[16:] = torch.nan
    fused = fuse(base, [one, two], weights, segments)
    assert torch.equal(fused, clean)
    fused.sum().backward()
    assert torch.isfinite(weights.grad).all()


def test_the_update_is_added():
    """A delta that points downhill lowers the loss ½‖W‖²; subtracted, it would raise it."""
    segments = Segments("tensor", space_of(*SHAPES))
    (base,) = random_vectors(1, SIZE)
    fused = fuse(base, [-0.1 * base], torch.ones(1, segments.count), segments)
    assert fused.square().sum() < base.square().sum()
    assert_close(fused, 0.9 * base)


def test_permuting_the_exits_changes_nothing():
    segments = Segments("channel", space_of(*SHAPES))
    base, *deltas = random_vectors(4, SIZE, dtype=torch.float64)
    weights = torch.rand(3, segments.count, dtype=torch.float64)
    turned = fuse(base, [deltas[2], deltas[0], deltas[1]], weights[[2, 0, 1]], segments)
    assert_close(turned, fuse(base, deltas, weights, segments))


def test_linear_in_the_weights():
    segments = Segments("channel", space_of(*SHAPES))
    base, *deltas = random_vectors(4, SIZE, dtype=torch.float64)
    a, b = torch.rand(2, 3, segments.count, dtype=torch.float64)
    step = lambda w: fuse(base, deltas, w, segments) - base  # noqa: E731
    assert_close(step(2 * a + b), 2 * step(a) + step(b))


@pytest.mark.parametrize("kind", KINDS)
def test_read_only_arrays_are_read_and_not_written(kind, recwarn):
    segments = Segments(kind, space_of(*SHAPES))
    arrays = [vector.numpy() for vector in random_vectors(4, SIZE)]
    before = [array.copy() for array in arrays]
    for array in arrays:
        array.flags.writeable = False
    base, *deltas = (as_tensor(array) for array in arrays)
    weights = torch.rand(3, segments.count, requires_grad=True)
    fuse(base, deltas, weights, segments).square().sum().backward()
    add_by_exit(base, deltas, weights.detach(), segments)
    dot_by_exit(base, deltas, weights.detach(), segments)
    assert all(np.array_equal(array, copy) for array, copy in zip(arrays, before, strict=True))
    assert not recwarn.list

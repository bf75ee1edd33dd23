import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_network import dense_fuse, random_vectors, segment_numbers, space_of
from torch.testing import assert_close

from raygf.fusion.fuse import add_by_block, add_by_exit, dot_by_block, dot_by_exit, fuse, fusion_weights
from raygf.training import space as module
from raygf.training.network import as_tensor
from raygf.training.space import Segments

KINDS = ("tensor", "channel", "network")
NORMALISE = ("softmax", "sigmoid")
SHAPES = ((3, 2, 2), (3,), (), (2, 5))
SIZE = 12 + 3 + 1 + 10


@pytest.mark.parametrize("kind", NORMALISE)
@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 5), s=st.integers(1, 6), seed=st.integers(0, 10_000))
def test_weights_of_the_owners_sum_to_one_whatever_the_others_and_the_order(kind, n, s, seed):
    stream = torch.Generator().manual_seed(seed)
    eta = 4 * torch.randn(n, s, generator=stream, dtype=torch.float64)
    owned = torch.rand(n, s, generator=stream) < 0.6
    alpha = fusion_weights(eta, owned, kind)
    assert (alpha[~owned] == 0).all() and (alpha[owned] > 0).all()
    assert_close(alpha.sum(dim=0), owned.any(dim=0).double())
    noisy = torch.where(owned, eta, eta + 100 * torch.randn(n, s, generator=stream))
    assert torch.equal(fusion_weights(noisy, owned, kind), alpha)
    order = torch.randperm(n, generator=stream)
    assert_close(fusion_weights(eta[order], owned[order], kind), alpha[order])
    if kind == "softmax":
        assert_close(fusion_weights(eta + 37, owned), alpha)


def test_weights_by_hand():
    owned = torch.tensor([[True], [True], [False]])
    softmax = fusion_weights(torch.tensor([[0.0], [math.log(3)], [9.0]]), owned)
    assert_close(softmax, torch.tensor([[0.25], [0.75], [0.0]]))
    one, two = 0.5, 1 / (1 + math.exp(-1))
    expected = torch.tensor([[one / (one + two)], [two / (one + two)], [0.0]])
    assert_close(fusion_weights(torch.tensor([[0.0], [1.0], [-2.0]]), owned, "sigmoid"), expected)
    free = fusion_weights(torch.tensor([[0.0], [-1.5], [3.0]]), owned, "free")
    assert_close(free, torch.tensor([[0.0], [-1.5], [0.0]]))
    assert torch.equal(free != 0, owned)


@pytest.mark.parametrize("kind", NORMALISE)
def test_very_small_logits_still_share_one(kind):
    """Far below zero the sigmoid leaves float32's normal numbers; the weights must not vanish with it."""
    alpha = fusion_weights(torch.full((2, 1), -200.0), torch.ones(2, 1, dtype=torch.bool), kind)
    assert_close(alpha, torch.full((2, 1), 0.5))


@pytest.mark.parametrize("kind", NORMALISE)
def test_gradient_check_of_the_weights_also_where_nobody_owns(kind):
    eta = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    owned = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 0]], dtype=torch.bool)
    assert not fusion_weights(eta, owned, kind)[:, 3].any()
    assert torch.autograd.gradcheck(lambda e: fusion_weights(e, owned, kind), (eta,))


@pytest.mark.parametrize("kind", NORMALISE)
def test_a_single_owner_gets_exactly_one_and_its_logit_no_gradient(kind):
    """Adam would turn even a rounding error into a step of full length."""
    eta = torch.tensor([[-40.0, -3.3, 0.1, 7.0, 90.0, *torch.linspace(-3, 3, 50)]] * 3, requires_grad=True)
    owned = torch.tensor([False, True, False])[:, None].expand(3, 55)
    alpha = fusion_weights(eta, owned, kind)
    assert torch.equal(alpha, owned.float())
    (alpha * torch.linspace(-1, 1.3, 55)).sum().backward()
    assert not eta.grad.any()


@st.composite
def cases(draw):
    kind = draw(st.sampled_from(KINDS))
    shapes = draw(st.lists(st.lists(st.integers(1, 5), max_size=3).map(tuple), min_size=1, max_size=5))
    return kind, shapes, draw(st.integers(1, 4)), draw(st.sampled_from([2, 5, 1 << 16]))


@settings(deadline=None, max_examples=30)
@given(cases(), st.integers(0, 1000))
def test_both_walks_equal_the_dense_formula_in_any_order_of_the_exits(case, seed):
    """Deltas are added. A weight of exactly 0 means: not owned; it adds nothing and gets no gradient."""
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
    order = torch.randperm(n, generator=stream).tolist()
    assert_close(fuse(base, [deltas[exit] for exit in order], weights[order], segments), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_check_of_the_fused_vector(kind):
    segments = Segments(kind, space_of(*SHAPES))
    base, *deltas = random_vectors(4, SIZE, dtype=torch.float64)
    weights = torch.randn(3, segments.count, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: fuse(base, deltas, w, segments).sin(), (weights,))


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
def test_weights_of_one_and_zero_are_exact(kind, add):
    segments = Segments(kind, space_of(*SHAPES))
    base, delta = random_vectors(2, SIZE)
    assert torch.equal(add(base, [delta], torch.ones(1, segments.count), segments), base + delta)
    fused = add(base, [delta], torch.zeros(1, segments.count), segments)
    assert torch.equal(fused, base) and fused.data_ptr() != base.data_ptr()


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

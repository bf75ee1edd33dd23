from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from raygf.fusion.fuse import carry, fusion_weights

KINDS = ("softmax", "sigmoid")


@st.composite
def logits_and_mask(draw):
    n, s, seed = draw(st.integers(1, 5)), draw(st.integers(1, 6)), draw(st.integers(0, 10_000))
    stream = torch.Generator().manual_seed(seed)
    eta = 4 * torch.randn(n, s, generator=stream, dtype=torch.float64)
    return eta, torch.rand(n, s, generator=stream) < 0.6


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=40)
@given(case=logits_and_mask())
def test_owners_share_one_and_others_get_nothing(kind, case):
    eta, owned = case
    alpha = fusion_weights(eta, owned, kind)
    assert (alpha[~owned] == 0).all()
    assert (alpha[owned] > 0).all()
    assert_close(alpha.sum(dim=0), owned.any(dim=0).double())


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=30)
@given(case=logits_and_mask(), seed=st.integers(0, 100))
def test_permuting_the_exits_permutes_the_weights(kind, case, seed):
    eta, owned = case
    order = torch.randperm(len(eta), generator=torch.Generator().manual_seed(seed))
    assert_close(fusion_weights(eta[order], owned[order], kind), fusion_weights(eta, owned, kind)[order])


@settings(deadline=None, max_examples=30)
@given(case=logits_and_mask(), shift=st.floats(-50, 50))
def test_softmax_ignores_a_common_shift(case, shift):
    eta, owned = case
    assert_close(fusion_weights(eta + shift, owned), fusion_weights(eta, owned))


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=30)
@given(case=logits_and_mask())
def test_logits_of_others_do_not_matter(kind, case):
    eta, owned = case
    noisy = torch.where(owned, eta, eta + 100 * torch.randn_like(eta))
    assert torch.equal(fusion_weights(noisy, owned, kind), fusion_weights(eta, owned, kind))


def test_softmax_is_torchs_where_all_own():
    eta = torch.randn(4, 7)
    assert torch.equal(fusion_weights(eta, torch.ones(4, 7, dtype=torch.bool)), torch.softmax(eta, 0))


def test_sigmoid_formula():
    eta = torch.tensor([[0.0], [1.0], [-2.0]])
    owned = torch.tensor([[True], [True], [False]])
    one, two = 0.5, 1 / (1 + torch.tensor(-1.0).exp().item())
    expected = torch.tensor([[one / (one + two)], [two / (one + two)], [0.0]])
    assert_close(fusion_weights(eta, owned, "sigmoid"), expected)


def test_pinned_softmax():
    alpha = fusion_weights(torch.tensor([[0.0], [torch.log(torch.tensor(3.0))]]), torch.ones(2, 1).bool())
    assert_close(alpha, torch.tensor([[0.25], [0.75]]))


@pytest.mark.parametrize("kind", KINDS)
def test_equal_logits_share_alike(kind):
    alpha = fusion_weights(torch.ones(4, 3), torch.ones(4, 3, dtype=torch.bool), kind)
    assert torch.equal(alpha, torch.full((4, 3), 0.25))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [-40.0, -3.3, 0.1, 7.0, 90.0])
def test_a_single_owner_gets_exactly_one(kind, value):
    owned = torch.tensor([[False], [True], [False]])
    eta = torch.tensor([[5.0], [value], [-1.0]])
    assert torch.equal(fusion_weights(eta, owned, kind), owned.float())


@pytest.mark.parametrize("kind", KINDS)
def test_very_small_logits_still_share_one(kind):
    """Far below zero the sigmoid leaves float32's normal numbers; the weights must not vanish with it."""
    alpha = fusion_weights(torch.full((2, 1), -200.0), torch.ones(2, 1, dtype=torch.bool), kind)
    assert_close(alpha, torch.full((2, 1), 0.5))


@pytest.mark.parametrize("kind", KINDS)
def test_an_orphaned_segment_gets_nothing_and_harms_nothing(kind):
    eta = torch.randn(3, 4, requires_grad=True)
    owned = torch.ones(3, 4, dtype=torch.bool)
    owned[:, 2] = False
    alpha = fusion_weights(eta, owned, kind)
    assert torch.equal(alpha[:, 2], torch.zeros(3))
    (alpha * torch.randn(3, 4)).sum().backward()
    assert torch.isfinite(eta.grad).all()
    assert torch.equal(eta.grad[:, 2], torch.zeros(3))
    assert (eta.grad[:, [0, 1, 3]] != 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_check(kind):
    eta = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    owned = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 0]], dtype=torch.bool)
    assert torch.autograd.gradcheck(lambda e: fusion_weights(e, owned, kind), (eta,))


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_owners_logit_has_no_gradient(kind):
    """Its weight is 1 whatever η is. Adam would turn even a rounding error into a step of full length."""
    eta = torch.linspace(-3, 3, 50).view(1, 50).requires_grad_()
    alpha = fusion_weights(eta, torch.ones(1, 50, dtype=torch.bool), kind)
    (alpha * torch.linspace(-1, 1.3, 50)).sum().backward()
    assert torch.equal(eta.grad, torch.zeros(1, 50))


def test_carry():
    old, fitted = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -2.0], requires_grad=True)
    carried = carry(old, fitted, 0.75)
    assert torch.equal(carried, torch.tensor([1.5, 1.0]))
    assert not carried.requires_grad


def test_carry_ends():
    old, fitted = torch.randn(2, 3), torch.randn(2, 3)
    assert torch.equal(carry(old, fitted, 1.0), old)
    assert torch.equal(carry(old, fitted, 0.0), fitted)

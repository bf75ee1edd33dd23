from __future__ import annotations

import pytest
import torch
from tiny_network import bind, random_vectors, space_of
from torch.testing import assert_close

from raygf.evaluation.conflict import delta_norms, shared_cosine, tensor_gramians
from raygf.fusion import segments

SPACE = space_of((2, 3), (4,), (5,))
ALL = torch.ones(2, 3, dtype=torch.bool)


@pytest.mark.parametrize("block", [3, 1 << 16])
def test_gramians_equal_the_naive_ones(block, monkeypatch):
    monkeypatch.setattr(segments, "_BLOCK", block)
    deltas = random_vectors(3, SPACE.size)
    matrix = torch.stack(deltas).double()
    expected = torch.stack([(p := matrix[:, a:b]) @ p.T for a, b in [(0, 6), (6, 10), (10, 15)]])
    grams = tensor_gramians(deltas, SPACE)
    assert grams.dtype == torch.float64
    assert_close(grams, expected, atol=1e-5, rtol=1e-5)


def test_gramians_of_a_network_add_up():
    space = bind().space
    deltas = random_vectors(2, space.size)
    total = tensor_gramians(deltas, space).sum(dim=0)
    assert total[0, 1].item() == pytest.approx((deltas[0] @ deltas[1]).item(), rel=1e-4)


def test_equal_deltas_have_cosine_one_and_opposite_ones_minus_one():
    (delta,) = random_vectors(1, SPACE.size)
    cosine = shared_cosine(tensor_gramians([delta, 3 * delta], SPACE), ALL)
    assert_close(cosine, torch.ones(2, 2, dtype=torch.float64))
    cosine = shared_cosine(tensor_gramians([delta, -0.5 * delta], SPACE), ALL)
    assert_close(cosine, torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64))


def test_orthogonal_deltas_have_cosine_zero():
    one, two = torch.zeros(15), torch.zeros(15)
    one[0] = two[1] = 2.0
    assert shared_cosine(tensor_gramians([one, two], SPACE), ALL)[0, 1] == 0


def test_only_what_both_own_counts():
    """The second tensor, where the deltas are opposite, belongs to the first exit alone."""
    (delta,) = random_vectors(1, SPACE.size)
    other = delta.clone()
    other[6:10] *= -7
    owned = torch.tensor([[True, True, True], [True, False, True]])
    cosine = shared_cosine(tensor_gramians([delta, other], SPACE), owned)
    assert cosine[0, 1].item() == pytest.approx(1)
    assert cosine[0, 1] == cosine[1, 0]


def test_cosine_by_hand():
    one, two = torch.zeros(15), torch.zeros(15)
    one[0], one[6], two[0], two[10] = 3.0, 4.0, 1.0, 2.0
    cosine = shared_cosine(tensor_gramians([one, two], SPACE), ALL)
    assert cosine[0, 1].item() == pytest.approx(3 / (5 * 5**0.5))


def test_nothing_in_common_is_nan():
    owned = torch.tensor([[True, False, False], [False, True, True]])
    cosine = shared_cosine(tensor_gramians(random_vectors(2, SPACE.size), SPACE), owned)
    assert cosine[0, 1].isnan() and cosine[1, 0].isnan()
    assert_close(cosine.diagonal(), torch.ones(2, dtype=torch.float64))


def test_a_zero_delta_is_nan():
    (delta,) = random_vectors(1, SPACE.size)
    cosine = shared_cosine(tensor_gramians([delta, torch.zeros(15)], SPACE), ALL)
    assert cosine[0, 1].isnan() and cosine[1, 1].isnan()


def test_permuting_the_exits_permutes_the_cosines():
    deltas, order = random_vectors(3, SPACE.size), [2, 0, 1]
    owned = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 1]], dtype=torch.bool)
    cosine = shared_cosine(tensor_gramians(deltas, SPACE), owned)
    turned = shared_cosine(tensor_gramians([deltas[i] for i in order], SPACE), owned[order])
    assert_close(turned, cosine[order][:, order])


def test_norms_are_over_what_an_exit_owns():
    deltas = random_vectors(2, SPACE.size)
    owned = torch.tensor([[True, True, True], [False, True, False]])
    norms = delta_norms(tensor_gramians(deltas, SPACE), owned)
    expected = torch.stack([deltas[0].norm(), deltas[1][6:10].norm()]).double()
    assert_close(norms, expected, atol=1e-5, rtol=1e-5)

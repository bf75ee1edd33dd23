"""Each weighting by its paper's equation, on gradients written out."""

import math

import pytest
import torch
from tiny_network import bind, setting_of
from torch.testing import assert_close

from raygf.methods.registry import WEIGHTINGS
from raygf.methods.torchjd import bargain

TWO = torch.tensor([[3.0, 1.0], [-2.0, 1.0]])
"""Two gradients in conflict."""


def make(name, **methods):
    return WEIGHTINGS[name](setting_of(bind(), **methods))


def weights_of(name, rows):
    return make(name)(rows @ rows.T)


def test_pcgrad_is_equation_3_and_upgrad_of_two_gradients_is_the_mean_of_it():
    """Projecting onto the dual cone of two gradients is projecting onto the other's normal plane."""
    g1, g2 = TWO
    product = g1 @ g2
    by_hand = (g1 - product / (g2 @ g2) * g2) + (g2 - product / (g1 @ g1) * g1)
    assert_close(weights_of("pcgrad", TWO) @ TWO, by_hand)
    assert_close(weights_of("upgrad", TWO) @ TWO, by_hand / 2, rtol=0, atol=1e-3)


def test_gradvac_projects_at_first_and_then_to_the_cosine_that_it_has_seen():
    """After one step with cosine s the moving average is s / 2, and both gradients are brought to that."""
    lengths, weighting = TWO.norm(dim=1, keepdim=True), make("gradvac")
    cosine = (TWO[0] @ TWO[1] / lengths.prod()).item()
    target = cosine / 2
    ratio = target * math.sqrt(1 - cosine**2) - cosine * math.sqrt(1 - target**2)
    ratio /= math.sqrt(1 - target**2)
    brought = TWO + ratio * lengths * (TWO / lengths).flip(0)
    cosines = torch.cosine_similarity(brought, TWO.flip(0))
    assert cosines.tolist() == pytest.approx([target, target])
    assert_close(weighting(TWO @ TWO.T) @ TWO, weights_of("pcgrad", TWO) @ TWO)
    assert_close(weighting(TWO @ TWO.T) @ TWO, brought.sum(dim=0))


THREE = torch.diag(torch.tensor([2.0, 1.0, 4.0]))
"""Three gradients at right angles."""
BY_HAND = {
    "pcgrad": [1, 1, 1],  # no conflict
    "gradvac": [1, 1, 1],
    "upgrad": [1 / 3, 1 / 3, 1 / 3],  # the mean: it lies in the dual cone
    # c times the length of the mean, √21 / 3, is added along the gradient with the least product.
    "cagrad": [1 / 3, 1 / 3 + 0.4 * math.sqrt(21) / 3, 1 / 3],
    "mgda": [4 / 21, 16 / 21, 1 / 21],  # w ∝ 1 / ‖g‖²
    "imtlg": [2 / 7, 4 / 7, 1 / 7],  # w ∝ 1 / ‖g‖
    "alignedmtl": [1 / 6, 1 / 3, 1 / 12],  # the mean of gradients as long as the shortest
    "fairgrad": [1 / 2, 1, 1 / 4],  # w ‖g‖² = 1 / w
    "nashmtl": [1 / 2 / math.sqrt(3), 1 / math.sqrt(3), 1 / 4 / math.sqrt(3)],  # as fairgrad, length 1
    "config": [7 / 6, 7 / 3, 7 / 12],  # along (1, 1, 1), as long as the projections: 2 + 1 + 4, over √3
}


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_three_gradients_at_right_angles(name):
    rough = {"mgda": 2e-3, "cagrad": 1e-3}.get(name, 1e-4)
    assert_close(weights_of(name, THREE), torch.tensor(BY_HAND[name]), rtol=0, atol=rough, check_dtype=False)


@pytest.mark.parametrize("factor", [1e-4, 1e-2, 100.0])
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_scale_is_as_documented(name, factor):
    """The step grows with the gradients; FairGrad's and Nash-MTL's stay as they are."""
    rows = torch.tensor([[3.0, 1.0, 0.0], [-2.0, 1.0, 0.5], [0.0, 1.0, 4.0]])
    torch.manual_seed(0)
    expected = weights_of(name, rows)
    if name in ("fairgrad", "nashmtl"):
        expected = expected / factor
    torch.manual_seed(0)
    assert_close(weights_of(name, factor * rows), expected, rtol=1e-2, atol=0)


@pytest.mark.parametrize("radius", [0.0, 0.4])
def test_cagrad_keeps_its_distance_from_the_mean(radius):
    mean = TWO.mean(dim=0)
    update = make("cagrad", cagrad_c=radius)(TWO @ TWO.T) @ TWO
    assert (update - mean).norm().item() == pytest.approx(radius * mean.norm().item(), rel=1e-3, abs=1e-6)
    assert (TWO @ update).min() > (TWO @ mean).min() or radius == 0


def test_imtlg_projects_equally_on_all():
    rows = torch.tensor([[3.0, 1.0, 0.0], [0.5, 2.0, 0.0], [0.0, 1.0, 4.0]])
    projections = (rows / rows.norm(dim=1, keepdim=True)) @ (weights_of("imtlg", rows) @ rows)
    assert_close(projections, projections[:1].expand(3))


def test_config_has_one_cosine_with_all():
    rows = torch.tensor([[3.0, 1.0, 0.0], [-0.5, 2.0, 0.0], [0.0, 1.0, 4.0]])
    update = weights_of("config", rows) @ rows
    cosines = (rows @ update) / rows.norm(dim=1) / update.norm()
    assert_close(cosines, cosines[:1].expand(3))
    assert update.norm().item() == pytest.approx((rows @ update / update.norm()).sum().item())


def test_nash_balances_the_gains():
    """G w = 1 / w up to a common factor, which makes the update's length 1, whatever came before."""
    stream, weighting = torch.Generator().manual_seed(0), make("nashmtl")
    for _ in range(200):
        rows = torch.randn(7, 50, generator=stream)
        weights = weighting(rows @ rows.T)
        assert_close(weights * (rows @ rows.T @ weights), torch.full((7,), 1 / 7), rtol=1e-3, atol=0)
        assert (weights > 0).all()
    assert torch.equal(weights, weights_of("nashmtl", rows))


@pytest.mark.parametrize(
    "rows",
    [
        [[1.0, 0.0], [-1.0, 0.0]],
        [[1.0, 2.0], [2.0, 4.0], [-3.0, -6.0], [1.0, 2.0]],
        [[0.0, 0.0], [3.0, 1.0], [1.0, -2.0]],
        [[1e-6, 0.0], [0.0, 1e4], [1.0, 1.0]],
    ],
    ids=["opposed", "in one line", "one is zero", "of unequal lengths"],
)
def test_nash_copes_with_gradients_that_have_no_bargain(rows):
    weights = weights_of("nashmtl", torch.tensor(rows))
    assert torch.isfinite(weights).all() and (weights > 0).all()


def test_a_matrix_that_is_no_gramian_has_no_bargain():
    with pytest.raises(ArithmeticError, match="did not reach"):
        bargain(torch.tensor([[1.0, -3.0], [-3.0, 1.0]]))

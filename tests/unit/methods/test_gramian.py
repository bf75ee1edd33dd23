"""The exits' gradients by hand: PCGrad by the paper's Eq. 3, the loss changes of Eq. 1-7."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_network import bind, random_batches
from torch.testing import assert_close

from raygf.config.run import MethodConfig
from raygf.methods.base import GramianMethod, combine, exit_gradients, merged_ranges
from raygf.methods.registry import WEIGHTINGS
from raygf.training.losses import exit_losses
from raygf.training.space import find_ownership

IMAGES, LABELS = random_batches(1, size=8)[0]


def weights_of(name: str, rows: torch.Tensor) -> torch.Tensor:
    return WEIGHTINGS[name](MethodConfig())(rows @ rows.T)


def test_every_row_is_one_exits_gradient():
    bound = bind()
    bound.network.eval()
    rows = exit_gradients(exit_losses(bound.network(IMAGES), LABELS), bound)
    for exit in range(3):
        loss = exit_losses(bound.network(IMAGES), LABELS)[exit]
        expected = torch.autograd.grad(loss, list(bound.network.parameters()), materialize_grads=True)
        assert_close(rows[exit], torch.cat([grad.flatten() for grad in expected]))


def test_shared_parameters_are_weighted_and_the_others_are_not():
    seen = []

    def weighting(gramian):
        seen.append(gramian)
        return torch.tensor([2.0, -1.0, 0.5])

    rows = torch.tensor([[1.0, 2.0, 5.0, 0.0], [3.0, 1.0, 0.0, 7.0], [0.0, 4.0, 0.0, 0.0]])
    out = torch.empty(4)
    combine(rows, [(0, 2)], weighting, out)
    assert_close(seen[0], rows[:, :2] @ rows[:, :2].T)
    assert_close(out, torch.tensor([2.0 - 3.0, 4.0 - 1.0 + 2.0, 5.0, 7.0]))


def test_the_gramian_is_that_of_the_shared_tensors_alone():
    bound, seen = bind(), []
    owned = find_ownership(bound.network, IMAGES[:2], bound.space)
    method = GramianMethod(lambda g: (seen.append(g), torch.ones(3))[1], owned, bound.space)
    bound.network.eval()
    method.backward(exit_losses(bound.network(IMAGES), LABELS), bound)
    rows = exit_gradients(exit_losses(bound.network(IMAGES), LABELS), bound)
    shared = [s for s, m in zip(bound.space.slots, owned.sum(0).tolist(), strict=True) if m > 1]
    columns = torch.cat([torch.arange(s.start, s.stop) for s in shared])
    assert_close(seen[0], rows[:, columns] @ rows[:, columns].T)
    assert len(columns) < bound.space.size


def test_touching_stretches_become_one():
    assert merged_ranges([(0, 3), (3, 5), (7, 8), (8, 9)]) == [(0, 5), (7, 9)]
    assert merged_ranges([]) == []


def test_pcgrad_of_two_gradients_is_equation_3():
    rows = torch.tensor([[3.0, 1.0], [-2.0, 1.0]])
    g1, g2 = rows
    product = g1 @ g2
    assert product < 0
    by_hand = (g1 - product / (g2 @ g2) * g2) + (g2 - product / (g1 @ g1) * g1)
    assert_close(weights_of("pcgrad", rows) @ rows, by_hand)


def test_upgrad_of_two_gradients_is_the_mean_of_equation_3s():
    """Projecting onto the dual cone of two gradients is projecting onto the other's normal plane."""
    rows = torch.tensor([[3.0, 1.0], [-2.0, 1.0]])
    by_hand = (weights_of("pcgrad", rows) @ rows) / 2
    assert_close(weights_of("upgrad", rows) @ rows, by_hand, rtol=0, atol=1e-3)


def test_gradvac_projects_at_first_and_then_to_the_cosine_that_it_has_seen():
    """After one step with cosine s the moving average is s / 2, and both gradients are brought to that."""
    rows = torch.tensor([[3.0, 1.0], [-2.0, 1.0]])
    lengths = rows.norm(dim=1)
    cosine = (rows[0] @ rows[1] / lengths.prod()).item()
    target = cosine / 2
    ratio = target * math.sqrt(1 - cosine**2) - cosine * math.sqrt(1 - target**2)
    ratio /= math.sqrt(1 - target**2)
    brought = rows + ratio * lengths[:, None] * (rows / lengths[:, None]).flip(0)
    for number in (0, 1):
        other = rows[1 - number]
        assert (brought[number] @ other / brought[number].norm() / other.norm()).item() == pytest.approx(
            target
        )
    weighting = WEIGHTINGS["gradvac"](MethodConfig())
    assert_close(weighting(rows @ rows.T) @ rows, weights_of("pcgrad", rows) @ rows)
    assert_close(weighting(rows @ rows.T) @ rows, brought.sum(dim=0))


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
    rough = {"mgda": 2e-3, "nashmtl": 1e-3, "cagrad": 1e-3}.get(name, 1e-4)
    assert_close(weights_of(name, THREE), torch.tensor(BY_HAND[name]), rtol=0, atol=rough, check_dtype=False)


@pytest.mark.parametrize("factor", [1e-4, 1e-2, 100.0])
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_scale_is_as_documented(name, factor):
    """The step grows with the gradients; FairGrad's and (where it is clipped) Nash-MTL's stay as they are."""
    rows = torch.tensor([[3.0, 1.0, 0.0], [-2.0, 1.0, 0.5], [0.0, 1.0, 4.0]])
    torch.manual_seed(0)
    expected = weights_of(name, rows)
    if name in ("fairgrad", "nashmtl"):
        expected = expected / factor
    torch.manual_seed(0)
    assert_close(weights_of(name, factor * rows), expected, rtol=1e-2, atol=0)


def test_pcgrad_leaves_gradients_that_agree():
    assert_close(weights_of("pcgrad", torch.tensor([[3.0, 1.0], [2.0, 1.0]])), torch.ones(2))


def test_mgda_finds_the_shortest_vector():
    """Of the hull of (2, 0) and (0, 1): the foot of the perpendicular from 0."""
    assert_close(
        weights_of("mgda", torch.tensor([[2.0, 0.0], [0.0, 1.0]])),
        torch.tensor([0.2, 0.8]),
        rtol=1e-2,
        atol=1e-2,
    )


def test_cagrad_without_radius_is_the_mean():
    rows = torch.tensor([[3.0, 1.0], [-2.0, 1.0]])
    assert_close(WEIGHTINGS["cagrad"](MethodConfig(cagrad_c=0.0))(rows @ rows.T), torch.tensor([0.5, 0.5]))


def test_cagrad_keeps_its_distance_from_the_mean():
    rows = torch.tensor([[3.0, 1.0], [-2.0, 1.0]])
    mean = rows.mean(dim=0)
    update = WEIGHTINGS["cagrad"](MethodConfig(cagrad_c=0.4))(rows @ rows.T) @ rows
    assert (update - mean).norm().item() == pytest.approx(0.4 * mean.norm().item(), rel=1e-3)
    assert (rows @ update).min() > (rows @ mean).min()


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
    """G w = 1 / w up to a common factor, which clipping the update's length takes."""
    rows = torch.tensor([[3.0, 1.0, 0.0], [0.5, 2.0, 0.0], [0.0, 1.0, 4.0]])
    weights = weights_of("nashmtl", rows)
    gains = weights * (rows @ rows.T @ weights)
    assert_close(gains, gains.mean().expand(3), rtol=2e-2, atol=0)


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("degrees", [100, 130, 160])
def test_equations_2_to_7_of_the_paper(ratio, degrees):
    """Eq. 2, 4, 5 and 6 are squared lengths of the updates, and Eq. 7 compares two of them.

    The first-order change of the summed loss is ``update · (g_1 + g_2)``: the same for the plain sum (Eq. 2),
    another for projected gradients.
    """
    angle = math.radians(degrees)
    g1 = torch.tensor([1.0, 0.0], dtype=torch.float64)
    g2 = ratio * torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    p, squares, cosine = (g1 @ g2).item(), 1 + ratio**2, math.cos(angle)
    h1, h2 = g1 - p / (g2 @ g2) * g2, g2 - p / (g1 @ g1) * g1

    def length(update):
        return (update @ update).item()

    def drop(update):
        return (update @ (g1 + g2)).item()

    both = squares - p**2 - p**2 / ratio**2 + 2 * p * (cosine**2 - 1)
    assert length(g1 + g2) == pytest.approx(squares + 2 * p) == drop(g1 + g2)
    assert length(h1 + h2) == pytest.approx(both)
    assert length(h1 + g2) == pytest.approx(squares - p**2 / ratio**2)
    assert length(g1 + h2) == pytest.approx(squares - p**2)
    assert (length(h1 + h2) > length(g1 + h2)) == (ratio > -0.5 * cosine / math.sin(angle) ** 2)
    assert drop(h1 + h2) == pytest.approx(squares - p**2 - p**2 / ratio**2)
    assert drop(g1 + h2) == pytest.approx(squares - p**2 + p)

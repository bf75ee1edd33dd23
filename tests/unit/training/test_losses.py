import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from raygf.config.run import LossConfig, OptimConfig
from raygf.errors import ConfigError, NonFiniteError
from raygf.records import ExitScore
from raygf.training.losses import (
    Tally,
    decay_factor,
    distilled_losses,
    exit_hits,
    exit_loss_weights,
    exit_losses,
    loss_coefficients,
    make_losses,
)
from raygf.training.peers import Peers

SDN = LossConfig(coefficients="sdn")
BATCHES = [
    (torch.tensor([1.0, 2.0]), torch.tensor([3, 0]), 3),
    (torch.tensor([4.0, 8.0]), torch.tensor([1, 1]), 1),
]
LABELS = torch.tensor([0, 3, 1, 2, 0])
MEAN = ExitScore((1.75, 3.5), (1.0, 0.25))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_are_mean_cross_entropies_in_float32_and_each_trains_its_exit_alone(dtype):
    leaves = [torch.randn(5, 4, dtype=dtype, requires_grad=True) for _ in range(3)]
    losses, plain = exit_losses(leaves, LABELS), [F.cross_entropy(leaf.float(), LABELS) for leaf in leaves]
    assert_close(losses, plain)
    expected = torch.autograd.grad(plain[1], leaves[1])
    found = torch.autograd.grad(losses[1], leaves, materialize_grads=True)
    assert_close(found[1], expected[0])
    assert not found[0].any() and not found[2].any()


def test_hits():
    one = torch.tensor([[2.0, 1.0], [0.0, 1.0], [5.0, 1.0]])
    two = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    hits = exit_hits([one, two], torch.tensor([0, 1, 1]))
    assert hits.dtype == torch.int64
    assert hits.tolist() == [2, 2]
    assert exit_hits([one, two], torch.tensor([1, 1, 1])).tolist() == [1, 3]


def test_distilled_losses_by_hand():
    shallow = torch.tensor([[2.0, 0.0, -1.0]], requires_grad=True)
    deep = torch.tensor([[0.5, 1.5, 0.0]], requires_grad=True)
    labels = torch.tensor([1])
    found = distilled_losses([shallow, deep], labels, LossConfig(gamma=0.9, temperature=3.0))
    teacher, student = (deep / 3).softmax(1), (shallow / 3).softmax(1)
    divergence = (teacher * (teacher.log() - student.log())).sum()
    plain = F.cross_entropy(shallow, labels)
    assert_close(found[0], 0.1 * plain + 0.9 * 9 * divergence)
    assert_close(found[1], F.cross_entropy(deep, labels))
    found[0].backward()
    assert shallow.grad.any() and deep.grad is None  # the teacher learns nothing from it


def test_smoothed_and_mixed_labels_by_hand():
    """Of four classes the right one has 1 − 0.2 + 0.2/4 of the probability, each other one 0.2/4."""
    logits, labels = torch.randn(2, 4), torch.tensor([1, 3])
    target = torch.full((2, 4), 0.05)
    target[[0, 1], labels] = 0.85
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    assert_close(make_losses(LossConfig(smoothing=0.2))([logits], labels), [expected])
    assert_close(exit_losses([logits], target), [expected])
    distilled = make_losses(LossConfig(smoothing=0.2, distill=True, gamma=0.0))
    assert_close(distilled([logits, logits], labels), [expected] * 2)
    assert exit_hits([torch.eye(4)[:2]], torch.tensor([[0.6, 0.4, 0, 0], [0, 0.3, 0, 0.7]])).tolist() == [1]


def test_the_configuration_chooses_the_losses():
    logits = [torch.randn(5, 4) for _ in range(3)]
    plain = exit_losses(logits, LABELS)
    assert make_losses(LossConfig()) is exit_losses
    hinton = LossConfig(distill=True, gamma=0.5, temperature=2.0)
    chosen = make_losses(hinton)(logits, LABELS)
    assert_close(chosen, distilled_losses(logits, LABELS, hinton))
    program = distilled_losses(logits, LABELS, replace(hinton, kd_reduction="mean"))
    hard = torch.stack(plain)[:2] / 2
    assert_close(torch.stack(program)[:2] - hard, (torch.stack(chosen)[:2] - hard) / 4)  # four classes
    assert_close(distilled_losses(logits, LABELS, LossConfig(gamma=0.0)), plain)
    assert_close(distilled_losses(logits[:1], LABELS, LossConfig()), plain[:1])


@pytest.mark.parametrize("rounds", [4, 40, 90, 100, 160, 300])
def test_rates_decay_at_the_first_round_that_starts_after_a_milestone(rounds):
    """In whole numbers, without rounding: 0.55 · 100 is a little more than 55."""
    for percent in range(0, 101, 5):
        optim = OptimConfig(milestones=(percent / 100,), decay=0.5)
        for round in range(1, rounds + 1):
            decayed = (round - 1) * 100 >= percent * rounds
            assert decay_factor(round, rounds, optim) == (0.5 if decayed else 1.0), (percent, round)
    factors = [decay_factor(round, rounds, OptimConfig()) for round in range(1, rounds + 1)]
    assert factors[: math.ceil(rounds / 2)] == [1.0] * math.ceil(rounds / 2)
    assert factors[-1] == pytest.approx(0.01)


def test_cosine_and_warm_up_by_hand():
    """Two rounds of warm-up, then a quarter, a half and three quarters of half a turn."""
    cosine = OptimConfig(schedule="cosine", warmup=2)
    expected = [1 / 3, 2 / 3, 1.0, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2]
    assert [decay_factor(round, 6, cosine) for round in range(1, 7)] == pytest.approx(expected)
    assert [decay_factor(round, 2, OptimConfig(schedule="cosine")) for round in (1, 2)] == [1.0, 0.5]
    steps = OptimConfig(warmup=1, milestones=(0.5,))
    assert [decay_factor(round, 4, steps) for round in range(1, 5)] == pytest.approx([0.5, 1, 0.1, 0.1])


@given(st.integers(1, 100), st.integers(1, 7))
def test_sdn_coefficients_ramp_linearly_to_the_published_values(round, exits):
    """From 0.01 in the first of 100 rounds; the final exit keeps 1."""
    last = (0.15, 0.30, 0.45, 0.60, 0.75, 0.90)[: exits - 1]
    expected = [0.01 + (end - 0.01) * (round - 1) / 99 for end in last]
    assert loss_coefficients(round, 100, exits, SDN) == pytest.approx((*expected, 1.0))
    assert loss_coefficients(round, 100, exits, LossConfig(coefficients="last")) == (
        *[0.0] * (exits - 1),
        1.0,
    )
    assert loss_coefficients(round, 100, exits, LossConfig()) == (1.0,) * exits


def test_sdn_coefficients_at_their_limits():
    assert loss_coefficients(1, 1, 3, SDN) == (0.01, 0.01, 1.0)
    with pytest.raises(ConfigError, match="supports at most 6 inner exits; this network has 7"):
        loss_coefficients(1, 9, 8, SDN)


def test_all_losses_have_the_coefficient_of_the_exit_that_trains():
    """So its own share, 1 / (1 + 6 · 0.1) on 7 exits, is that of MSDNet in every round."""
    assert exit_loss_weights(1, (0.2, 0.4, 1.0), 0.1) == pytest.approx((0.04, 0.4, 0.04))
    assert exit_loss_weights(2, (0.2, 0.4, 1.0), 0.0) == (0.0, 0.0, 1.0)
    assert exit_loss_weights(0, (1.0, 1.0, 1.0), 0.1) == (1.0, 0.1, 0.1)
    for round in (1, 50, 100):
        weights = exit_loss_weights(0, loss_coefficients(round, 100, 7, SDN), 0.1)
        assert weights[0] / sum(weights) == pytest.approx(1 / 1.6)


def tally(batches, *peers):
    made = Tally(*peers)
    for batch in batches:
        made.add(*batch)
    return made


def test_scores_are_means_over_images():
    assert tally(BATCHES).score() == tally(BATCHES).finite_score("here") == MEAN
    assert len(tally(BATCHES)) == 2
    weight = torch.ones(2, requires_grad=True)
    assert tally([(weight * losses, hits, size) for losses, hits, size in BATCHES]).score() == MEAN


def test_with_peers_it_is_the_sum_of_all():
    """Two workers that see the same, each with half the weight."""
    peers = Peers()
    peers.count, peers.sum_ = 2, lambda tensor: tensor.mul_(2)
    halves = [(losses / 2, hits, size) for losses, hits, size in BATCHES]
    assert tally(halves, peers).score() == ExitScore(MEAN.loss, (2.0, 0.5))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_or_weight_that_is_not_finite_is_named(value):
    bad = [*BATCHES, (torch.tensor([0.0, value]), torch.tensor([0, 0]), 2)]
    bad += [(torch.tensor([value, value]), torch.tensor([0, 0]), 2)]
    with pytest.raises(NonFiniteError, match=rf"^here: the loss of exit 2 became {value:g} at step 3; lower"):
        tally(bad).finite_score("here")
    with pytest.raises(NonFiniteError, match="step 3; not finite after the last step: stem; lower"):
        tally(bad).finite_score("here", "stem")
    with pytest.raises(NonFiniteError, match=r"^here: a weight became infinite .* step, 2: stem; "):
        tally(BATCHES).finite_score("here", "stem")
    assert not math.isfinite(tally(bad).score().loss[1])

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raygf.config.run import LossConfig, OptimConfig
from raygf.training.losses import decay_factor, exit_loss_weights, loss_coefficients

SDN = LossConfig(coefficients="sdn")


@pytest.mark.parametrize(
    ("rounds", "last_full", "last_tenth"), [(300, 150, 225), (90, 45, 67), (40, 20, 30), (4, 2, 3)]
)
def test_decays_right_after_half_and_three_quarters(rounds, last_full, last_tenth):
    """90 · 0.75 = 67.5: the second decay comes with the first round that starts after it."""
    optim = OptimConfig()
    factors = [decay_factor(round, rounds, optim) for round in range(1, rounds + 1)]
    end = last_tenth + (rounds * 0.75 > last_tenth)
    assert factors[:last_full] == [1.0] * last_full
    assert factors[last_full:end] == pytest.approx([0.1] * (end - last_full))
    assert factors[end:] == pytest.approx([0.01] * (rounds - end))


@pytest.mark.parametrize("rounds", [40, 90, 100, 160, 300])
@pytest.mark.parametrize("percent", range(5, 100, 5))
def test_a_milestone_in_percent_takes_effect_in_the_exact_round(percent, rounds):
    optim = OptimConfig(milestones=(percent / 100,))
    for round in range(1, rounds + 1):
        decayed = (round - 1) * 100 >= percent * rounds  # in whole numbers: no rounding
        assert decay_factor(round, rounds, optim) == (0.1 if decayed else 1.0), round


def test_no_milestones_no_decay():
    assert {decay_factor(r, 10, OptimConfig(milestones=())) for r in range(1, 11)} == {1.0}


def test_milestone_at_the_ends():
    assert decay_factor(1, 10, OptimConfig(milestones=(0.0,))) == 0.1
    assert decay_factor(10, 10, OptimConfig(milestones=(1.0,))) == 1.0


def test_decay_is_the_configured_factor():
    optim = OptimConfig(milestones=(0.5, 0.75), decay=0.5)
    assert [decay_factor(r, 4, optim) for r in (1, 2, 3, 4)] == [1, 1, 0.5, 0.25]


@given(st.integers(1, 50), st.lists(st.floats(0, 1), max_size=4))
def test_the_rate_never_grows(rounds, milestones):
    optim = OptimConfig(milestones=tuple(milestones))
    factors = [decay_factor(round, rounds, optim) for round in range(1, rounds + 1)]
    assert all(later <= earlier for earlier, later in pairwise(factors))


def test_ones():
    assert loss_coefficients(3, 10, 4, LossConfig()) == (1.0,) * 4


def test_sdn_starts_at_one_hundredth():
    assert loss_coefficients(1, 100, 7, SDN) == (*(0.01,) * 6, 1.0)


def test_sdn_ends_at_the_published_values():
    assert loss_coefficients(100, 100, 7, SDN) == pytest.approx((0.15, 0.30, 0.45, 0.60, 0.75, 0.90, 1.0))


def test_sdn_is_linear_in_between():
    assert loss_coefficients(51, 101, 4, SDN) == pytest.approx((0.08, 0.155, 0.23, 1.0))


@given(st.integers(1, 100), st.integers(1, 7))
def test_sdn_final_exit_keeps_one(round, exits):
    coefficients = loss_coefficients(round, 100, exits, SDN)
    assert len(coefficients) == exits
    assert coefficients[-1] == 1.0


def test_sdn_of_one_round():
    assert loss_coefficients(1, 1, 3, SDN) == (0.01, 0.01, 1.0)


def test_sdn_refuses_more_exits_than_it_knows():
    assert len(loss_coefficients(1, 9, 7, SDN)) == 7
    with pytest.raises(ValueError, match="6 inner exits, not 7"):
        loss_coefficients(1, 9, 8, SDN)


def test_exit_loss_weights():
    assert exit_loss_weights(1, (0.2, 0.4, 1.0), 0.1) == pytest.approx((0.02, 0.4, 0.1))
    assert exit_loss_weights(2, (0.2, 0.4, 1.0), 0.0) == (0.0, 0.0, 1.0)
    assert exit_loss_weights(0, (0.2, 0.4, 1.0), 1.0) == (0.2, 0.4, 1.0)

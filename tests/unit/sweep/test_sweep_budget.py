"""Equal compute for every trial, by passes over the training images."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raygf.config.recipes import at_equal_compute, get_recipe
from raygf.errors import ConfigError
from raygf.methods.registry import ROUND_METHODS, STEP_METHODS
from raygf.sweep.plan import budget_of, passes_per_round, within_budget

RUN = get_recipe("digits")


def test_a_round_costs_what_the_drivers_count():
    assert {passes_per_round(method, 3) for method in ROUND_METHODS} == {4}
    assert {passes_per_round(method, 3) for method in STEP_METHODS} == {1}
    assert passes_per_round("mine:method", 3) == 1
    assert passes_per_round("delta-mine:method", 7) == 8


def test_joint_sgd_gets_the_rounds_of_the_recipe_at_equal_compute():
    budget = budget_of(RUN, 3)
    assert budget == 160
    assert within_budget(replace(RUN, method="sgd"), budget, 3) == at_equal_compute(RUN, 3)
    assert within_budget(RUN, budget, 3) == RUN


@pytest.mark.parametrize("budget", [1, 4, 7, 160])
@pytest.mark.parametrize("method", ["sgd", "metagf", "delta-mean"])
def test_no_trial_gets_more_than_the_budget_or_a_round_less(method, budget):
    run = replace(RUN, method=method)
    cost = passes_per_round(method, 3)
    if cost > budget:
        with pytest.raises(
            ConfigError, match=rf"gets {budget} passes .* too few for one round of {method} \(4\)"
        ):
            within_budget(run, budget, 3)
        return
    spent = within_budget(run, budget, 3).rounds * cost
    assert budget - cost < spent <= budget

from __future__ import annotations

from dataclasses import replace

import pytest

from raygf.config.recipes import RECIPES, at_equal_compute, get_recipe
from raygf.config.run import RunConfig
from raygf.errors import ConfigError
from raygf.methods.registry import check_method


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_is_a_complete_run(name):
    run = get_recipe(name)
    assert isinstance(run, RunConfig)
    check_method(run.method)
    assert get_recipe(name) == run
    assert (RECIPES[name].__doc__ or "").strip()
    assert not run.storage.resume and run.stop_after is None


def test_the_ones_that_must_be_there():
    """Those of the paper are in test_paper_recipes.py."""
    assert {"digits", "digits-sgd"} <= RECIPES.keys()


def test_equal_compute_is_equal_training_passes():
    """A round of Meta-GF costs a pass an exit and one for the fusion weights."""
    meta = get_recipe("digits")
    joint = at_equal_compute(meta, exits=3)
    assert joint.method == "sgd"
    assert joint.rounds == meta.rounds * (meta.model.msdnet.exits + 1)
    assert replace(joint, method=meta.method, rounds=meta.rounds) == meta
    assert get_recipe("digits-sgd") == joint


def test_an_unknown_recipe_is_refused_with_those_that_exist():
    with pytest.raises(ConfigError) as error:
        get_recipe("digit")
    assert str(error.value).startswith("recipe = 'digit': must be one of ")
    assert all(name in str(error.value) for name in RECIPES)

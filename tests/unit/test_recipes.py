from __future__ import annotations

from dataclasses import replace

import pytest

from raygf.config import MSDNetConfig, OptimConfig, RunConfig
from raygf.errors import ConfigError
from raygf.methods.registry import check_method
from raygf.recipes import RECIPES, at_equal_compute, get_recipe

CIFAR = ("cifar10-msdnet-metagf", "cifar10-msdnet-sgd", "cifar100-msdnet-metagf", "cifar100-msdnet-sgd")


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_is_a_complete_run(name):
    run = get_recipe(name)
    assert isinstance(run, RunConfig)
    check_method(run.method)
    assert get_recipe(name) == run
    assert (RECIPES[name].__doc__ or "").strip()
    assert not run.storage.resume and run.stop_after is None


def test_the_ones_that_must_be_there():
    assert {"digits", "digits-sgd", *CIFAR} <= RECIPES.keys()


@pytest.mark.parametrize("name", CIFAR)
def test_cifar_recipes_have_the_papers_numbers(name):
    run = get_recipe(name)
    assert (run.rounds, run.batch_size) == (300, 64)
    assert run.optim == OptimConfig(0.1, 0.9, 1e-4, (0.5, 0.75), 0.1, False)
    assert (run.data.source, run.data.val, run.data.pad, run.data.flip) == (
        name.split("-")[0],
        5000,
        4,
        True,
    )
    assert run.data.per_class is None and run.data.train_limit is None and run.data.image_size is None
    assert run.model.msdnet == MSDNetConfig("conv3", 7, 4, 2, 16, 16, (1, 2, 4), 0.5, 128)
    assert run.method == name.split("-")[2]
    fusion = run.fusion
    assert (fusion.segments, fusion.normalise, fusion.lr) == ("tensor", "softmax", 0.1)
    assert (fusion.ema, fusion.epsilon, fusion.batchnorm) == (0.9, 1.0, "recalibrated")
    assert (run.loss.aux, run.loss.coefficients) == (0.1, "ones")  # not SDN's ramp


def test_sgd_differs_from_metagf_in_the_method_alone():
    for source in ("cifar10", "cifar100"):
        joint, meta = get_recipe(f"{source}-msdnet-sgd"), get_recipe(f"{source}-msdnet-metagf")
        assert replace(joint, method="metagf") == meta


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

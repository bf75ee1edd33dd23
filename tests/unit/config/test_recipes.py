"""Every column of the paper's Tables 1 to 5 has a recipe, with the hyper-parameters of its Section 4."""

from dataclasses import replace

import pytest

from raygf.config.recipes import RECIPES, at_equal_compute, get_recipe
from raygf.config.run import DataConfig, FusionConfig, LossConfig, MethodConfig, MSDNetConfig, OptimConfig
from raygf.errors import ConfigError
from raygf.methods.registry import check_method

METHODS = ("metagf", "sgd", "ge", "cagrad", "pcgrad")
TABLES = {
    1: [f"{data}-msdnet-{method}" for data in ("cifar100", "cifar10") for method in METHODS],
    2: [f"imagenet-msdnet-{method}" for method in ("sgd", "ge", "pcgrad", "metagf")],
    3: [f"{data}-vgg16-{method}" for data in ("cifar100", "cifar10") for method in METHODS],
    4: [f"{data}-resnet56-{method}" for data in ("cifar100", "cifar10") for method in METHODS],
    5: [f"cifar100-150-msdnet-{column}" for column in ("sgd", "metagf", "kd", "metagf-kd")],
}
NAMES = [name for names in TABLES.values() for name in names]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_a_complete_run(name):
    run = get_recipe(name)
    check_method(run.method)
    assert RECIPES[name].description.strip() and "\n" not in RECIPES[name].description
    assert not run.storage.resume and run.stop_after is None


@pytest.mark.parametrize(("table", "name"), [(t, name) for t, names in TABLES.items() for name in names])
def test_every_column_names_its_table_and_differs_in_method_data_and_distillation(table, name):
    assert f"(Table {table})" in RECIPES[name].description
    run, first = get_recipe(name), get_recipe(TABLES[table][0])
    distillation = {"distill": first.loss.distill, "kd_reduction": first.loss.kd_reduction}
    alike = replace(run, method=first.method, loss=replace(run.loss, **distillation))
    assert replace(alike, data=first.data) == first


@pytest.mark.parametrize("name", NAMES)
def test_optimisation_is_the_papers(name):
    """SGD with momentum 0.9 from 0.1, divided by 10 after a half and three quarters; Adam from 0.1, too.

    SDN networks ramp their losses; distillation has γ = 0.9 and T = 3, its KL divided as in the program.
    """
    run, vgg = get_recipe(name), "vgg16" in name
    assert run.optim == OptimConfig(0.1, 0.9, 5e-4 if vgg else 1e-4, (0.5, 0.75), 0.1, False)
    segments = "channel" if vgg else "tensor"
    assert run.fusion == FusionConfig(segments, "softmax", 0.1, 0.9, 1.0, "recalibrated")
    assert run.methods == MethodConfig(cagrad_c=0.4)
    column = name.partition("-150")[2].partition("msdnet-")[2] or name.rpartition("-")[2]
    assert run.method == {"kd": "sgd", "metagf-kd": "metagf"}.get(column, column)
    coefficients = "ones" if "msdnet" in name else "sdn"
    distill = column.endswith("kd")
    assert run.loss == LossConfig(0.1, coefficients, distill, 0.9, 3.0, "mean" if distill else "batchmean")


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("cifar")])
def test_data_network_and_length_on_cifar(name):
    """5 000 images are held out; crops of images padded by 4, and flips; batches of 64."""
    run, (source, key, *_) = get_recipe(name), name.replace("-150", "").split("-")
    per_class = 150 if "-150-" in name else None
    assert run.data == DataConfig(source, f"data/{source}", val=5000, per_class=per_class, pad=4, flip=True)
    assert (run.rounds, run.batch_size) == (300 if key == "msdnet" else 100, 64)
    assert run.model.msdnet == MSDNetConfig("conv3", 7, 4, 2, 16, 16, (1, 2, 4), 0.5, 128)
    assert run.model.name == {"msdnet": "msdnet"}.get(key, f"{key}-sdn")


def test_modern_recipes_are_gradient_equilibrium_on_the_same_network_and_images():
    for name in ("cifar10-msdnet", "cifar100-vgg16", "cifar10-resnet56"):
        run, base = get_recipe(f"{name}-modern"), get_recipe(f"{name}-ge")
        assert replace(run, optim=base.optim, loss=base.loss, data=base.data) == base
        assert run.data.cutmix == ("vgg" in name) and run.optim.ema == run.rounds / 100


def test_data_network_and_length_on_imagenet():
    run = get_recipe("imagenet-msdnet-metagf")
    assert run.data == DataConfig("imagefolder", "data/imagenet", val=50_000, crop=224, resize=256)
    assert (run.rounds, run.batch_size) == (90, 512)
    assert run.model.msdnet == MSDNetConfig("conv7", 5, 4, 4, 32, 16, (1, 2, 4, 4), 0.5, None)


def test_equal_compute_is_equal_training_passes():
    """A round of Meta-GF costs a pass an exit and one for the fusion weights."""
    meta = get_recipe("digits")
    joint = at_equal_compute(meta, passes=160)
    assert (joint.method, joint.rounds) == ("sgd", meta.rounds * (meta.model.msdnet.exits + 1))
    assert replace(joint, method=meta.method, rounds=meta.rounds) == meta
    assert get_recipe("digits-sgd") == joint
    assert [at_equal_compute(meta, passes).rounds for passes in (5.1, 7.5, 0.2)] == [5, 8, 1]


def test_an_unknown_recipe_is_refused_with_those_that_exist():
    with pytest.raises(ConfigError) as caught:
        get_recipe("digit")
    assert str(caught.value) == (
        "recipe = 'digit': must be one of those that raygf recipes lists; did you mean 'digits'?"
    )

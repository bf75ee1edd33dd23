"""Every column of the paper's Tables 1 to 5 has a recipe, with the hyper-parameters of its Section 4."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raygf.config.recipes import RECIPES, get_recipe
from raygf.config.run import DataConfig, FusionConfig, LossConfig, MethodConfig, MSDNetConfig, OptimConfig

SIX = ("metagf", "sgd", "ge", "cagrad", "pcgrad")
TABLES = {
    1: [f"{data}-msdnet-{method}" for data in ("cifar100", "cifar10") for method in SIX],
    2: [f"imagenet-msdnet-{method}" for method in ("sgd", "ge", "pcgrad", "metagf")],
    3: [f"{data}-vgg16-{method}" for data in ("cifar100", "cifar10") for method in SIX],
    4: [f"{data}-resnet56-{method}" for data in ("cifar100", "cifar10") for method in SIX],
    5: [f"cifar100-150-msdnet-{column}" for column in ("sgd", "metagf", "kd", "metagf-kd")],
}
NAMES = [name for names in TABLES.values() for name in names]
ON_CIFAR = [name for name in NAMES if name.startswith("cifar")]


def weight_decay(name: str) -> float:
    return 5e-4 if "vgg16" in name else 1e-4


def is_sdn(name: str) -> bool:
    return "msdnet" not in name


@pytest.mark.parametrize(("table", "name"), [(t, name) for t, names in TABLES.items() for name in names])
def test_every_column_has_a_recipe_that_names_its_table(table: int, name: str) -> None:
    assert f"(Table {table})" in (RECIPES[name].__doc__ or "")


@pytest.mark.parametrize("name", NAMES)
def test_optimizer(name: str) -> None:
    """SGD with momentum 0.9 from 0.1, divided by 10 after a half and three quarters; Adam from 0.1, too."""
    run = get_recipe(name)
    assert run.optim == OptimConfig(0.1, 0.9, weight_decay(name), (0.5, 0.75), 0.1, False)
    segments = "channel" if "vgg16" in name else "tensor"
    assert run.fusion == FusionConfig(segments, "softmax", 0.1, 0.9, 1.0, "recalibrated")
    assert run.methods == MethodConfig(cagrad_c=0.4)


@pytest.mark.parametrize("name", NAMES)
def test_method_and_loss(name: str) -> None:
    """SDN networks ramp their losses; distillation has γ = 0.9 and T = 3."""
    run = get_recipe(name)
    column = name.split("msdnet-" if "msdnet" in name else "16-" if "vgg16" in name else "56-")[1]
    assert run.method == {"kd": "sgd", "metagf-kd": "metagf"}.get(column, column)
    coefficients = "sdn" if is_sdn(name) else "ones"
    assert run.loss == LossConfig(0.1, coefficients, column.endswith("kd"), 0.9, 3.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ON_CIFAR)
def test_data_and_length_on_cifar(name: str) -> None:
    """5 000 images are held out; crops of images padded by 4, and flips; batches of 64."""
    run, source = get_recipe(name), name.split("-")[0]
    per_class = 150 if "-150-" in name else None
    expected = DataConfig(source, f"data/{source}", val=5000, per_class=per_class, pad=4, flip=True)  # type: ignore[arg-type]
    assert run.data == expected
    assert (run.rounds, run.batch_size) == (100 if is_sdn(name) else 300, 64)
    assert run.model.msdnet == MSDNetConfig("conv3", 7, 4, 2, 16, 16, (1, 2, 4), 0.5, 128)
    assert run.model.name == {"vgg16": "vgg16-sdn", "resnet56": "resnet56-sdn"}.get(
        name.split("-")[1], "msdnet"
    )


@pytest.mark.parametrize("name", TABLES[2])
def test_data_and_length_on_imagenet(name: str) -> None:
    """50 000 images are held out; five exits; batches of 512."""
    run = get_recipe(name)
    assert run.data == DataConfig("imagefolder", "data/imagenet", val=50_000, crop=224, resize=256, flip=True)
    assert (run.rounds, run.batch_size) == (90, 512)
    assert run.model.msdnet == MSDNetConfig("conv7", 5, 4, 4, 32, 16, (1, 2, 4, 4), 0.5, None)


@pytest.mark.parametrize("table", TABLES)
def test_the_columns_of_a_table_differ_in_method_data_and_distillation_alone(table: int) -> None:
    first, *others = (get_recipe(name) for name in TABLES[table])
    for run in others:
        alike = replace(run, method=first.method, loss=replace(run.loss, distill=first.loss.distill))
        assert replace(alike, data=first.data) == first

"""Recipes: named functions, each returning one complete run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from raygf.config.run import (
    DataConfig,
    FusionConfig,
    LossConfig,
    ModelConfig,
    MSDNetConfig,
    OptimConfig,
    RunConfig,
)
from raygf.errors import ConfigError

METHODS = {
    "metagf": "Meta-GF",
    "sgd": "joint SGD",
    "ge": "Gradient Equilibrium",
    "pcgrad": "PCGrad",
    "cagrad": "CAGrad",
}


@dataclass(frozen=True)
class Network:
    """A network of the paper and how it is trained there."""

    model: str
    table: str
    rounds: int
    weight_decay: float = 1e-4
    coefficients: Literal["ones", "sdn"] = "sdn"
    segments: Literal["tensor", "channel"] = "tensor"


NETWORKS = {
    "msdnet": Network("msdnet", "Table 1", rounds=300, coefficients="ones"),
    "vgg16": Network("vgg16-sdn", "Table 3", rounds=100, weight_decay=5e-4, segments="channel"),
    "resnet56": Network("resnet56-sdn", "Table 4", rounds=100),
    "wideresnet32-4": Network("wideresnet32-4-sdn", "not in a table", rounds=100, weight_decay=5e-4),
    "mobilenet": Network("mobilenet-sdn", "not in a table", rounds=100),
}


def paper_recipes() -> dict[str, Callable[[], RunConfig]]:
    """All of them by name, such as ``cifar10-vgg16-pcgrad``; the docstrings are their descriptions."""
    recipes: dict[str, Callable[[], RunConfig]] = {}
    for data in ("cifar10", "cifar100"):
        for key, network in NETWORKS.items():
            for method, title in METHODS.items():
                text = f"{data.upper()}, {network.model}, {title} ({network.table}), {network.rounds} rounds."
                recipes[f"{data}-{key}-{method}"] = _recipe(text, data, network, method)
    for distill, method in ((False, "sgd"), (False, "metagf"), (True, "sgd"), (True, "metagf")):
        label = {(True, "sgd"): "kd", (True, "metagf"): "metagf-kd"}.get((distill, method), method)
        with_kd = " with distillation" if distill else ""
        text = f"CIFAR100, 150 images a class, msdnet, {METHODS[method]}{with_kd} (Table 5), 300 rounds."
        recipe = _recipe(text, "cifar100", NETWORKS["msdnet"], method, per_class=150, distill=distill)
        recipes[f"cifar100-150-msdnet-{label}"] = recipe
    return recipes


def _recipe(
    description: str,
    data: str,
    network: Network,
    method: str,
    per_class: int | None = None,
    distill: bool = False,
) -> Callable[[], RunConfig]:
    def recipe() -> RunConfig:
        return RunConfig(
            method=method,
            rounds=network.rounds,
            batch_size=64,
            data=DataConfig(source=data, path=f"data/{data}", val=5000, per_class=per_class),  # type: ignore[arg-type]
            model=ModelConfig(network.model),
            optim=OptimConfig(lr=0.1, momentum=0.9, weight_decay=network.weight_decay),
            loss=LossConfig(aux=0.1, coefficients=network.coefficients, distill=distill),
            fusion=FusionConfig(segments=network.segments, lr=0.1),
        )

    recipe.__doc__ = description
    return recipe


Recipe = Callable[[], RunConfig]
RECIPES: dict[str, Recipe] = {}


def recipe(function: Recipe) -> Recipe:
    """Register ``function`` under its name with hyphens; its docstring is the description."""
    RECIPES[function.__name__.replace("_", "-")] = function
    return function


def get_recipe(name: str) -> RunConfig:
    """The run that ``name`` stands for.

    Raises:
        ConfigError: there is no such recipe.
    """
    if name not in RECIPES:
        raise ConfigError(f"recipe = {name!r}: must be one of {', '.join(RECIPES)}")
    return RECIPES[name]()


def at_equal_compute(config: RunConfig, exits: int) -> RunConfig:
    """Joint SGD that gets as many passes over the training set as ``config`` (Meta-GF) spends.

    A round of Meta-GF costs one pass for each of the ``exits`` and the fusion pass.
    """
    return replace(config, method="sgd", rounds=config.rounds * (exits + 1))


@recipe
def digits() -> RunConfig:
    """Meta-GF on 192 handwritten digits: a 3-exit MSDNet, 40 rounds, under a minute on a laptop."""
    return RunConfig(
        rounds=40,
        batch_size=16,
        data=DataConfig(source="digits", val=300, train_limit=192, pad=1, flip=False),
        model=ModelConfig("msdnet", MSDNetConfig(exits=3, base=2, step=2, channels=16, factors=(1, 2))),
    )


@recipe
def digits_sgd() -> RunConfig:
    """Joint SGD on the same digits, with as many training passes as the recipe "digits" spends."""
    return at_equal_compute(digits(), exits=3)


@recipe
def imagenet_msdnet_metagf() -> RunConfig:
    """ImageNet, msdnet, Meta-GF (Table 2), 90 rounds."""
    return _imagenet("metagf")


@recipe
def imagenet_msdnet_sgd() -> RunConfig:
    """ImageNet, msdnet, joint SGD (Table 2), 90 rounds."""
    return _imagenet("sgd")


@recipe
def imagenet_msdnet_ge() -> RunConfig:
    """ImageNet, msdnet, Gradient Equilibrium (Table 2), 90 rounds."""
    return _imagenet("ge")


@recipe
def imagenet_msdnet_pcgrad() -> RunConfig:
    """ImageNet, msdnet, PCGrad (Table 2), 90 rounds."""
    return _imagenet("pcgrad")


def _imagenet(method: str) -> RunConfig:
    """The paper's recipe for ImageNet (Section 4): exits at depth 4, 8, 12, 16, 20; four scales."""
    msdnet = MSDNetConfig(
        stem="conv7",
        exits=5,
        base=4,
        step=4,
        channels=32,
        growth=16,
        factors=(1, 2, 4, 4),
        head_channels=None,
    )
    return RunConfig(
        method=method,
        rounds=90,
        batch_size=512,
        data=DataConfig(source="imagefolder", path="data/imagenet", val=50_000, crop=224, resize=256),
        model=ModelConfig("msdnet", msdnet=msdnet),
        optim=OptimConfig(lr=0.1, momentum=0.9, weight_decay=1e-4),
        fusion=FusionConfig(segments="tensor", lr=0.1),
    )


RECIPES.update(paper_recipes())

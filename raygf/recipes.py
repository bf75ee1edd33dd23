"""Recipes: named functions, each returning one complete run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from raygf.config import DataConfig, FusionConfig, ModelConfig, MSDNetConfig, OptimConfig, RunConfig
from raygf.errors import ConfigError
from raygf.paper_recipes import paper_recipes

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

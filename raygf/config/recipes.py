"""Recipes: complete runs by name, among them those of the paper's tables."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from raygf.config.fields import refuse
from raygf.config.run import (
    DataConfig,
    FusionConfig,
    LossConfig,
    ModelConfig,
    MSDNetConfig,
    OptimConfig,
    RunConfig,
)

METHODS = {
    "metagf": "Meta-GF",
    "sgd": "joint SGD",
    "ge": "Gradient Equilibrium",
    "pcgrad": "PCGrad",
    "cagrad": "CAGrad",
}


@dataclass(frozen=True)
class Network:
    """A network of the paper and how it is trained there on CIFAR."""

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


@dataclass(frozen=True)
class Recipe:
    """A run, and what it is in one line."""

    description: str
    run: RunConfig


def get_recipe(name: str) -> RunConfig:
    """The run that ``name`` stands for. Raises ConfigError: there is no such recipe."""
    if name not in RECIPES:
        raise refuse("recipe", name, "one of those that raygf recipes lists", RECIPES)
    return RECIPES[name].run


def at_equal_compute(config: RunConfig, passes: float) -> RunConfig:
    """Joint SGD with the compute of ``config``, which spends so many training passes: a round each.

    ``passes``: ``training_passes`` of the run's result, or n + 1 a round of Meta-GF with n exits.
    """
    return replace(config, method="sgd", rounds=max(1, round(passes)), round_steps=None)


def _digits() -> RunConfig:
    """Small enough for a laptop."""
    return RunConfig(
        rounds=40,
        batch_size=16,
        data=DataConfig(source="digits", val=300, train_limit=192, pad=1, flip=False),
        model=ModelConfig("msdnet", MSDNetConfig(exits=3, base=2, step=2, channels=16, factors=(1, 2))),
    )


def _imagenet(method: str) -> RunConfig:
    """The paper's recipe for ImageNet (Section 4): exits at depth 4, 8, 12, 16, 20; four scales."""
    msdnet = MSDNetConfig("conv7", exits=5, step=4, channels=32, factors=(1, 2, 4, 4), head_channels=None)
    return RunConfig(
        method=method,
        rounds=90,
        batch_size=512,
        data=DataConfig(source="imagefolder", path="data/imagenet", val=50_000, crop=224, resize=256),
        model=ModelConfig("msdnet", msdnet=msdnet),
        optim=OptimConfig(lr=0.1, momentum=0.9, weight_decay=1e-4),
    )


def _cifar(
    data: Literal["cifar10", "cifar100"],
    network: Network,
    method: str,
    per_class: int | None = None,
    distill: bool = False,
) -> RunConfig:
    """The paper's recipe for CIFAR (Section 4)."""
    return RunConfig(
        method=method,
        rounds=network.rounds,
        batch_size=64,
        data=DataConfig(source=data, path=f"data/{data}", val=5000, per_class=per_class),
        model=ModelConfig(network.model),
        optim=OptimConfig(lr=0.1, momentum=0.9, weight_decay=network.weight_decay),
        loss=LossConfig(0.1, network.coefficients, distill, kd_reduction="mean" if distill else "batchmean"),
        fusion=FusionConfig(segments=network.segments, lr=0.1),
    )


def _modern(data: Literal["cifar10", "cifar100"], network: Network) -> RunConfig:
    """Gradient Equilibrium, trained as classifiers are today, after torchvision's recipe.

    Vryniotis, "How to Train State-Of-The-Art Models Using TorchVision's Latest Primitives", 2021.
    """
    run, ema = _cifar(data, network, "ge"), network.rounds / 100
    optim = OptimConfig(weight_decay=5e-4, schedule="cosine", warmup=5, decay_norms=False, ema=ema)
    cutmix = 1.0 if network.weight_decay > 1e-4 else 0.0  # for VGG and WideResNet, which overfit
    images = replace(run.data, augment="trivialaugment", erasing=0.1, cutmix=cutmix)
    return replace(run, data=images, optim=optim, loss=replace(run.loss, smoothing=0.1))


def _all() -> Iterator[tuple[str, str, RunConfig]]:
    """Names, descriptions and runs."""
    yield (
        "digits",
        "Meta-GF on 192 handwritten digits: a 3-exit MSDNet, 40 rounds, under a minute on a laptop.",
        _digits(),
    )
    yield (
        "digits-sgd",
        'Joint SGD on the same digits, with as many training passes as the recipe "digits" spends.',
        at_equal_compute(_digits(), passes=40 * 4),
    )
    for method in ("metagf", "sgd", "ge", "pcgrad"):
        text = f"ImageNet, msdnet, {METHODS[method]} (Table 2), 90 rounds."
        yield f"imagenet-msdnet-{method}", text, _imagenet(method)
    sets: tuple[Literal["cifar10", "cifar100"], ...] = ("cifar10", "cifar100")
    for data in sets:
        for key, network in NETWORKS.items():
            for method, title in METHODS.items():
                text = f"{data.upper()}, {network.model}, {title} ({network.table}), {network.rounds} rounds."
                yield f"{data}-{key}-{method}", text, _cifar(data, network, method)
            text = f"{data.upper()}, {network.model}, {METHODS['ge']}, modernised, {network.rounds} rounds."
            yield f"{data}-{key}-modern", text, _modern(data, network)
        backbone = _cifar(data, NETWORKS["msdnet"], "sgd")
        text = f"{data.upper()}, msdnet, the deepest exit alone: weights to start all exits from, 300 rounds."
        yield f"{data}-msdnet-backbone", text, replace(backbone, loss=LossConfig(coefficients="last"))
    for label, method, distill in (
        ("sgd", "sgd", False),
        ("metagf", "metagf", False),
        ("kd", "sgd", True),
        ("metagf-kd", "metagf", True),
    ):
        title = METHODS[method] + " with distillation" * distill
        text = f"CIFAR100, 150 images a class, msdnet, {title} (Table 5), 300 rounds."
        run = _cifar("cifar100", NETWORKS["msdnet"], method, per_class=150, distill=distill)
        yield f"cifar100-150-msdnet-{label}", text, run


RECIPES = {name: Recipe(description, run) for name, description, run in _all()}

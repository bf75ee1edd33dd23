"""Recipes for the columns of the paper's CIFAR tables (1, 3, 4, 5), with its hyper-parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from raygf.config import DataConfig, FusionConfig, LossConfig, ModelConfig, OptimConfig, RunConfig

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

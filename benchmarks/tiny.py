"""A run small enough for hundreds of rounds, for programs that measure the machinery around it."""

from __future__ import annotations

from dataclasses import replace

from raygf.config.recipes import get_recipe
from raygf.config.run import (
    DataConfig,
    ModelConfig,
    MSDNetConfig,
    ResourceConfig,
    RunConfig,
    StorageConfig,
    TrackingConfig,
)

ON_CPUS = ResourceConfig(gpus_per_exit=0, driver_gpus=0)


def tiny_run(rounds: int, exits: int, storage: StorageConfig, on: ResourceConfig = ON_CPUS) -> RunConfig:
    """The recipe "digits" made small: 48 training images, an MSDNet of ``exits`` exits."""
    return replace(
        get_recipe("digits"),
        rounds=rounds,
        data=DataConfig(source="digits", val=50, train_limit=48, pad=1, flip=False),
        model=ModelConfig("msdnet", MSDNetConfig(exits=exits, base=1, step=1, channels=8, factors=(1, 2))),
        resources=on,
        storage=storage,
        tracking=TrackingConfig(enabled=False),
    )

"""Equal compute: every trial gets as many passes over the training images as the recipe spends."""

from __future__ import annotations

from dataclasses import replace

from raygf.config import RunConfig
from raygf.errors import ConfigError
from raygf.methods.registry import is_step_method


def passes_per_round(method: str, exits: int) -> int:
    """Passes over the training images that one round of ``method`` costs with so many exits."""
    return 1 if is_step_method(method) else exits + 1


def budget_of(run: RunConfig, exits: int) -> int:
    """Passes over the training images that ``run`` spends in all."""
    return run.rounds * passes_per_round(run.method, exits)


def within_budget(run: RunConfig, budget: int, exits: int) -> RunConfig:
    """``run`` with as many whole rounds of its method as ``budget`` passes pay for.

    Raises:
        ConfigError: they don't pay for one.
    """
    cost = passes_per_round(run.method, exits)
    if cost > budget:
        raise ConfigError(
            f"every trial gets {budget} passes over the training images, too few for one round of "
            f"{run.method} ({cost}): raise rounds"
        )
    return replace(run, rounds=budget // cost)

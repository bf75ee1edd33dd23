"""What spaces of methods are made from: each method with settings that suit it."""

from __future__ import annotations

from raygf.config import RunConfig
from raygf.errors import ConfigError
from raygf.methods.registry import DELTA, method_names
from raygf.sweep.space import Values

LR_FACTORS = {"pcgrad": 1 / 3, "upgrad": 1 / 3}
"""Learning rates that suit methods within a step better than the recipe's, as factors of it: those that did
better by more than half a percent in 100 rounds of the digits (one seed; 1/3, 1 and 3 were tried, not for
nashmtl, fairgrad, gradvac and config)."""


def settings_of_methods(run: RunConfig) -> list[Values]:
    """One variant for each method of raygf: its name, its learning rate, what else it has to be set.

    The recipe's learning rate is taken to suit the sum of the exits' gradients, and so Meta-GF's exits.
    """
    return [_settings(name, run) for name in method_names()]


def require_learned_fusion(run: RunConfig) -> None:
    """Raise ConfigError unless ``run`` learns fusion weights."""
    if run.method != "metagf":
        raise ConfigError(
            f"space: it sweeps learned fusion weights, which {run.method} does not have: choose a recipe "
            "with method metagf"
        )


def _settings(name: str, run: RunConfig) -> Values:
    factor = 1.0 if name.startswith(DELTA) else LR_FACTORS.get(name, 1.0)
    values: Values = {"method": name, "optim.lr": float(f"{run.optim.lr * factor:.4g}")}
    if name.removeprefix(DELTA) == "cagrad":
        values["methods.cagrad_c"] = run.methods.cagrad_c
    if name == "dfs":
        values["methods.dfs_beta"] = run.methods.dfs_beta
    return values

"""What spaces of methods are made from: each method with settings that suit it."""

from __future__ import annotations

from raygf.config import RunConfig
from raygf.errors import ConfigError
from raygf.methods.registry import DELTA, method_names
from raygf.sweep.space import Values

LR_FACTORS = {"pcgrad": 0.3, "upgrad": 0.3, "gradvac": 0.3, "config": 0.3}
"""Methods within a step that do better with a learning rate below the recipe's, and the factor.

Tried on the digits, 40 to 100 rounds, one or two seeds: with a third of the recipe's learning rate these
gained 0.9 to 2.2 % of validation accuracy over once. For the others once was best, or within half a per cent
of it (imtlg gained 0.6 % with three times as much). Seeds differ by about as much.
"""


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

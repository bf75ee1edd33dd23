"""What is refused before anything starts: flags that don't go with a sweep, spaces that can't be swept."""

from __future__ import annotations

import importlib.util

from raygf.errors import ConfigError
from raygf.methods.registry import check_method
from raygf.sweep.assign import Axes, ends, read_axes
from raygf.sweep.flags import Command
from raygf.sweep.objective import check_metric
from raygf.sweep.overrides import flag_of, override
from raygf.sweep.space import Space

NOT_SWEPT = {
    "rounds": "every trial gets as many training passes as the recipe spends",
    "stop_after": "the sweep itself stops trials",
    "data.val": "trials must be compared by the same validation images",
    "model.name": "trials must have the same exits; make a sweep for each network",
    "model.msdnet.exits": "trials must have the same exits; make a sweep for each network",
    "eval_batch_size": "it does not change results",
    "resources.": "it does not change results",
    "storage.": "it does not change results",
    "tracking.": "it does not change results",
}
"""Fields (or sections, with a dot at the end) that no space may have, and why."""


def check_flags(command: Command) -> None:
    """Raise ConfigError for flags of single runs that a sweep can't have, or that contradict each other."""
    run, options = command.run, command.options
    refused = {
        "resources.executor = 'local'": run.resources.executor == "local" and "sweeps need Ray; leave it out",
        f"resources.workers = {run.resources.workers}": run.resources.workers is not None
        and "the trials of a sweep have no workers; leave it out",
        f"stop_after = {run.stop_after}": run.stop_after is not None and NOT_SWEPT["stop_after"],
        "storage.resume = True": run.storage.resume and "resume a sweep with --resume",
        "data.val = 0": not run.data.val and "trials are compared by validation images; hold some out",
        f"trials = {options.trials}": options.trials is not None
        and options.search == "grid"
        and "a grid has as many trials as points; leave one of them out",
        "search = 'optuna'": options.search == "optuna"
        and options.scheduler == "pbt"
        and "pbt changes settings itself; search at random or on a grid",
    }
    for what, why in refused.items():
        if why:
            raise ConfigError(f"{what}: {why}")


def check_search(search: str) -> None:
    """Raise ConfigError if ``search`` needs a package that is not installed."""
    if search == "optuna" and importlib.util.find_spec("optuna") is None:
        raise ConfigError("search = 'optuna': Optuna is not installed: pip install 'raygf[sweep]'")


def check_space(space: Space, command: Command) -> list[Axes]:
    """The axes of ``space``, every end of which makes a run.

    Raises:
        ConfigError: the space is empty or contradicts itself, a run, or a flag.
    """
    check_metric(space.metric, space.mode)
    alternatives = read_axes(space)
    for name in space.fields:
        _check_field(name, command)
    for axes in alternatives:
        for values in ends(axes):
            check_method(override(command.run, values).method)
    return alternatives


def _check_field(name: str, command: Command) -> None:
    for field, why in NOT_SWEPT.items():
        if name == field or (field.endswith(".") and name.startswith(field)):
            raise ConfigError(f"space: {name} can't be swept: {why}")
    if name in command.given:
        raise ConfigError(
            f"space: {name} is swept by {command.options.space!r} and also fixed by {flag_of(name)}: leave "
            "one of them out"
        )

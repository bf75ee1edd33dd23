"""A sweep with everything settled: what its trials are made from, and what is stored to resume it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from raygf.config import RunConfig
from raygf.config_dict import from_dict, to_dict
from raygf.methods.registry import is_step_method
from raygf.sweep.budget import budget_of, within_budget
from raygf.sweep.options import SweepOptions
from raygf.sweep.overrides import override
from raygf.sweep.space import Values


@dataclass(frozen=True)
class Plan:
    """One sweep.

    ``run``: what trials have in common; its storage is the sweep's own folder. ``fields``: dotted names of
    what is swept. ``exits``: of the network; ``actors``: exit actors of a trial whose method trains exits.
    ``trials``: how many there are. ``parent``: the sweep's run in MLflow, empty if nothing is tracked.
    """

    recipe: str
    options: SweepOptions
    run: RunConfig
    fields: tuple[str, ...]
    metric: str
    mode: str
    exits: int
    actors: int
    trials: int = 0
    parent: str = ""

    @property
    def name(self) -> str:
        """The sweep's name, which is its folder's."""
        return self.run.storage.name

    @property
    def budget(self) -> int:
        """Passes over the training images that every trial gets."""
        return budget_of(self.run, self.exits)

    def exit_bundles(self, values: Values) -> int:
        """Exit actors of a trial with ``values``; methods within a step have none."""
        return 0 if is_step_method(values.get("method", self.run.method)) else self.actors

    def trial_run(self, trial: str, values: Values, folder: str = "") -> RunConfig:
        """The run of ``trial``, a name, with ``values``; its own checkpoints go to ``folder``.

        Raises:
            ConfigError: the values are not allowed, or the budget is too small for them.
        """
        run = within_budget(override(self.run, values), self.budget, self.exits)
        resources = replace(run.resources, actors=self.actors or None)
        storage = replace(run.storage, name=trial, path=folder or run.storage.path)
        return replace(run, resources=resources, storage=storage)

    def text(self) -> dict[str, Any]:
        """As plain values, for ``read_plan``."""
        return to_dict(self)


def read_plan(values: dict[str, Any]) -> Plan:
    """The plan that ``text`` gave as ``values``.

    Raises:
        ConfigError: they are not a plan's.
    """
    return from_dict(Plan, values)

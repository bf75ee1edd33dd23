"""A sweep with everything settled: what its trials are made from, and what is stored to resume it."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from raygf.config.fields import Limits, Section, flatten, from_dict, to_dict
from raygf.config.run import Count, Name, Natural, NotNegative, RunConfig
from raygf.errors import ConfigError
from raygf.methods.registry import is_step_method
from raygf.records import ExitScore, RoundRecord
from raygf.sweep.space import Values


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


PASSES = "training_passes"
"""Where Tune's schedulers find how much compute a trial has had."""

_METRIC = re.compile(r"(val_accuracy|val_loss)/(average|exit_([1-9]\d*))")


def metrics_of(record: RoundRecord) -> dict[str, float]:
    """``val_accuracy/average``, ``val_accuracy/exit_1`` and so on, the same of ``val_loss``, and the passes.

    Raises:
        ConfigError: the run has no validation images.
    """
    if record.val is None:
        raise ConfigError("data.val = 0: trials are compared by validation images; hold some out")
    return {**_scores(record.val), PASSES: float(record.training_passes)}


def check_metric(metric: str, mode: str, exits: int | None = None) -> None:
    """Raise ConfigError unless ``metric`` is one of those that trials have, and ``mode`` max or min.

    ``exits``: how many the network has, if that is known.
    """
    found = _METRIC.fullmatch(metric)
    if found is None:
        raise ConfigError(
            f"space: metric = {metric!r}: must be val_accuracy/average, val_accuracy/exit_1 and so on, or "
            "the same of val_loss"
        )
    if mode not in ("max", "min"):
        raise ConfigError(f"space: mode = {mode!r}: must be max or min")
    if exits is not None and found[3] and int(found[3]) > exits:
        raise ConfigError(f"space: metric = {metric!r}: the network has {exits} exits")


def shown_score(metric: str, score: float) -> str:
    """``score`` as people read it: accuracies in percent."""
    return f"{100 * score:.2f} %" if metric.startswith("val_accuracy") else f"{score:.4f}"


def _scores(val: ExitScore) -> dict[str, float]:
    metrics = {}
    for name, values in (("val_accuracy", val.accuracy), ("val_loss", val.loss)):
        metrics[f"{name}/average"] = sum(values) / len(values)
        metrics |= {f"{name}/exit_{i}": value for i, value in enumerate(values, start=1)}
    return metrics


TRIALS = 8
"""How many trials there are if nobody says."""


@dataclass(frozen=True)
class SweepOptions(Section):
    """How trials are chosen, stopped and placed."""

    space: Name = "fusion_lr"
    """Search space: one of those listed above, a Python file, or package.module:function of your own."""
    trials: Count | None = None
    """Trials; by default 8, or all points of a grid."""
    search: Literal["random", "grid", "optuna"] | None = None
    """How they are chosen: drawn at random, every point of a grid, or by Optuna's TPE from those before
    (pip install 'raygf[sweep]'). By default as the space says, mostly random."""
    points: Annotated[int, Limits(2)] = 3
    """grid: values taken of every range, its ends included."""
    scheduler: Literal["asha", "none", "pbt"] = "asha"
    """asha stops a trial that is not among the best third of those that have had as many training passes.
    pbt: the worst quarter goes on from the checkpoints of the best, with settings near theirs. none: all
    trials run to their end."""
    grace: Count | None = None
    """Training passes before asha may stop a trial, and between two exchanges of pbt; by default an eighth of
    what a trial gets."""
    concurrent: Count | None = None
    """Trials that run side by side; by default as many as the cluster holds. A trial's exit actors are made
    fewer so that they do, unless resources.actors is given."""
    cpus_per_exit: NotNegative | None = None
    """CPUs of each exit actor: short for resources.cpus-per-exit."""
    gpus_per_exit: NotNegative | None = None
    """GPUs of each exit actor: short for resources.gpus-per-exit."""
    max_failures: Natural = 2
    """Times that a trial which crashed is tried again from its checkpoint before it counts as failed."""
    resume: bool = False
    """Go on with the sweep --storage.name, which was interrupted or killed. No other flag is needed."""


def override(run: RunConfig, values: Values) -> RunConfig:
    """``run`` with the fields in ``values`` set, checked like any other run.

    Raises:
        ConfigError: there is no such field, or its value is not allowed.
    """
    nested = to_dict(run)
    known = flatten(nested)
    for name, value in values.items():
        if name not in known:
            raise ConfigError(f"space: {name}: a run has no such field{_hint(name, known)}")
        _set(nested, name.split("."), value)
    return from_dict(RunConfig, nested)


def flag_of(name: str) -> str:
    """The flag that sets the field ``name``: ``fusion.lr`` → ``--fusion.lr``."""
    return "--" + name.replace("_", "-")


def flags_for(values: Values) -> str:
    """The flags that set ``values``, as typed in a shell."""
    return " ".join(f"{flag_of(name)} {_word(value)}" for name, value in values.items())


def _word(value: Any) -> str:
    several = value if isinstance(value, list | tuple) else [value]
    return " ".join(shlex.quote(f"{item}") for item in several)


def _set(nested: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        nested = nested[part]
    nested[path[-1]] = list(value) if isinstance(value, tuple) else value


def _hint(name: str, known: dict[str, Any]) -> str:
    """Fields that end alike, for whoever left out the section or misspelt it."""
    last = name.rsplit(".", 1)[-1]
    alike = [field for field in known if field.rsplit(".", 1)[-1] == last]
    return f"; there is {' and '.join(alike)}" if alike else ""


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

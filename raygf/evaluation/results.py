"""Everything that is measured on past runs, and the groups of those that differ in nothing but their seed.

A group becomes one column of a table, one line of a figure.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from raygf.compute import software
from raygf.config.fields import to_dict
from raygf.config.run import POLICIES, Policy, RunConfig
from raygf.errors import ConfigError
from raygf.evaluation.budgeted import RESAMPLES, BudgetCurve, budgeted_curve
from raygf.evaluation.importance import Importance, LearnedWeights, importance_of, learned_weights
from raygf.evaluation.loading import BATCHES, LoadedRun
from raygf.evaluation.noise import OrderNoise, measure_noise
from raygf.evaluation.outputs import TOP, Calibration, fit_temperatures
from raygf.methods.base import JointSGD
from raygf.methods.registry import method_title, training_operations
from raygf.records import History, read_history, wall_time
from raygf.storage.run_storage import binding


@dataclass(frozen=True, eq=False)
class RunResults:
    """One checkpoint, evaluated; n exits.

    ``round``: rounds done. ``run_id``: its tracking run, "" if it was not tracked. ``tensors``: names of the
    parameter tensors, shallow to deep. ``operations``, ``parameters`` (n,): cumulative up to each exit.
    ``top1``, ``top5`` (n,): test accuracies, 0–1; ``top5`` None with five classes or fewer. ``curve``: None
    without validation images to read thresholds off. ``learned``, ``importance``: None for methods without
    fusion weights. ``noise``: None for methods that train no exit by itself, or if it was not to be measured.
    ``training_passes``, ``training_operations``: see ``RoundRecord``. ``policies``: a curve for every way to
    leave, ``calibration``: empty and None without validation images. ``latency``: see ``ResultTable``;
    ``where``: it was measured, a sentence.
    """

    config: RunConfig
    round: int
    run_id: str
    tensors: tuple[str, ...]
    operations: tuple[int, ...]
    parameters: tuple[int, ...]
    top1: tuple[float, ...]
    top5: tuple[float, ...] | None
    history: History
    curve: BudgetCurve | None
    learned: LearnedWeights | None
    importance: Importance | None
    noise: OrderNoise | None
    training_passes: float
    training_operations: int
    policies: Mapping[Policy, BudgetCurve] = field(default_factory=dict)
    calibration: Calibration | None = None
    latency: Mapping[int, Sequence[float]] = field(default_factory=dict)
    where: str = ""

    @property
    def seconds(self) -> float:
        """Wall time of all rounds; NaN if the history lacks some of them."""
        return wall_time(self.history) if len(self.history) == self.round else math.nan


def evaluate_run(run: LoadedRun, with_importance: bool = True, with_noise: bool = True) -> RunResults:
    """Measure ``run`` on its test images, and with noise by training on from its checkpoint.

    Raises RaygfError: the data set lacks test images, or the checkpoint does not fit the network.
    """
    costs = run.costs()
    operations = tuple(cost.operations for cost in costs)
    temperatures: tuple[float, ...] = ()
    policies: dict[Policy, BudgetCurve] = {}
    if run.dataset.count("val"):
        temperatures, val = fit_temperatures(run.bound, run.batches.evaluate("val")), run.outputs("val")
    test = run.outputs("test", temperatures)
    if temperatures:
        policies = {each: budgeted_curve(val, test, operations, RESAMPLES, each) for each in POLICIES}
    device, learned = software(run.bound.compute.device)["device"], learned_weights(run)
    images, history = run.dataset.counts(), read_history(run.checkpoint.meta)
    unit = images["train"] * JointSGD.operations(operations)
    spent = training_operations(run.config, operations, images, run.checkpoint.round)
    spent = history[-1]["training_operations"] if history else spent
    return RunResults(
        config=run.config,
        round=run.checkpoint.round,
        run_id=str(run.checkpoint.meta.get("run_id", "")),
        tensors=run.bound.space.names,
        operations=operations,
        parameters=tuple(cost.parameters for cost in costs),
        top1=test.top1,
        top5=test.top5 if run.dataset.spec.classes > TOP else None,
        history=history,
        curve=policies.get("confidence"),
        learned=learned,
        importance=importance_of(run, learned) if learned is not None and with_importance else None,
        noise=measure_noise(run) if with_noise else None,
        training_passes=spent / unit,
        training_operations=spent,
        policies=policies,
        calibration=Calibration.of(test, temperatures) if temperatures else None,
        latency={batch: times for batch in BATCHES if (times := run.latency(batch))},
        where=f"Milliseconds of a batch on {device}, torch threads: {torch.get_num_threads()}",
    )


@dataclass(frozen=True, eq=False)
class Group:
    """Runs of one configuration, by ascending seed, under one label."""

    label: str
    runs: tuple[RunResults, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The runs' seeds."""
        return tuple(run.config.seed for run in self.runs)


def group_runs(runs: Sequence[RunResults], labels: Sequence[str] = ()) -> list[Group]:
    """``runs`` in groups, in the order of each group's first run.

    Runs belong together if they had the same configuration but for the seed, the machines and the names, and
    are after equally many rounds; a seed that comes twice is a group of its own.

    Args:
        labels: One for every run, of which a group takes its first run's. By default the method, with the
            run's name where two groups have the same method.

    Raises ConfigError: there are not as many labels as runs, or two groups have the same label.
    """
    if labels and len(labels) != len(runs):
        raise ConfigError(f"labels: {len(labels)} given for {len(runs)} checkpoints; give one for each")
    members: dict[str, list[int]] = {}
    for index, run in enumerate(runs):
        values = {name: value for name, value in binding(to_dict(run.config)).items() if name != "seed"}
        key = json.dumps([run.round, values], sort_keys=True)
        if any(runs[other].config.seed == run.config.seed for other in members.get(key, [])):
            key = f"{key} {index}"
        members.setdefault(key, []).append(index)
    firsts = [indices[0] for indices in members.values()]
    titles = [labels[first] for first in firsts] if labels else _own_labels([runs[first] for first in firsts])
    for title, count in Counter(titles).items():
        if not title.strip():
            raise ConfigError("labels: a label is empty")
        if count > 1:
            raise ConfigError(f"labels: {title!r} names {count} configurations; give each its own name")
    return [
        Group(title, tuple(sorted((runs[i] for i in indices), key=lambda run: run.config.seed)))
        for title, indices in zip(titles, members.values(), strict=True)
    ]


def _own_labels(runs: Sequence[RunResults]) -> list[str]:
    """The method of each run; with its name and round where that is not enough, with a number if need be."""
    names = [method_title(run.config.method) for run in runs]
    where = [f"({run.config.storage.name}, round {run.round})" for run in runs]
    full = [f"{name} {place}" for name, place in zip(names, where, strict=True)]
    names = [long if names.count(short) > 1 else short for short, long in zip(names, full, strict=True)]
    return [f"{name} #{i + 1}" if names.count(name) > 1 else name for i, name in enumerate(names)]

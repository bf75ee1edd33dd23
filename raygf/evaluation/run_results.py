"""Everything that is measured on one past run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from raygf.config import RunConfig
from raygf.evaluation.budgeted import BudgetCurve, budgeted_curve
from raygf.evaluation.checkpointed import LoadedRun
from raygf.evaluation.importance import Importance, importance_of
from raygf.evaluation.learned_weights import LearnedWeights, learned_weights
from raygf.evaluation.outputs import TOP
from raygf.methods.registry import is_step_method
from raygf.storage.history import History, read_history


@dataclass(frozen=True, eq=False)
class RunResults:
    """One checkpoint, evaluated; n exits.

    ``round``: rounds done. ``run_id``: its tracking run, "" if it was not tracked. ``tensors``: names of the
    parameter tensors, shallow to deep. ``operations``, ``parameters`` (n,): cumulative up to each exit.
    ``top1``, ``top5`` (n,): test accuracies, 0–1; ``top5`` None with five classes or fewer. ``curve``: None
    without validation images to read thresholds off. ``learned``, ``importance``: None for methods without
    fusion weights.
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

    @property
    def training_passes(self) -> int:
        """Passes over the training images so far, those of the fusion included."""
        exits = len(self.operations)
        return self.round * (1 if is_step_method(self.config.method) else exits + 1)

    @property
    def seconds(self) -> float:
        """Wall time of all rounds; NaN if the history lacks some of them."""
        if [entry["round"] for entry in self.history] != list(range(1, self.round + 1)):
            return math.nan
        return float(sum(sum(entry["seconds"].values()) for entry in self.history))


def evaluate_run(run: LoadedRun, with_importance: bool = True) -> RunResults:
    """Measure ``run`` on its test images.

    Raises:
        RaygfError: the data set lacks test images, or the checkpoint does not fit the network.
    """
    costs = run.costs()
    operations = tuple(cost.operations for cost in costs)
    test = run.outputs("test")
    validated = run.dataset.count("val") > 0
    learned = learned_weights(run)
    return RunResults(
        config=run.config,
        round=run.checkpoint.round,
        run_id=str(run.checkpoint.meta.get("run_id", "")),
        tensors=run.bound.space.names,
        operations=operations,
        parameters=tuple(cost.parameters for cost in costs),
        top1=test.top1,
        top5=test.top5 if run.dataset.spec.classes > TOP else None,
        history=read_history(run.checkpoint.meta),
        curve=budgeted_curve(run.outputs("val"), test, operations) if validated else None,
        learned=learned,
        importance=importance_of(run, learned) if learned is not None and with_importance else None,
    )

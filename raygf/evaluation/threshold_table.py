"""Thresholds by what they cost: how a budget becomes confidence thresholds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raygf import checks
from raygf.errors import CheckpointError, ConfigError
from raygf.evaluation.budgeted import Floats, budgeted_curve
from raygf.evaluation.outputs import ExitOutputs

EVERYONE = 0.0
"""The threshold that every image reaches."""


@dataclass(frozen=True, eq=False)
class ThresholdTable:
    """R settings, cheapest first, measured on validation images.

    ``thresholds`` (R, n − 1): of every exit but the last, +∞ where nobody leaves. ``operations`` (R,):
    average per image. ``accuracy`` (R,): top-1, 0–1.

    Raises:
        ValueError: the shapes do not fit.
    """

    thresholds: Floats
    operations: Floats
    accuracy: Floats

    def __post_init__(self) -> None:
        rows = len(self.thresholds)
        if not rows or self.thresholds.ndim != 2 or {self.operations.shape, self.accuracy.shape} != {(rows,)}:
            raise ValueError(f"thresholds {self.thresholds.shape} do not fit costs {self.operations.shape}")

    def pick(self, budget: float) -> tuple[float, ...]:
        """The thresholds (n,) whose average operations per image come nearest to ``budget`` from below.

        The first row is the first exit alone, the last the whole network: a budget below the cheapest mixture
        gets the first exit, one above the dearest the last.

        Raises:
            ConfigError: not even the first exit can be had for the budget.
        """
        checks.number("budget", budget if budget != math.inf else 0.0)
        if budget < self.operations[0]:
            cheapest = f"{self.operations[0]:.0f}"
            raise checks.refuse("budget", budget, f"at least {cheapest} operations, those of the first exit")
        within = np.flatnonzero(self.operations <= budget)
        best = max(within, key=lambda row: (self.operations[row], self.accuracy[row]))
        return (*self.thresholds[best].tolist(), -math.inf)

    def to_json(self) -> list[dict[str, Any]]:
        """One entry per setting; null is a threshold that nobody reaches."""
        rows = zip(self.operations.tolist(), self.accuracy.tolist(), self.thresholds.tolist(), strict=True)
        return [
            {
                "operations": operations,
                "accuracy": accuracy,
                "thresholds": [None if threshold == math.inf else threshold for threshold in thresholds],
            }
            for operations, accuracy, thresholds in rows
        ]

    @classmethod
    def from_json(cls, rows: Sequence[Mapping[str, Any]]) -> ThresholdTable:
        """What ``to_json`` gave.

        Raises:
            CheckpointError: it is something else.
        """
        try:
            thresholds = [[math.inf if t is None else float(t) for t in row["thresholds"]] for row in rows]
            costs = [[float(row[name]) for row in rows] for name in ("operations", "accuracy")]
            return cls(np.array(thresholds), *(np.array(cost) for cost in costs))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"not a table of thresholds: {type(error).__name__}: {error}") from None


def calibrate(val: ExitOutputs, operations: Sequence[int]) -> ThresholdTable:
    """The settings of budgeted batch evaluation, and between which they lie: first exit alone, last alone.

    Args:
        val: The exits on validation images.
        operations: (n,) up to each exit, for one image.

    Raises:
        ConfigError: there are not as many costs as exits.
    """
    exits = len(val.confidence)
    if len(operations) != exits:
        raise ConfigError(f"{len(operations)} costs for a network of {exits} exits")
    curve = budgeted_curve(val, val, operations)
    order = np.lexsort((curve.accuracy, curve.operations))
    nobody = np.full(exits - 1, np.inf)
    first = nobody.copy()
    first[:1] = EVERYONE
    return ThresholdTable(
        np.vstack([first, curve.thresholds[order, :-1], nobody]),
        np.array([operations[0], *curve.operations[order], operations[-1]], dtype=np.float64),
        np.array([val.top1[0], *curve.accuracy[order], val.top1[-1]]),
    )

"""Budgeted batch evaluation: the accuracy that an average number of operations per image buys.

The setting of Huang et al., "Multi-Scale Dense Networks for Resource Efficient Image Classification", ICLR
2018, Section 4.3: easy images leave early, and what that saves is spent on the hard ones. How many leave at
each exit is set by p, ``q_k = p^k / Σ_m p^m``; thresholds on the confidence that make so many leave are read
off the validation images, and never see a test image.

A ``ThresholdTable`` turns it around: a budget becomes confidence thresholds.

n exits, N images, S = 39 settings of p; an image leaves at the first exit whose threshold it reaches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raygf.compute import derive_seed
from raygf.config import fields as checks
from raygf.config.run import POLICIES, Policy
from raygf.evaluation.outputs import ExitOutputs

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

RESAMPLES = 1000
"""Bootstrap samples of the test images behind a band (Efron, "Bootstrap Methods", 1979)."""
UNIT = 20
STEPS = range(1, 2 * UNIT)
"""p = step / UNIT: 0.05, 0.10 … 1.95."""
MAY_LOSE = 0.005
"""Accuracy that the default budget may lose against the whole network, on validation images."""


@dataclass(frozen=True, eq=False)
class BudgetCurve:
    """S settings, from the cheapest p to the dearest.

    ``p`` (S,): of patience, exits that must agree. ``thresholds`` (S, n): +∞ where no image leaves, −∞ at
    the last exit. ``accuracy`` (S,): top-1, 0–1. ``operations`` (S,): average per image. ``share`` (S, n): of
    the images, leaving at each exit. ``resampled`` (B, S): the accuracy on B bootstrap samples of the test
    images.
    """

    p: Floats
    thresholds: Floats
    accuracy: Floats
    operations: Floats
    share: Floats
    resampled: Floats


def budgeted_curve(
    val: ExitOutputs,
    test: ExitOutputs,
    operations: Sequence[int],
    resamples: int = 0,
    policy: Policy = "confidence",
) -> BudgetCurve:
    """Accuracy on ``test`` over average ``operations`` (n, up to each exit), thresholds read off ``val``.

    Patience has a setting for every number of exits that must agree, in place of 39, and needs no ``val``.
    """
    exits, samples = test.confidence.shape
    settings, scores = np.array(STEPS) / UNIT, test.score(policy)
    if policy == "patience":
        settings = np.arange(1.0, exits + 1)
        thresholds = np.repeat(settings[:, None], exits, axis=1)
        thresholds[:, -1] = -np.inf
    else:
        thresholds = find_thresholds(val.score(policy), exit_quotas(exits, val.confidence.shape[1]))
    taken = np.array([exits_taken(scores, row) for row in thresholds])
    hits = test.hit[taken, np.arange(samples)]
    shares = np.array([np.bincount(row, minlength=exits) / samples for row in taken])
    return BudgetCurve(
        p=settings,
        thresholds=thresholds,
        accuracy=hits.mean(axis=1),
        operations=shares @ np.array(operations, dtype=np.float64),
        share=shares,
        resampled=resampled_means(hits, resamples),
    )


def resampled_means(values: NDArray[Any], resamples: int) -> Floats:
    """Means of ``values`` (S, N) over bootstrap samples of their N columns: (resamples, S).

    The samples depend on N alone, so that several runs on the same test images are resampled together.
    """
    samples, numbers = values.shape[1], np.random.default_rng(derive_seed(0, "bootstrap"))
    weighed = values.astype(np.float32)  # whole sums: exact
    means: Floats = np.empty((resamples, len(values)))
    for mean in means:
        drawn = np.bincount(numbers.integers(samples, size=samples), minlength=samples)
        mean[:] = weighed @ drawn.astype(np.float32)
    means /= samples
    return means


def band(resampled: Floats) -> Floats:
    """The middle 95 % of bootstrap means (B, S): lower and upper ends (2, S)."""
    ends: Floats = np.quantile(resampled, (0.025, 0.975), axis=0)
    return ends


def exit_quotas(exits: int, samples: int) -> Ints:
    """``m_k = floor(N·q_k)`` for every p: (S, n).

    In whole numbers, because rounding could take one image from a quota that comes out even: with
    p = step/20, ``q_k = step^k · 20^(n−k) / Σ_m step^m · 20^(n−m)``.
    """
    rows = []
    for step in STEPS:
        powers = [step**k * UNIT ** (exits - k) for k in range(1, exits + 1)]
        rows.append([samples * power // sum(powers) for power in powers])
    return np.array(rows, dtype=np.int64)


def find_thresholds(confidence: Floats, quotas: Ints) -> Floats:
    """Thresholds (S, n) with which ``quotas`` (S, n) of the images of ``confidence`` (n, N) leave.

    Exit by exit, the images that are still there are counted from the most confident one down, and the
    threshold is the confidence of the last one of the quota. Where the quota is 0, or more than are left,
    no image leaves: +∞. All that reach the last exit leave there: −∞.
    """
    settings, exits = quotas.shape
    thresholds = np.full((settings, exits), np.inf)
    thresholds[:, -1] = -np.inf
    gone = np.zeros((settings, confidence.shape[1]), dtype=np.bool_)
    for exit in range(exits - 1):
        order = np.argsort(-confidence[exit], kind="stable")
        counted = np.cumsum(~gone[:, order], axis=1)
        quota = quotas[:, exit]
        reached = (quota > 0) & (quota <= counted[:, -1])
        place = np.argmax(counted >= quota[:, None], axis=1)
        thresholds[reached, exit] = confidence[exit, order[place[reached]]]
        gone |= confidence[exit] >= thresholds[:, exit, None]
    return thresholds


def exits_taken(confidence: Floats, thresholds: Floats) -> Ints:
    """The exits (N,), from 0, at which the images of ``confidence`` (n, N) leave with ``thresholds`` (n,)."""
    reached = confidence >= thresholds[:, None]
    reached[-1] = True
    return np.asarray(np.argmax(reached, axis=0), dtype=np.int64)


@dataclass(frozen=True, eq=False)
class ThresholdTable:
    """R settings, cheapest first, measured on validation images.

    ``thresholds`` (R, n − 1): of every exit but the last, +∞ where no image leaves. ``operations`` (R,):
    average per image. ``accuracy`` (R,): top-1, 0–1. ``policy``: what an image's score is. ``temperatures``
    (n,): by which logits are divided for probabilities that can be trusted; empty: 1.

    Raises ValueError: the shapes do not fit.
    """

    thresholds: Floats
    operations: Floats
    accuracy: Floats
    policy: Policy = "confidence"
    temperatures: Sequence[float] = ()

    def __post_init__(self) -> None:
        if self.policy not in POLICIES or len(self.temperatures) not in (0, self.thresholds.shape[-1] + 1):
            raise ValueError(f"policy {self.policy!r} or {len(self.temperatures)} temperatures do not fit")
        rows = len(self.thresholds)
        if not rows or self.thresholds.ndim != 2 or {self.operations.shape, self.accuracy.shape} != {(rows,)}:
            raise ValueError(f"thresholds {self.thresholds.shape} do not fit costs {self.operations.shape}")

    def pick(self, budget: float) -> tuple[float, ...]:
        """The thresholds (n,) whose average operations per image come nearest to ``budget`` from below.

        The first row is the first exit alone, the last the whole network: a budget below the cheapest mixture
        gets the first exit, one above the dearest the last.

        Raises ConfigError: not even the first exit can be had for the budget.
        """
        return (*self.thresholds[self._row(budget)].tolist(), -math.inf)

    def expected_accuracy(self, budget: float) -> float:
        """Share of the validation images, 0–1, that the thresholds for ``budget`` get right."""
        return float(self.accuracy[self._row(budget)])

    @property
    def default_budget(self) -> float:
        """Average operations per image of the cheapest row that loses at most ``MAY_LOSE`` of accuracy."""
        good = self.accuracy >= self.accuracy[-1] - MAY_LOSE
        return float(self.operations[good].min())

    def _row(self, budget: float) -> int:
        checks.check("budget", budget if budget != math.inf else 0.0, float)
        if budget < self.operations[0]:
            cheapest = f"{self.operations[0]:.0f}"
            raise checks.refuse("budget", budget, f"at least {cheapest} operations, those of the first exit")
        within = np.flatnonzero(self.operations <= budget)
        return int(max(within, key=lambda row: (self.operations[row], self.accuracy[row])))

    def to_json(self) -> list[dict[str, Any]]:
        """One entry per setting; null is a threshold that no image reaches."""
        thresholds = [[None if t == math.inf else t for t in row] for row in self.thresholds.tolist()]
        columns = self.operations.tolist(), self.accuracy.tolist(), thresholds
        names = ("operations", "accuracy", "thresholds")
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]

    @classmethod
    def from_json(cls, rows: Sequence[Mapping[str, Any]], **known: Any) -> ThresholdTable:
        """What ``to_json`` gave, with policy and temperatures if they are ``known``.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        thresholds = [[math.inf if t is None else float(t) for t in row["thresholds"]] for row in rows]
        operations, accuracy = ([float(row[name]) for row in rows] for name in ("operations", "accuracy"))
        return cls(np.array(thresholds), np.array(operations), np.array(accuracy), **known)


def calibrate(
    val: ExitOutputs,
    operations: Sequence[int],
    policy: Policy = "confidence",
    temperatures: Sequence[float] = (),
) -> ThresholdTable:
    """The settings of budgeted batch evaluation on validation images, between the first and last exit alone.

    Args:
        operations: (n,) up to each exit, for one image.
    """
    curve = budgeted_curve(val, val, operations, policy=policy)
    order = np.lexsort((curve.accuracy, curve.operations))
    alone = np.full((2, len(operations) - 1), np.inf)
    alone[0, :1] = 0.0  # every image reaches it
    return ThresholdTable(
        np.vstack([alone[0], curve.thresholds[order, :-1], alone[1]]),
        np.array([operations[0], *curve.operations[order], operations[-1]], dtype=np.float64),
        np.array([val.top1[0], *curve.accuracy[order], val.top1[-1]]),
        policy,
        temperatures,
    )

"""The settings of a sweep itself, beside those of the runs in it; the texts are what ``--help`` shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raygf import checks

TRIALS = 8
"""How many trials there are if nobody says."""


@dataclass(frozen=True)
class SweepOptions:
    """How trials are chosen, stopped and placed."""

    space: str = "fusion_lr"
    """Search space: one of those listed above, a Python file, or package.module:function of your own."""
    trials: int | None = None
    """Trials; by default 8, or all points of a grid."""
    search: Literal["random", "grid", "optuna"] | None = None
    """How they are chosen: drawn at random, every point of a grid, or by Optuna's TPE from those before
    (pip install 'raygf[sweep]'). By default as the space says, mostly random."""
    points: int = 3
    """grid: values taken of every range, its ends included."""
    scheduler: Literal["asha", "none", "pbt"] = "asha"
    """asha stops a trial that is not among the best third of those that have had as many training passes.
    pbt: the worst quarter goes on from the checkpoints of the best, with settings near theirs. none: all
    trials run to their end."""
    grace: int | None = None
    """Training passes before asha may stop a trial, and between two exchanges of pbt; by default an eighth of
    what a trial gets."""
    concurrent: int | None = None
    """Trials that run side by side; by default as many as the cluster holds. A trial's exit actors are made
    fewer so that they do, unless resources.actors is given."""
    cpus_per_exit: float | None = None
    """CPUs of each exit actor: short for resources.cpus-per-exit."""
    gpus_per_exit: float | None = None
    """GPUs of each exit actor: short for resources.gpus-per-exit."""
    max_failures: int = 2
    """Times that a trial which crashed is tried again from its checkpoint before it counts as failed."""
    resume: bool = False
    """Go on with the sweep --storage.name, which was interrupted or killed. No other flag is needed."""

    def __post_init__(self) -> None:
        checks.text("space", self.space, empty=False)
        checks.whole_or_none("trials", self.trials)
        checks.whole("points", self.points, 2)
        checks.whole_or_none("grace", self.grace)
        checks.whole_or_none("concurrent", self.concurrent)
        for name in ("cpus_per_exit", "gpus_per_exit"):
            if getattr(self, name) is not None:
                checks.number(name, getattr(self, name), 0)
        checks.whole("max_failures", self.max_failures, 0)
        checks.flag("resume", self.resume)
        if self.search is not None:
            checks.one_of("search", self.search, ("random", "grid", "optuna"))
        checks.one_of("scheduler", self.scheduler, ("asha", "none", "pbt"))

"""One step of fitting the fusion weights against one training step: MSDNet, CIFAR, 7 exits, batch 64.

    python benchmarks/fusion_step.py

The bar: at most 1.10.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import tyro
from made_up import batches, bind
from timing import interleave, show

from raygf.compute import generator, resolve_compute
from raygf.config.recipes import get_recipe
from raygf.config.run import ComputeConfig, FusionConfig, OptimConfig
from raygf.fusion.fuse import FusionTask, Learner, Passed
from raygf.fusion.fusion_pass import SharesHere, run_pass
from raygf.fusion.learned import LearnedFusion
from raygf.training.exit_trainer import PassTask
from raygf.training.sgd import FlatOptimizer, train_epoch
from raygf.training.space import Segments, find_ownership


@dataclass(frozen=True)
class Options:
    """What to time."""

    batch: int = 64
    """Images a step."""
    steps: int = 3
    """Steps in one timed run."""
    repeats: int = 9
    """Timed runs of each."""
    segments: Literal["tensor", "channel", "network"] = "tensor"
    """Kind of segments."""
    compute: ComputeConfig = field(default_factory=ComputeConfig)


def main(options: Options) -> None:
    """Time both in turn and print the ratio."""
    compute = resolve_compute(options.compute)
    data = batches(compute, options.batch, options.steps)
    bound = bind(compute)
    state = bound.state()
    owned = find_ownership(bound.network, data[0][0][:2], bound.space)
    segments = Segments(options.segments, bound.space)
    exits = owned.shape[0]
    noise = generator(0, "deltas")
    deltas = [
        (1e-3 * torch.randn(bound.space.size, generator=noise)).to(compute.device) for _ in range(exits)
    ]
    config = replace(get_recipe("digits"), fusion=FusionConfig(segments=options.segments))
    rule = LearnedFusion(config, segments, owned, compute.device)
    task = FusionTask(bound.tensor(state.vector), deltas, 0.1, "benchmark")
    ones = PassTask(1, (1.0,) * exits)
    optimizer = FlatOptimizer(bound, OptimConfig(), lr=1e-3)

    def train() -> None:
        train_epoch(
            bound,
            optimizer,
            data,
            lambda losses: torch.autograd.backward(torch.stack(losses).sum()),
            "benchmark",
        )

    def run(make: Callable[[], Learner], base: torch.Tensor | None = None) -> Passed:
        shares = SharesHere(config, bound, data, state, deltas, ones, [0])
        return run_pass(shares, make, task.where)

    def fuse() -> None:
        rule.fit(task, run)

    timings = interleave({"training step": train, "fusion step": fuse}, options.repeats, 1, options.steps)
    ratio = timings["fusion step"].median / timings["training step"].median
    title = f"MSDNet CIFAR, {exits} exits, batch {options.batch}, {compute.precision} {compute.memory_format}"
    show(title, timings, "training step", {"segments": segments.count, "ratio": round(ratio, 4), "bar": 1.10})


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

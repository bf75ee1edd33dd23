"""One exit-training step in every number format and layout: MSDNet, CIFAR, 7 exits, batch 64.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --accuracy-rounds 40     # and the accuracy with each setting
    python benchmarks/train_step.py --methods ge pcgrad      # instead: methods against joint SGD

"default" is what raygf picks on this device when nothing is set. The accuracies are those of the recipe
"digits" (average over exits, test images), trained in this process with each setting.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Literal

import torch
import tyro
from made_up import batches, bind
from timing import interleave, show

from raygf.compute import Compute, resolve_compute
from raygf.config.recipes import get_recipe
from raygf.config.run import (
    ComputeConfig,
    MethodConfig,
    OptimConfig,
    ResourceConfig,
    RunConfig,
    StorageConfig,
    TrackingConfig,
)
from raygf.launch import run
from raygf.methods.base import Setting
from raygf.methods.registry import make_step_method
from raygf.training.losses import exit_loss_weights
from raygf.training.sgd import FlatOptimizer, train_epoch
from raygf.training.space import find_ownership


@dataclass(frozen=True)
class Options:
    """What to time."""

    batch: int = 64
    """Images a step."""
    steps: int = 3
    """Steps in one timed run."""
    repeats: int = 7
    """Timed runs of each."""
    methods: tuple[str, ...] = ()
    """Time a step of these methods against one of joint SGD instead, in the default setting."""
    accuracy_rounds: int = 0
    """Also train the digits for this many rounds with each setting; 0: don't."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto: on a GPU if there is one."""
    seeds: int = 3
    """Seeds of that training."""
    storage: str = "runs/train-step"
    """Where those runs keep their checkpoints."""


def main(options: Options) -> None:
    """Time all settings in turn and print their ratios to plain float32."""
    default = resolve_compute(ComputeConfig(options.device))
    if options.methods:
        return _compare_methods(default, options)
    settings = {
        f"{precision} {layout}": Compute(default.device, precision, layout)
        for precision in ("fp32", "bf16")
        for layout in ("contiguous", "channels_last")
    }
    programs = {name: _epoch(compute, options) for name, compute in settings.items()}
    timings = interleave(programs, options.repeats, 1, options.steps)
    picked = f"{default.precision} {default.memory_format}"
    plain = "fp32 contiguous"
    extra = {
        "trained_on": default.device,
        "default": picked,
        "speedup_of_default": round(timings[plain].median / timings[picked].median, 3),
        "fastest": min(timings, key=lambda name: timings[name].median),
    }
    if options.accuracy_rounds:
        extra["accuracy"] = {name: _accuracy(c, options) for name, c in settings.items()}
    title = f"One exit-training step on {default.device}, MSDNet CIFAR, 7 exits, batch {options.batch}"
    show(f"{title}; default here: {picked}", timings, plain, extra)


def _epoch(compute: Compute, options: Options) -> Callable[[], None]:
    data, bound = batches(compute, options.batch, options.steps), bind(compute)
    optimizer = FlatOptimizer(bound, OptimConfig(), lr=1e-3)
    weights = torch.tensor(exit_loss_weights(3, (1.0,) * 7, 0.1), device=compute.device)

    def epoch() -> None:
        train_epoch(
            bound,
            optimizer,
            data,
            lambda losses: torch.autograd.backward(torch.stack(losses) @ weights),
            "benchmark",
        )

    return epoch


def _compare_methods(compute: Compute, options: Options) -> None:
    """Time a step of every method in turn and print the ratios to joint SGD."""
    programs = {name: _method_epoch(name, compute, options) for name in ("sgd", *options.methods)}
    timings = interleave(programs, options.repeats, 1, options.steps)
    setting = f"{compute.precision} {compute.memory_format}"
    show(f"One step within which exits are weighed, MSDNet CIFAR, 7 exits, {setting}", timings, "sgd", {})


def _method_epoch(name: str, compute: Compute, options: Options) -> Callable[[], None]:
    data, bound = batches(compute, options.batch, options.steps), bind(compute)
    owned = find_ownership(bound.network, data[0][0][:2], bound.space)
    setting = Setting(MethodConfig(), bound.network, owned, bound.space)
    optimizer = FlatOptimizer(bound, OptimConfig(), lr=1e-4)

    def epoch() -> None:
        with closing(make_step_method(name, setting)) as method:
            train_epoch(bound, optimizer, data, lambda losses: method.backward(losses, bound), "benchmark")

    return epoch


def _accuracy(compute: Compute, options: Options) -> list[float]:
    """Average test accuracy over exits, in %, one value a seed."""
    results = []
    for seed in range(options.seeds):
        result = run(_digits(compute, options, seed))
        results.append(round(100 * statistics.fmean(result.test_accuracy), 2))
    return results


def _digits(compute: Compute, options: Options, seed: int) -> RunConfig:
    return replace(
        get_recipe("digits"),
        rounds=options.accuracy_rounds,
        seed=seed,
        compute=ComputeConfig(compute.device, compute.precision, compute.memory_format),  # type: ignore[arg-type]
        resources=ResourceConfig(executor="local"),
        storage=StorageConfig(options.storage, keep=1),
        tracking=TrackingConfig(enabled=False),
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

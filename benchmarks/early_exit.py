"""Wall-clock time of early exit against the full network: MSDNet, CIFAR, 7 exits, in batches and one by one.

    python benchmarks/early_exit.py

The number of images that leave at each exit is set as in budgeted batch evaluation, with thresholds taken
from the network's confidences on the made-up images themselves. "efficiency" is the share of time saved ÷ the
share of operations saved; the bar, for batches of 256 on the CPU: at least 0.80. Of every program the
fastest run counts, because other work on the machine can only add time.

Operations are counted as in the paper's tables, where an exit pays for all scales of its layers. MSDNet's
lazy stages leave out those that the exit does not read, so efficiencies may exceed 1. "full network" is the
plain forward pass.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import tyro
from made_up import CIFAR, bind
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from timing import Timing, interleave, machine

from raygf.compute import Compute, resolve_compute
from raygf.config.run import ComputeConfig
from raygf.data.base import ChannelStatistics, Normaliser
from raygf.evaluation.budgeted import UNIT, exit_quotas, exits_taken, find_thresholds
from raygf.evaluation.loading import ImageTask
from raygf.evaluation.outputs import ExitOutputs, collect_outputs, read_logits
from raygf.models.costs import measure_costs
from raygf.serving.adaptive import AdaptiveClassifier
from raygf.training.network import BoundNetwork

BAR = 0.80
STATISTICS = ChannelStatistics((0.5,) * 3, (0.25,) * 3)

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Options:
    """What to time."""

    batch: int = 256
    """Images that go in together."""
    batches: int = 2
    """Batches in one timed run, of different images: so batches shrink to different sizes."""
    singles: int = 24
    """Images in one timed run of single images; 0: don't."""
    repeats: int = 7
    """Timed runs of each."""
    steps: tuple[int, ...] = (5, 10, 15, 20, 25)
    """Budgets: p = step / 20."""
    compute: ComputeConfig = field(default_factory=ComputeConfig)


@dataclass(frozen=True)
class Budget:
    """One row of thresholds, and the share of the full network's operations that it spends."""

    p: float
    thresholds: tuple[float, ...]
    share: float


def main(options: Options) -> None:
    """Time all budgets and the full network in turn, in batches and one by one."""
    compute = resolve_compute(options.compute)
    bound = bind(compute)
    operations = [cost.operations for cost in measure_costs(bound.network, CIFAR)]
    images = [made_up_images(seed, options.batch) for seed in range(options.batches)]
    outputs = fit_statistics(bound, images)
    budgets = find_budgets(outputs, operations, options.steps)
    names = tuple(str(number) for number in range(CIFAR.classes))
    classifier = AdaptiveClassifier(
        bound.network, ImageTask(CIFAR, STATISTICS, names), operations, None, compute, options.batch
    )
    result = {f"batches of {options.batch}": time_budgets(classifier, images, budgets, options.repeats)}
    if options.singles:
        chosen = np.linspace(0, options.batch - 1, options.singles, dtype=np.int64)
        single = [images[0][index : index + 1] for index in chosen]
        budgets = find_budgets(take(outputs, chosen), operations, options.steps)
        result["single images"] = time_budgets(classifier, single, budgets, options.repeats)
    show(result, compute)


def made_up_images(seed: int, count: int) -> Images:
    """Noise of different contrast and colour: uint8 (count, 3, 32, 32)."""
    draws = np.random.default_rng(seed)
    contrast, colour = draws.random((count, 1, 1, 1)), draws.integers(0, 256, (count, 3, 1, 1))
    noise = draws.integers(0, 256, (count, 3, 32, 32))
    return (contrast * noise + (1 - contrast) * colour).astype(np.uint8)


def fit_statistics(bound: BoundNetwork, images: Sequence[Images]) -> ExitOutputs:
    """Give BatchNorm the statistics of the images, then collect the outputs of all exits."""
    normalise = Normaliser(STATISTICS, bound.compute)
    pixels = [normalise(torch.from_numpy(batch).to(bound.compute.device)) for batch in images]
    bound.network.train()
    with torch.no_grad(), bound.compute.autocast():
        for _ in range(20):
            bound.network(pixels[0][:32])
    labels = torch.zeros(len(pixels[0]), dtype=torch.int64, device=bound.compute.device)
    return collect_outputs(bound, [(batch, labels) for batch in pixels])


def take(outputs: ExitOutputs, images: NDArray[np.int64]) -> ExitOutputs:
    """The outputs of some of the images."""
    return ExitOutputs(
        outputs.confidence[:, images],
        outputs.prediction[:, images],
        outputs.top5_hit[:, images],
        outputs.labels[images],
    )


def find_budgets(outputs: ExitOutputs, operations: Sequence[int], steps: Sequence[int]) -> list[Budget]:
    """Thresholds with which the images of ``outputs`` leave in the shares of each p."""
    table = find_thresholds(outputs.confidence, exit_quotas(*outputs.confidence.shape))
    budgets = []
    for step in steps:
        row = table[step - 1]
        spent = np.array(operations)[exits_taken(outputs.confidence, row)].mean() / operations[-1]
        budgets.append(Budget(step / UNIT, tuple(row.tolist()), float(spent)))
    return budgets


def time_budgets(
    classifier: AdaptiveClassifier, images: Sequence[Images], budgets: Sequence[Budget], repeats: int
) -> list[dict[str, float]]:
    """One row per budget: share of operations, share of time, efficiency."""

    def program(thresholds: tuple[float, ...]) -> Callable[[], None]:
        def run() -> None:
            for batch in images:
                classifier.predict(batch, thresholds=thresholds)

        return run

    programs = {f"{budget.p}": program(budget.thresholds) for budget in budgets}
    timings = interleave({"full": full_network(classifier, images), **programs}, repeats)
    full = timings["full"]
    return [row(budget, timings[f"{budget.p}"], full, len(images)) for budget in budgets]


def full_network(classifier: AdaptiveClassifier, images: Sequence[Images]) -> Callable[[], None]:
    """The network as it is, all of it for every image; the class is the last exit's."""
    compute, normalise = classifier.compute, Normaliser(STATISTICS, classifier.compute)
    network = classifier.network.eval()

    @torch.inference_mode()
    def run() -> None:
        for batch in images:
            pixels = normalise(torch.from_numpy(batch).to(compute.device))
            with compute.autocast():
                logits = network(pixels)
            for answer in read_logits(logits[-1]):
                answer.cpu().numpy()

    return run


def row(budget: Budget, timing: Timing, full: Timing, batches: int) -> dict[str, float]:
    """Figures of one budget."""
    share = min(timing.seconds) / min(full.seconds)
    typical = timing.median / full.median
    return {
        "p": budget.p,
        "operations": round(budget.share, 4),
        "time": round(share, 4),
        "efficiency": round((1 - share) / (1 - budget.share), 3),
        "efficiency_of_medians": round((1 - typical) / (1 - budget.share), 3),
        "ms": round(1e3 * min(timing.seconds) / batches, 2),
        "full_ms": round(1e3 * min(full.seconds) / batches, 2),
    }


def show(result: dict[str, list[dict[str, float]]], compute: Compute) -> None:
    """A table for each way of feeding the images, and last, one line of JSON."""
    for title, rows in result.items():
        full = f"full network {rows[0]['full_ms']:.1f} ms"
        view = Table(title=f"{title}, {compute.precision} {compute.memory_format}, {full}")
        for name in ("p", "operations ÷ full", "time ÷ full", "efficiency", "of medians", "ms"):
            view.add_column(name, justify="right")
        for figures in rows:
            view.add_row(*(f"{value:g}" for name, value in figures.items() if name != "full_ms"))
        Console(width=110).print(view)
    worst = {title: min(figures["efficiency"] for figures in rows) for title, rows in result.items()}
    print(json.dumps({**result, "worst": worst, "bar": BAR, "machine": machine()}), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

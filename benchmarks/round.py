"""Times whole rounds of Meta-GF: train the exits, fit the fusion weights, merge.

    python benchmarks/round.py

MSDNet with 7 exits (the paper's Table 1), images of CIFAR's shape, batches of 64, by default 10 steps an
epoch. In turn: the paper's round; exits that run only what they need (``loss.aux_exits = none``); and with a
tenth of the images in the fusion pass (``fusion.images``) too. Once in this process, once on 2 exit actors of
one core each beside the driver, on a Ray of its own. Bar: "none" at most 0.70 of the paper's round, local.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import ray
import tyro
from made_up import CIFAR, cifar_msdnet
from rich.console import Console
from rich.table import Table
from timing import machine

from raygf.compute import resolve_compute, torch_threads
from raygf.config.run import FusionConfig, LossConfig, ResourceConfig, RunConfig
from raygf.data.base import ChannelStatistics, Dataset
from raygf.data.in_memory import ImageSet
from raygf.data.splits import Split
from raygf.on_ray.executor import RayExecutor
from raygf.rounds.delta import DeltaRound
from raygf.training.exit_trainer import Executor, LocalExecutor
from raygf.training.network import BoundNetwork, NetworkState
from raygf.training.space import find_ownership

BAR = 0.70
Seconds = dict[str, list[dict[str, float]]]
"""Of every kind of round, seconds by phase of every counted one."""
PHASES = ("broadcast", "train", "wait", "fuse")


@dataclass(frozen=True)
class Options:
    """How much is run."""

    repeats: int = 3
    """Counted rounds of every kind."""
    warmup: int = 1
    """Uncounted rounds before."""
    steps: int = 10
    """Steps an epoch."""
    batch: int = 64
    """Images a step."""


def main(options: Options) -> None:
    """Measure all kinds of rounds, in this process and on actors."""
    images = options.steps * options.batch
    base = RunConfig(
        batch_size=options.batch, rounds=1000, resources=ResourceConfig(actors=2, gpus_per_exit=0)
    )
    lean = replace(base, loss=LossConfig(aux_exits="none"))
    kinds = {
        "paper": base,
        "none": lean,
        "none, a tenth": replace(lean, fusion=FusionConfig(images=max(2, images // 10))),
    }
    data = noise(images)
    results = {"local": measure(kinds, data, options, lambda run: LocalExecutor(run, data))}
    ray.init(
        address="local",
        num_cpus=6,
        include_dashboard=False,  # two pools wait while one works
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=4 << 30,
    )
    results["2 actors"] = measure(kinds, data, options, lambda run: RayExecutor(run, data, 7))
    ray.shutdown()
    show(results)


def noise(count: int) -> Dataset:
    """``count`` training images of CIFAR-100's shape."""
    draws = np.random.default_rng(0)
    pixels = draws.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    split = Split(pixels, draws.integers(0, 100, count))
    none = Split(pixels[:0], split.labels[:0])
    names = tuple(map(str, range(CIFAR.classes)))
    statistics = ChannelStatistics((0.5,) * 3, (0.25,) * 3)
    return ImageSet("noise", CIFAR, names, split, none, none, statistics, pad=4, flip=True)


def measure(
    kinds: dict[str, RunConfig], data: Dataset, options: Options, make: Callable[[RunConfig], Executor]
) -> Seconds:
    """Seconds by phase of every counted round, the kinds in turn, each on one core a process."""
    compute = resolve_compute(RunConfig().compute)
    rounds: dict[str, tuple[DeltaRound, NetworkState]] = {}
    found: Seconds = {name: [] for name in kinds}
    for name, run in kinds.items():
        bound = BoundNetwork(cifar_msdnet(), compute)
        owned = find_ownership(bound.network, data.spec.blank(2, compute.device), bound.space)
        batches = data.open(compute, run.batch_size, run.eval_batch_size)
        rounds[name] = (DeltaRound(run, bound, batches, make(run), owned), bound.state())
    with torch_threads(1):
        for turn in range(options.warmup + options.repeats):
            for name, (method, state) in rounds.items():
                seconds = method.run(state, turn + 1).seconds
                if turn >= options.warmup:
                    found[name].append(seconds)
    for method, _ in rounds.values():
        method.close()
    return found


def show(results: dict[str, Seconds]) -> None:
    """A table, and last, one line of JSON."""
    columns = ("where", "round", "median [s]", "min", "max", *PHASES, "÷ paper")
    table, values = Table(*columns, title="MSDNet, 7 exits"), {}
    for where, kinds in results.items():
        medians = {name: statistics.median(totals(rounds)) for name, rounds in kinds.items()}
        for name, rounds in kinds.items():
            phases = [statistics.median(seconds[phase] for seconds in rounds) for phase in PHASES]
            numbers = [medians[name], min(totals(rounds)), max(totals(rounds)), *phases]
            ratio = medians[name] / medians["paper"]
            table.add_row(where, name, *(f"{value:.2f}" for value in numbers), f"{ratio:.3f}")
            values[f"{where}: {name}"] = {
                "median_s": round(medians[name], 3),
                "ratio": round(ratio, 4),
                **dict(zip(PHASES, (round(phase, 3) for phase in phases), strict=True)),
            }
    Console(width=130).print(table)
    print(json.dumps({"rounds": values, "bar": BAR, "machine": machine()}), flush=True)


def totals(rounds: list[dict[str, float]]) -> list[float]:
    """Seconds of every round."""
    return [sum(seconds.values()) for seconds in rounds]


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

"""Times whole rounds of Meta-GF: train the exits, fit the fusion weights, merge.

    python benchmarks/round.py

MSDNet with 7 exits (the paper's Table 1), images of CIFAR's shape, batches of 64, by default 10 steps an
epoch. In turn: the paper's round; exits that run only what they need (``loss.aux_exits = none``); and with a
tenth of the images in the fusion pass (``fusion.images``) too. Once in this process, once on 2 exit actors of
one core each beside the driver, on a Ray of its own. Bar: "none" at most 0.70 of the paper's round, local.

Then the fusion pass alone: by the driver, and divided between the 2 actors (``fusion.shards``), in turn. Bar:
at least 1.7 times as fast.

Then rounds on the digits, with 1,000 validation images and one exit actor beside the driver: how much of
evaluation and checkpoint is hidden behind the next round's trainings. Bar: 90 %.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import ray
import torch
import tyro
from made_up import CIFAR, cifar_msdnet
from rich.console import Console
from rich.table import Table
from timing import interleave, machine

from raygf.compute import resolve_compute, torch_threads
from raygf.config.recipes import get_recipe
from raygf.config.run import DataConfig, FusionConfig, LossConfig, ResourceConfig, RunConfig, StorageConfig
from raygf.data.base import ChannelStatistics, Dataset
from raygf.data.in_memory import ImageSet
from raygf.data.splits import Split
from raygf.fusion.fuse import Passed
from raygf.fusion.fusion_pass import SharesHere, pass_batches, run_pass
from raygf.fusion.learned import LearnedFusion
from raygf.on_ray.executor import RayExecutor
from raygf.rounds.delta import DeltaRound
from raygf.rounds.driver import Driver
from raygf.training.exit_trainer import Executor, LocalExecutor, PassTask, Trained
from raygf.training.network import BoundNetwork, NetworkState, Vector
from raygf.training.prefix import handed_back
from raygf.training.shares import FusionShares
from raygf.training.space import Segments, find_ownership

BAR = 0.70
SHARDS_BAR = 1.7
HIDDEN_BAR = 0.9
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
        num_cpus=10,
        include_dashboard=False,  # the other pools wait while one works
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=4 << 30,
    )
    results["2 actors"] = measure(kinds, data, options, lambda run: RayExecutor(run, data, 7))
    found = {**shards(replace(lean, fusion=FusionConfig(shards=2)), options), **hidden(options)}
    ray.shutdown()
    show(results, found)


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


def shards(run: RunConfig, options: Options) -> dict[str, float]:
    """How many times as fast the fusion pass is on 2 actors as in the driver, over passes of 6 steps."""
    data = noise(6 * options.batch)
    bound = BoundNetwork(cifar_msdnet(), resolve_compute(run.compute))
    state, batches = bound.state(), data.open(bound.compute, run.batch_size, run.eval_batch_size)
    owned = find_ownership(bound.network, data.spec.blank(2), bound.space)
    rule = LearnedFusion(run, Segments("tensor", bound.space), owned, "cpu")
    executor, task = RayExecutor(run, data, 7), PassTask(1, (1.0,) * 7)
    updates = executor.train(state, 1, [None] * 7).updates
    parts = handed_back(bound.space, owned, "none")
    alone = replace(run, fusion=FusionConfig())

    def learn(shares: FusionShares) -> Passed:
        return run_pass(shares, lambda: rule.fit_of(0.1, torch.device("cpu")), "benchmark")

    def by_driver() -> None:
        packed = zip(parts, updates, strict=True)
        deltas = [part.unpack(bound.tensor(update.delta)) for part, update in packed]
        learn(SharesHere(alone, bound, pass_batches(alone, batches, 1), state, deltas, task, [0]))

    passes = {"by the driver": by_driver, "2 shards": lambda: executor.fuse(task, learn)}
    with torch_threads(1):
        timings = interleave(passes, max(3, options.repeats))
    executor.close()
    one, two = timings.values()
    ratio = one.median / two.median
    for name, timing in timings.items():
        low, high = timing.spread
        print(f"fusion pass, {name}: {timing.median:.2f} s ({low:.2f} to {high:.2f})")
    print(f"{ratio:.2f} times as fast (bar {SHARDS_BAR})")
    return {"shards_ratio": round(ratio, 3), "shards_bar": SHARDS_BAR}


class Watched(RayExecutor):
    """Keeps how long the trainings of every round took together."""

    def train(self, state: NetworkState, round: int, momenta: Sequence[Vector | None]) -> Trained:
        """As always."""
        trained = super().train(state, round, momenta)
        self.state, self.lasted = state, sum(update.seconds for update in trained.updates)
        return trained


def hidden(options: Options) -> dict[str, float]:
    """The share of evaluation and checkpoint that takes no time of a round, over all but the first rounds."""
    pools: list[Watched] = []

    def make(run: RunConfig, data: Dataset, exits: int) -> Watched:
        pools.append(Watched(run, data, exits))
        return pools[0]

    with tempfile.TemporaryDirectory(prefix="round-") as folder:
        config = replace(
            get_recipe("digits"),
            rounds=3 + 4 * options.repeats,
            data=DataConfig(val=1000, pad=1, flip=False),
            resources=ResourceConfig(actors=1, gpus_per_exit=0),
            storage=StorageConfig(folder, "run"),
        )
        driver, ended, exposed, beside = Driver(config, make), 0.0, 0.0, 0.0
        driver.prepare()
        for record in driver.rounds(""):
            now, seconds = time.perf_counter(), record.seconds
            if record.round > 2 and record.round < config.rounds:  # after the last one nothing can hide
                exposed += now - ended - pools[0].lasted - seconds["fuse"]
                beside += seconds["evaluate"] + seconds["checkpoint"]
            ended = now
        alone = []
        for _ in range(5):  # with nothing beside it, for what Ray takes to hand exits out
            started = time.perf_counter()
            pools[0].train(pools[0].state, 1, [None] * 3)
            alone.append(time.perf_counter() - started - pools[0].lasted)
        exposed -= (config.rounds - 3) * statistics.median(alone)
        driver.close()
    share = 1 - max(0.0, exposed) / beside
    print(f"hidden: {share:.1%} of {beside:.2f} s of evaluation and checkpoint (bar {HIDDEN_BAR:.0%})")
    return {"hidden": round(share, 4), "beside_s": round(beside, 3), "hidden_bar": HIDDEN_BAR}


def show(results: dict[str, Seconds], more: dict[str, float]) -> None:
    """A table, and last, one line of JSON with ``more`` in it."""
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
    print(json.dumps({"rounds": values, "bar": BAR, **more, "machine": machine()}), flush=True)


def totals(rounds: list[dict[str, float]]) -> list[float]:
    """Seconds of every round."""
    return [sum(seconds.values()) for seconds in rounds]


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

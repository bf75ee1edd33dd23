"""Many exits and many actors on few cores: checks for deadlocks, the order of updates, and equal weights.

    python benchmarks/load.py

It starts a Ray of its own on this machine, whatever RAY_ADDRESS says, and looks at its processes.

Two parts. A run of a network with 16 exits: in one process, on 3 exit actors, on 16. And as many actors as
memory has room for, 64 at most, whose trainings do nothing: how long they take to start, how long a round
takes, and how much memory each uses: idle some 330 MiB, for torch and Ray.

Bars: the hashes of the weights are equal, and in every round the updates come back in the order of the exits.
The exit code is 1 if a bar does not hold.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import psutil
import ray
import tyro
from rich.console import Console
from rich.table import Table
from timing import machine
from tiny import tiny_run

from raygf.config.run import ModelConfig, MSDNetConfig, ResourceConfig, RunConfig, StorageConfig
from raygf.data.base import Dataset
from raygf.on_ray.cluster import silent_ray
from raygf.on_ray.executor import RayExecutor
from raygf.rounds.driver import Driver
from raygf.training.exit_trainer import Executor, ExitUpdate, LocalExecutor
from raygf.training.network import NetworkState, Vector

MEMORY_OF_ONE = 360 * 2**20
"""Bytes to reckon with for an actor."""
SHARE = 0.6
"""Of the free memory that the actors may take."""


@dataclass(frozen=True)
class Options:
    """How many exits, rounds and actors."""

    exits: int = 16
    """Exits of the network that is trained."""
    rounds: int = 4
    """Rounds of its run: exits times rounds trainings."""
    pools: tuple[int, ...] = (3, 16)
    """Sizes of the pools that it is trained on."""
    actors: int = 64
    """Actors whose trainings do nothing, at most."""
    empty_rounds: int = 20
    """Rounds of theirs."""


class Nothing:
    """Stands in for the exit trainer: the delta says which exit and round it is of."""

    def __init__(self, config: RunConfig, dataset: Any) -> None:
        pass

    def train(
        self, state: NetworkState, exit: int, exits: int, round: int, momentum: Vector | None
    ) -> ExitUpdate:
        """A delta of ``round·exits + exit`` everywhere."""
        delta = np.full_like(state.vector, round * exits + exit)
        return ExitUpdate(exit, delta, {}, 0.0, 0.0, 0.0)


def many_exits(exits: int, rounds: int) -> RunConfig:
    """A network of thin layers, an exit after each."""
    layers = MSDNetConfig(exits=exits, base=1, step=1, channels=4, growth=2, factors=(1, 2), head_channels=4)
    resources = ResourceConfig(cpus_per_exit=0.1, gpus_per_exit=0, driver_cpus=0.1, driver_gpus=0)
    tiny = tiny_run(rounds, exits, StorageConfig(), resources)
    return replace(tiny, model=ModelConfig("msdnet", layers))


def train(config: RunConfig, make: Callable[[RunConfig, Dataset, int], Executor]) -> tuple[str, float]:
    """The hash of the weights after all rounds, and the seconds that the rounds took."""
    with tempfile.TemporaryDirectory() as folder:
        driver = Driver(replace(config, storage=StorageConfig(folder, "load")), make)
        driver.prepare()
        started = time.perf_counter()
        try:
            for record in driver.rounds(""):
                assert not record.notes, record.notes
            return driver.end().weights_sha256, time.perf_counter() - started
        finally:
            driver.close()


def on_actors(config: RunConfig, actors: int) -> RunConfig:
    """The same run on a pool of actors."""
    return replace(config, resources=replace(config.resources, actors=actors))


def same_bits(options: Options) -> dict[str, tuple[str, float]]:
    """Hash and seconds of the run in this process and on each pool."""
    config = many_exits(options.exits, options.rounds)
    runs = {"one process": train(config, lambda run, dataset, exits: LocalExecutor(run, dataset))}
    for actors in options.pools:
        runs[f"{actors} actors"] = train(on_actors(config, actors), RayExecutor)
    return runs


@dataclass(frozen=True)
class Crowd:
    """Measurements with many actors that do nothing."""

    actors: int
    start_s: float
    round_s: float
    memory: float
    ordered: bool


def crowd(actors: int, rounds: int) -> Crowd:
    """Start the actors, wait until all have trained, and run rounds with an exit for each."""
    started = time.perf_counter()
    resources = ResourceConfig(actors=actors, cpus_per_exit=0.001, gpus_per_exit=0, driver_cpus=0)
    pool = RayExecutor(RunConfig(resources=resources), None, actors, trainer=Nothing)  # type: ignore[arg-type]
    state, ordered, seconds = NetworkState(np.zeros(10_000, np.float32), {}), True, []
    round = 0
    while len(processes := exit_actors()) < actors or round == 0:
        round += 1
        ordered &= one_round(pool, state, round, actors)
    start_s = time.perf_counter() - started
    for _ in range(rounds):
        round += 1
        before = time.perf_counter()
        ordered &= one_round(pool, state, round, actors)
        seconds.append(time.perf_counter() - before)
    memory = statistics.median(p.memory_info().rss - p.memory_info().shared for p in processes)
    pool.close()
    return Crowd(actors, start_s, statistics.median(seconds), memory, ordered)


def one_round(pool: RayExecutor, state: NetworkState, round: int, exits: int) -> bool:
    """Whether every exit's update is its own, and in its place."""
    updates = pool.train(state, round, [None] * exits).updates
    said = [(update.exit, float(update.delta[0])) for update in updates]
    return said == [(exit, float(round * exits + exit)) for exit in range(exits)]


def exit_actors() -> list[psutil.Process]:
    """The processes of the exit actors that have begun."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if " ".join(process.cmdline()[:1]).startswith("ray::ExitActor"):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def room_for(actors: int) -> int:
    """As many actors as memory has room for, once those of earlier pools have ended."""
    psutil.wait_procs(exit_actors(), timeout=30)
    return max(1, min(actors, int(SHARE * psutil.virtual_memory().available / MEMORY_OF_ONE)))


def show(runs: Mapping[str, tuple[str, float]], many: Crowd, options: Options) -> None:
    """Print a table of the first part and a sentence on the second."""
    trainings = options.exits * options.rounds
    table = Table("", "seconds", "weights_sha256", title=f"{options.exits} exits, {trainings} trainings")
    for name, (sha, seconds) in runs.items():
        table.add_row(name, f"{seconds:.1f}", sha[:16])
    Console(width=110).print(table)
    short = "" if many.actors == options.actors else f" (memory has no room for {options.actors})"
    print(
        f"{many.actors} actors{short}, {many.memory / 2**20:.0f} MiB each: all there after "
        f"{many.start_s:.0f} s; a round of as many trainings that do nothing: {1e3 * many.round_s:.0f} ms "
        f"(median of {options.empty_rounds}); updates {'in order' if many.ordered else 'NOT IN ORDER'}"
    )


@silent_ray()
def main(options: Options) -> int:
    """Run both parts and show them; returns the exit code."""
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    runs = same_bits(options)
    actors = room_for(options.actors)
    many = crowd(actors, options.empty_rounds)
    ray.shutdown()
    equal = len({sha for sha, _ in runs.values()}) == 1
    show(runs, many, options)
    result = {
        "weights_equal": equal,
        "in_order": many.ordered,
        "actors": many.actors,
        "actors_start_s": round(many.start_s, 1),
        "round_s": round(many.round_s, 4),
        "actor_mib": round(many.memory / 2**20),
        "seconds": {name: round(seconds, 2) for name, (_, seconds) in runs.items()},
        "machine": machine(),
    }
    print(json.dumps(result), flush=True)
    return 0 if equal and many.ordered else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))

"""Measures the overhead of a round: broadcast, collect and merge, with trainings that only add a constant.

    python benchmarks/round_overhead.py

It starts a Ray of its own on this machine, whatever RAY_ADDRESS says: its bars are for that.

Bars on 2 cores: at most 0.20 s for 7.36 M parameters × 7 exits, 0.40 s for 24 M × 5; peak memory of the
driver at most 1.5 × n·P·4 bytes over its base. The driver's memory is what it allocates itself (the peak over
all rounds of its resident memory less shared pages) plus what it keeps alive in the object store (a round's
updates and the broadcast state, in bytes of their arrays). Resident memory alone would mislead: in the long
run every page of the store that was ever mapped counts in it, whatever lives there now.
"""

from __future__ import annotations

import json
import statistics
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import ray
import torch
import tyro
from rich.console import Console
from rich.table import Table
from timing import machine

from raygf.config.run import ResourceConfig, RunConfig
from raygf.fusion.fuse import fuse
from raygf.on_ray.executor import RayExecutor
from raygf.training.exit_trainer import ExitUpdate, Trained
from raygf.training.network import NetworkState, Vector, as_tensor
from raygf.training.space import FlatSpace, Segments, Slot

CASES = {"MSDNet CIFAR": (7_364_272, 7, 0.20), "MSDNet ImageNet": (23_963_880, 5, 0.40)}
TENSORS = 400


class AddConstant:
    """Stands in for the exit trainer: the delta is a constant, made as cheaply as possible."""

    def __init__(self, config: RunConfig, dataset: Any) -> None:
        pass

    def train(
        self, state: NetworkState, exit: int, exits: int, round: int, momentum: Vector | None
    ) -> ExitUpdate:
        """A delta of ``exit + 1`` everywhere."""
        delta = np.full_like(state.vector, exit + 1.0)
        return ExitUpdate(exit, delta, {}, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Options:
    """Number of rounds."""

    repeats: int = 15
    """Counted rounds."""
    warmup: int = 3
    """Uncounted rounds before."""
    actors: int = 2
    """Exit actors."""


class Driver:
    """Runs rounds in an actor of its own, as a real driver does, and watches its own memory."""

    def __init__(self, size: int, exits: int, options: Options) -> None:
        length = size // TENSORS
        starts = [number * length for number in range(TENSORS)]
        stops = [*starts[1:], size]
        slots = [Slot(f"t{a}", (b - a,), a, b) for a, b in zip(starts, stops, strict=True)]
        self._segments = Segments("tensor", FlatSpace(tuple(slots)))
        self._exits = exits
        self._state = NetworkState(np.ones(size, np.float32), {})  # touched: part of the base
        config = RunConfig(resources=ResourceConfig(actors=options.actors, gpus_per_exit=0))
        self._pool = RayExecutor(config, None, exits, trainer=AddConstant)  # type: ignore[arg-type]

    def measure(self, options: Options) -> dict[str, Any]:
        """Seconds of every counted round, and the peak of memory over the base, in bytes."""
        for number in range(options.warmup):
            self._round(number)
        base = own_memory()  # between rounds, with all libraries loaded
        with PeakMemory() as peak:
            seconds = [self._round(options.warmup + number) for number in range(options.repeats)]
        return {"seconds": seconds, "own_bytes": peak.bytes - base, "store_bytes": self._held}

    def _round(self, number: int) -> float:
        started = time.perf_counter()
        trained = self._pool.train(self._state, number, [None] * self._exits)
        merged = self._merge(trained)
        self._held = self._state.vector.nbytes + sum(update.delta.nbytes for update in trained.updates)
        elapsed = time.perf_counter() - started
        expected = self._state.vector[0] + (self._exits + 1) / 2
        assert np.allclose(merged[[0, -1]], expected), "the merge is wrong"
        self._state = NetworkState(merged, {})
        return elapsed

    def _merge(self, trained: Trained) -> Vector:
        deltas = [as_tensor(update.delta) for update in trained.updates]
        weights = torch.full((self._exits, self._segments.count), 1 / self._exits)
        merged: Vector = fuse(as_tensor(self._state.vector), deltas, weights, self._segments).numpy()
        return merged


def own_memory() -> int:
    """Resident memory of this process that is not shared, in bytes."""
    info = psutil.Process().memory_info()
    return int(info.rss - info.shared)


class PeakMemory:
    """The largest ``own_memory`` inside, looked at every 2 ms."""

    def __init__(self) -> None:
        self.bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self.bytes = max(self.bytes, own_memory())


def main(options: Options) -> None:
    """Measure all cases and print them against their bars."""
    ray.init(
        address="local",
        num_cpus=options.actors + 1,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=4 << 30,
    )
    columns = ("case", "median [s]", "min", "max", "bar", "own ÷ n·P·4", "store ÷ n·P·4", "sum", "bar")
    table, results = Table(*columns), {}
    for name, (size, exits, bar) in CASES.items():
        driver = ray.remote(Driver).options(num_cpus=1).remote(size, exits, options)
        measured = ray.get(driver.measure.remote(options), timeout=600)
        ray.kill(driver)
        seconds, deltas = measured["seconds"], size * exits * 4
        own, store = measured["own_bytes"] / deltas, measured["store_bytes"] / deltas
        times = [f"{value:.3f}" for value in (statistics.median(seconds), min(seconds), max(seconds), bar)]
        shares = [f"{value:.2f}" for value in (own, store, own + store, 1.5)]
        table.add_row(f"{name}: {size / 1e6:.2f} M × {exits}", *times, *shares)
        median = round(statistics.median(seconds), 4)
        results[name] = {"median_s": median, "bar_s": bar, "memory": round(own + store, 3), "memory_bar": 1.5}
    ray.shutdown()
    Console(width=120).print(table)
    print(json.dumps({"cases": results, "machine": machine()}), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

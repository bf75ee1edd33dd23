"""Simulates how long a round of Meta-GF takes on 1 to 64 devices, from costs measured here.

    python benchmarks/scale.py

Measured with MSDNet's 7 exits on CIFAR-shaped images, on one core a process: steps of every exit's training
and of the fusion pass, on whole batches and on halves, alone and with the other core busy; and summing
gradients between two replicas. From them come a step's fixed part and its part by operations. The simulation
hands exits out as the executor does, longest first, each to as many actors as it has replicas.

First it is checked: rounds on 1 and 2 actors, predicted and run (bar: within 10 %). Then the table: for the
network of ``--recipe``, in units of t, the time of one epoch of joint SGD on one device.
"""

from __future__ import annotations

import heapq
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import ray
import torch
import tyro
from made_up import cifar_msdnet
from rich.console import Console
from rich.table import Table
from round import noise
from timing import machine

from raygf.compute import resolve_compute, torch_threads
from raygf.config.recipes import get_recipe
from raygf.config.run import FusionConfig, LossConfig, ResourceConfig, RunConfig
from raygf.data.base import InputSpec
from raygf.fusion.fusion_pass import SharesHere, pass_batches, run_pass
from raygf.fusion.learned import LearnedFusion
from raygf.models.build import build_model
from raygf.models.costs import measure_costs
from raygf.on_ray.executor import RayExecutor, longest_first
from raygf.rounds.delta import DeltaRound
from raygf.training.exit_trainer import ExitTrainer, PassTask
from raygf.training.network import BoundNetwork
from raygf.training.peers import joined, meeting_place
from raygf.training.space import Segments, find_ownership

BAR = 0.10
IMAGENET = InputSpec(3, 224, 224, 1000)


@dataclass(frozen=True)
class Options:
    """What is measured and what is simulated."""

    steps: int = 3
    """Steps an epoch of the measurements."""
    batch: int = 64
    """Images a step of the measurements."""
    rounds: int = 3
    """Real rounds of every kind; the first is not counted."""
    devices: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 16, 32, 64)
    """Devices of the simulated clusters."""
    recipe: str = "imagenet-msdnet-metagf"
    """The simulated run."""
    images: int = 1_231_167
    """Its training images."""
    gbit: float = 10.0
    """Gbit/s between its nodes, each with one device."""


@dataclass(frozen=True)
class Costs:
    """Seconds of a step: ``fixed``, and for every image and operation (forward) ``slope``.

    Likewise of a fusion step; ``exchange``: to sum a byte of gradients between replicas.
    """

    fixed: float
    slope: float
    fusion_fixed: float
    fusion_slope: float
    exchange: float

    def training(self, operations: int, images: float, parameters: int, replicas: int) -> float:
        """A step of one exit, each of so many ``replicas`` on its share of so many ``images``."""
        shared = 4 * parameters * self.exchange * (replicas - 1)
        return self.fixed + self.slope * operations * images / replicas + shared

    def fusion(self, operations: int, images: float) -> float:
        """A step of the fusion pass of a network of so many ``operations``, with so many ``images``."""
        return self.fusion_fixed + self.fusion_slope * operations * images


@dataclass(frozen=True)
class Workload:
    """A round: ``operations`` and ``parameters`` that each exit's training runs (n,), and its size."""

    operations: tuple[int, ...]
    parameters: tuple[int, ...]
    batch: int
    steps: int
    whole: int
    """Operations up to the last exit."""


@dataclass(frozen=True)
class Division:
    """How a round is divided: actors, replicas of every exit, shares of the fusion pass."""

    actors: int
    replicas: tuple[int, ...]
    shards: int = 1


@dataclass(frozen=True)
class Simulated:
    """Seconds of a round. ``busy``: of all devices together, in training and in the fusion pass."""

    train: float
    fuse: float
    transfer: float
    busy: float

    @property
    def total(self) -> float:
        """The whole round."""
        return self.train + self.fuse + self.transfer


def simulate(costs: Costs, work: Workload, division: Division, byte_s: float = 0.0) -> Simulated:
    """The round as the executor would run it; ``byte_s``: seconds to send a byte to another node."""
    exits = range(len(work.operations))

    def lasts(exit: int, replicas: int) -> float:
        args = (work.operations[exit], work.batch, work.parameters[exit], replicas)
        return work.steps * costs.training(*args)

    alone = {exit: lasts(exit, 1) for exit in exits}
    free, now, busy = division.actors, 0.0, 0.0
    running: list[tuple[float, int]] = []
    for exit in longest_first(len(exits), alone):
        wanted = division.replicas[exit]
        seats = wanted if wanted <= division.actors else 1
        while free < seats:
            now, back = heapq.heappop(running)
            free += back
        seconds = lasts(exit, seats)
        heapq.heappush(running, (now + seconds, seats))
        free, busy = free - seats, busy + seats * seconds
    train = max(end for end, _ in running) if running else 0.0
    at_once = min(division.shards, division.actors)
    turns = -(-division.shards // at_once)
    fuse = work.steps * costs.fusion(work.whole, work.batch / division.shards * turns)
    sent = 4 * work.parameters[-1] * 2 * byte_s * (division.actors > 1)
    return Simulated(train, fuse, sent, busy + fuse * at_once)


def best(costs: Costs, work: Workload, devices: int, byte_s: float) -> tuple[Division, Simulated]:
    """The fastest division: the longest training gets another replica as long as there are devices."""
    replicas = [1] * len(work.operations)
    found: list[tuple[float, Division, Simulated]] = []
    shards = sorted({1, min(devices, 8), min(devices, 16), devices})
    while sum(replicas) <= max(devices, len(replicas)):
        for count in shards:
            division = Division(min(devices, sum(replicas)), tuple(replicas), count)
            simulated = simulate(costs, work, division, byte_s)
            found.append((simulated.total, division, simulated))
        lasting = [
            costs.training(o, work.batch, p, r)
            for o, p, r in zip(work.operations, work.parameters, replicas, strict=True)
        ]
        replicas[int(np.argmax(lasting))] += 1
    _, division, simulated = min(found, key=lambda it: it[0])
    return division, simulated


class Probe:
    """Measures costs in a process of its own, on one core."""

    def steps(self, options: Options, batch: int) -> tuple[list[float], float]:
        """Seconds of a step of every exit's training, and of the fusion pass, on batches of ``batch``."""
        config = replace(settings(options.batch), batch_size=batch)
        data = noise(options.steps * batch)
        trainer = ExitTrainer(config, data)
        state, exits = trainer.bound.state(), 7
        updates = [trainer.train(state, exit, exits, 1) for exit in [exits - 1, *range(exits)]][1:]
        owned = find_ownership(trainer.bound.network, data.spec.blank(2), trainer.bound.space)
        segments = Segments("tensor", trainer.bound.space)
        rule = LearnedFusion(config, segments, owned, "cpu")
        deltas = [trainer.whole(update) for update in updates]
        with torch_threads(1):
            for _ in range(2):  # the first one warms up
                started = time.perf_counter()
                batches = pass_batches(config, trainer.batches, 1)
                task = PassTask(1, (1.0,) * exits)
                shares = SharesHere(config, trainer.bound, batches, state, deltas, task, [0])
                run_pass(shares, lambda: rule.fit_of(0.1, torch.device("cpu")), "probe")
                fused = time.perf_counter() - started
        return [update.seconds / options.steps for update in updates], fused / options.steps

    def meet(self) -> str:
        """Let the other one meet this one."""
        self._store, address = meeting_place(ray.util.get_node_ip_address())
        return address

    def exchange(self, address: str, rank: int, numbers: int) -> float:
        """Seconds to sum a byte of a vector of so many ``numbers`` between two."""
        vector = torch.ones(numbers)
        with joined(address, rank, 2, "gloo", 60.0) as peers:
            peers.sum_(vector)
            started = time.perf_counter()
            for _ in range(5):
                peers.sum_(vector)
            return (time.perf_counter() - started) / 5 / (4 * numbers)


def settings(batch: int) -> RunConfig:
    """A run whose exits train what they need alone."""
    resources = ResourceConfig(gpus_per_exit=0, driver_gpus=0)
    return RunConfig(batch_size=batch, rounds=1000, loss=LossConfig(aux_exits="none"), resources=resources)


def workload(network: torch.nn.Module, spec: InputSpec, batch: int, images: int, prefix: bool) -> Workload:
    """A round of ``network``; ``prefix``: exits train only what they need."""
    costs = measure_costs(network, spec)
    last = costs[-1]
    each = costs if prefix else [last] * len(costs)
    operations, parameters = (tuple(getattr(c, name) for c in each) for name in ("operations", "parameters"))
    return Workload(operations, parameters, batch, -(-images // batch), last.operations)


def measure(options: Options) -> tuple[Costs, Costs]:
    """Costs of one process alone, and with another one on the other core."""
    probes = [ray.remote(Probe).options(num_cpus=1).remote() for _ in range(2)]
    operations = [cost.operations for cost in measure_costs(cifar_msdnet(), noise(2).spec)]
    sizes = (options.batch, options.batch // 2)

    def fit(active: Sequence[Any]) -> dict[str, float]:
        runs = [ray.get([p.steps.remote(options, size) for p in active], timeout=900) for size in sizes]
        rows, seconds, fused = [], [], []
        for size, answers in zip(sizes, runs, strict=True):
            steps = np.mean([answer[0] for answer in answers], axis=0)
            rows += [(1.0, o * size) for o in operations]
            seconds += steps.tolist()
            fused.append(statistics.fmean(answer[1] for answer in answers))
        # Relative errors count, so that the shallow exits are met as well as the deep ones.
        weights = 1 / np.array(seconds)
        (fixed, slope), *_ = np.linalg.lstsq(
            np.array(rows) * weights[:, None], np.ones(len(rows)), rcond=None
        )
        fusion_slope = (fused[0] - fused[1]) / (operations[-1] * (sizes[0] - sizes[1]))
        fusion_fixed = fused[0] - fusion_slope * operations[-1] * sizes[0]
        values = {"fixed": fixed, "slope": slope, "fusion_fixed": fusion_fixed, "fusion_slope": fusion_slope}
        return {name: float(value) for name, value in values.items()}

    numbers = sum(p.numel() for p in cifar_msdnet().parameters())
    address = probes[0].meet.remote()
    exchanged = [probe.exchange.remote(address, rank, numbers) for rank, probe in enumerate(probes)]
    exchange = max(ray.get(exchanged, timeout=120))
    alone, both = fit(probes[:1]), fit(probes)
    for probe in probes:
        ray.kill(probe)
    return Costs(**alone, exchange=exchange), Costs(**both, exchange=exchange)


def check(options: Options, alone: Costs, both: Costs) -> dict[str, tuple[float, float]]:
    """Predicted and measured seconds of rounds on 1 and 2 actors."""
    work = workload(cifar_msdnet(), noise(2).spec, options.batch, options.steps * options.batch, True)
    ones, deep = (1,) * 7, (1, 1, 1, 1, 1, 1, 2)
    divisions = {
        "1 actor": Division(1, ones),
        "2 actors": Division(2, ones),
        "2 actors, 2 shards": Division(2, ones, 2),
        "2 actors, 2 shards, 2 replicas of the last exit": Division(2, deep, 2),
    }
    found = {}
    for name, division in divisions.items():
        one = division.actors == 1
        training = simulate(alone if one else both, work, division)
        fusing = simulate(both if division.shards > 1 else alone, work, division)
        found[name] = (training.train + fusing.fuse, run(options, division))
    return found


def run(options: Options, division: Division) -> float:
    """Seconds of a real round, the median of those that count."""
    config = settings(options.batch)
    resources = replace(config.resources, actors=division.actors, replicas=division.replicas)
    config = replace(config, resources=resources, fusion=FusionConfig(shards=division.shards))
    data = noise(options.steps * options.batch)
    bound = BoundNetwork(cifar_msdnet(), resolve_compute(config.compute))
    owned = find_ownership(bound.network, data.spec.blank(2), bound.space)
    batches = data.open(bound.compute, config.batch_size, config.eval_batch_size)
    executor = RayExecutor(config, data, 7)
    method, state = DeltaRound(config, bound, batches, executor, owned), bound.state()
    with torch_threads(1):
        seconds = [sum(method.run(state, r + 1).seconds.values()) for r in range(options.rounds)]
    method.close()
    return statistics.median(seconds[1:])


def main(options: Options) -> None:
    """Measure, check, simulate, print."""
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    alone, both = measure(options)
    checked = check(options, alone, both)
    ray.shutdown()
    rows = Table(
        "round", "predicted [s]", "measured [s]", "difference", title="MSDNet, 7 exits, one core an actor"
    )
    off = {name: predicted / measured - 1 for name, (predicted, measured) in checked.items()}
    for name, (predicted, measured) in checked.items():
        rows.add_row(name, f"{predicted:.2f}", f"{measured:.2f}", f"{off[name]:+.1%}")
    Console(width=120).print(rows)
    simulated = {aux: scale(options, alone, aux == "none") for aux in ("all", "none")}
    values = {"costs": asdict(alone), "both_busy": asdict(both), "off": off, "bar": BAR, "rounds": simulated}
    print(json.dumps({**values, "machine": machine()}), flush=True)


def scale(options: Options, costs: Costs, prefix: bool) -> list[dict[str, Any]]:
    """The table of rounds by devices."""
    config = get_recipe(options.recipe)
    work = workload(
        build_model(config.model, IMAGENET, 0), IMAGENET, config.batch_size, options.images, prefix
    )
    epoch = work.steps * costs.training(work.whole, work.batch, 0, 1)
    titles = ("devices", "actors", "replicas", "shards", "round [t]", "train", "fuse", "send", "efficiency")
    lost = ("waiting", "dividing")
    name = f"{options.recipe}, loss.aux_exits = {'none' if prefix else 'all'}, {options.gbit:g} Gbit/s"
    table, found = Table(*titles, *lost, title=name), []
    byte_s = 8 / (options.gbit * 1e9)
    costs = replace(costs, exchange=byte_s)
    one = simulate(costs, work, Division(1, (1,) * len(work.operations)))
    for devices in options.devices:
        division, round = best(costs, work, devices, byte_s)
        reserved = devices * round.total
        numbers = {
            "round": round.total / epoch,
            "train": round.train / epoch,
            "fuse": round.fuse / epoch,
            "send": round.transfer / epoch,
            "efficiency": one.total / reserved,
            "waiting": 1 - round.busy / reserved,
            "dividing": (round.busy - one.busy) / reserved,
        }
        replicas = "/".join(map(str, division.replicas))
        cells = [f"{value:.2f}" if value < 1e3 else f"{value:.0f}" for value in numbers.values()]
        table.add_row(str(devices), str(division.actors), replicas, str(division.shards), *cells)
        rounded = {name: round_to(value) for name, value in numbers.items()}
        found.append({"devices": devices, **asdict(division), **rounded})
    Console(width=120).print(table)
    return found


def round_to(value: float) -> float:
    """Four digits after the point."""
    return round(value, 4)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

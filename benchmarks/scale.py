"""Simulates how long a round of Meta-GF takes on 1 to 64 devices, from costs measured here.

    python benchmarks/scale.py

Measured with MSDNet's 7 exits on CIFAR-shaped images, on one core a process: epochs of three exits and the
fusion's part of a round, of more and fewer steps, on whole batches and on halves, alone and with the other
core busy; and summing gradients between two replicas. From them come what an epoch takes, what a step takes,
and what an image takes by operations. The simulation hands exits out as the executor does: longest first, to
as many actors as each has replicas.

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
from scipy.optimize import nnls
from timing import machine

from raygf.compute import resolve_compute, torch_threads
from raygf.config.recipes import get_recipe
from raygf.config.run import FusionConfig, LossConfig, ResourceConfig, RunConfig
from raygf.data.base import InputSpec
from raygf.models.build import build_model
from raygf.models.costs import measure_costs
from raygf.on_ray.executor import RayExecutor, longest_first
from raygf.rounds.delta import DeltaRound
from raygf.training.exit_trainer import Executor, ExitTrainer, ExitUpdate, Trained
from raygf.training.network import BoundNetwork, NetworkState, Vector
from raygf.training.peers import joined, meeting_place
from raygf.training.prefix import handed_back
from raygf.training.space import find_ownership

BAR = 0.10
PROBED = (0, 3, 6)
"""Exits that are measured."""
IMAGENET = InputSpec(3, 224, 224, 1000)


@dataclass(frozen=True)
class Options:
    """What is measured and what is simulated."""

    steps: int = 4
    """Steps an epoch of the rounds that are run."""
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
    speed: float = 100.0
    """How many times as fast each of its devices is as a core here."""
    gbit: float = 25.0
    """Gbit/s between its nodes, each with one device."""


@dataclass(frozen=True)
class Costs:
    """Seconds of an exit's training: of an ``epoch``, a ``step``, and ``slope`` of an image's operation.

    Likewise of the fusion's part of a round; ``exchange``: to sum a byte of gradients between replicas.
    """

    epoch: float
    step: float
    slope: float
    fusion_epoch: float
    fusion_step: float
    fusion_slope: float
    exchange: float

    def training(self, steps: int, operations: int, images: float, parameters: int, replicas: int) -> float:
        """An epoch of one exit, each of so many ``replicas`` on its share of the ``images`` of a step."""
        shared = 4 * parameters * self.exchange * (replicas - 1)
        return self.epoch + steps * (self.step + self.slope * operations * images / replicas + shared)

    def fusion(self, steps: int, operations: int, images: float) -> float:
        """The fusion's part of a round of a network of so many ``operations``, with ``images`` a step."""
        return self.fusion_epoch + steps * (self.fusion_step + self.fusion_slope * operations * images)


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
        return costs.training(work.steps, *args)

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
    fuse = costs.fusion(work.steps, work.whole, work.batch / division.shards * turns)
    sent = 4 * work.parameters[-1] * 2 * byte_s * (division.actors > 1)
    return Simulated(train, fuse, sent, busy + fuse * at_once)


def best(costs: Costs, work: Workload, devices: int, byte_s: float) -> tuple[Division, Simulated]:
    """The fastest division: the longest training gets another replica as long as there are devices."""
    replicas = [1] * len(work.operations)
    found: list[tuple[float, Division, Simulated]] = []
    while sum(replicas) <= max(devices, len(replicas)):
        actors = min(devices, sum(replicas))
        for shards in {1, actors}:
            division = Division(actors, tuple(replicas), shards)
            simulated = simulate(costs, work, division, byte_s)
            found.append((simulated.total, division, simulated))
        lasting = [
            costs.training(work.steps, o, work.batch, p, r)
            for o, p, r in zip(work.operations, work.parameters, replicas, strict=True)
        ]
        replicas[int(np.argmax(lasting))] += 1
    _, division, simulated = min(found, key=lambda it: it[0])
    return division, simulated


class Given(Executor):
    """An executor whose updates are known."""

    def __init__(self, updates: Sequence[ExitUpdate]) -> None:
        self._updates = tuple(updates)

    def train(self, state: NetworkState, round: int, momenta: Sequence[Vector | None]) -> Trained:
        """See ``Executor``."""
        return Trained(self._updates, 0.0, 0.0, 0.0)


class Probe:
    """Measures costs in a process of its own, on one core."""

    def seconds(self, steps: int, batch: int) -> tuple[list[float], float]:
        """Of an epoch of each of ``PROBED``, and of the fusion's part of a round."""
        config = settings(batch)
        data = noise(steps * batch)
        trainer = ExitTrainer(config, data)
        bound, state, exits = trainer.bound, trainer.bound.state(), 7
        trainer.train(state, 0, exits, 1)  # warms up
        updates = {exit: trainer.train(state, exit, exits, 1) for exit in PROBED}
        owned = find_ownership(bound.network, data.spec.blank(2), bound.space)
        parts = handed_back(bound.space, owned, "none")
        made_up = [
            replace(updates[PROBED[0]], exit=exit, delta=np.full(part.size, 1e-3, np.float32), buffers={})
            for exit, part in enumerate(parts)
        ]
        method = DeltaRound(config, bound, trainer.batches, Given(made_up), owned)
        with torch_threads(1):
            fused = [method.run(state, round).seconds["fuse"] for round in (1, 2)]  # the first one warms up
        return [update.seconds for update in updates.values()], fused[1]

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
    costs = measure_costs(cifar_msdnet(), noise(2).spec)
    operations, last = [costs[exit].operations for exit in PROBED], costs[-1].operations
    short, long, half = (2, options.batch), (5, options.batch), (5, options.batch // 2)

    def fit(active: Sequence[Any]) -> dict[str, float]:
        rows, seconds, fusion_rows, fused = [], [], [], []
        for steps, size in (short, long, half):
            answers = ray.get([probe.seconds.remote(steps, size) for probe in active], timeout=900)
            rows += [(1.0, steps, steps * size * o) for o in operations]
            seconds += np.mean([answer[0] for answer in answers], axis=0).tolist()
            fusion_rows.append((1.0, steps, steps * size * last))
            fused.append(statistics.fmean(answer[1] for answer in answers))
        trained, passed = solve(rows, seconds), solve(fusion_rows, fused)
        names = ("epoch", "step", "slope")
        found = dict(zip(names, trained, strict=True))
        return {**found, **{f"fusion_{name}": value for name, value in zip(names, passed, strict=True)}}

    numbers = sum(p.numel() for p in cifar_msdnet().parameters())
    address = probes[0].meet.remote()
    exchanged = [probe.exchange.remote(address, rank, numbers) for rank, probe in enumerate(probes)]
    exchange = max(ray.get(exchanged, timeout=120))
    alone, both = fit(probes[:1]), fit(probes)
    for probe in probes:
        ray.kill(probe)
    return Costs(**alone, exchange=exchange), Costs(**both, exchange=exchange)


def solve(rows: Sequence[tuple[float, ...]], seconds: Sequence[float]) -> list[float]:
    """What explains the ``seconds``, each part at least 0, by relative errors: short runs count as well."""
    weights = 1 / np.array(seconds)
    found, _ = nnls(np.array(rows) * weights[:, None], np.ones(len(rows)))
    return [float(value) for value in found]


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
    titles = ("devices", "actors", "replicas", "shards", "round [t]", "train", "fuse", "send", "efficiency")
    lost = ("waiting", "dividing")
    how = f"devices {options.speed:g} times as fast as a core here, {options.gbit:g} Gbit/s"
    name = f"{options.recipe}, loss.aux_exits = {'none' if prefix else 'all'}, {how}"
    table, found = Table(*titles, *lost, title=name), []
    byte_s = 8 / (options.gbit * 1e9)
    faster = {name: value / options.speed for name, value in asdict(costs).items()}
    costs = replace(costs, **{**faster, "exchange": byte_s})
    epoch = costs.training(work.steps, work.whole, work.batch, 0, 1)
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

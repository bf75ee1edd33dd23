"""Injects random faults into runs and checks that the final weights are the same bits.

    python benchmarks/chaos.py --seed 0 --seeds 20 --rounds 6

Every seed draws a plan (``benchmarks/fault_plan.py``), the shares of the fusion pass (``fusion.shards``) and
of the exits' trainings (``resources.replicas``), and trains a small network on digits while its faults
happen: exit actors and drivers are killed, exits hang, checkpoints can't be written, the job is killed and
resumed, a node of two is lost and replaced. The table has, for every plan: the exits' trainings, drivers and
writes that were repeated, rounds that had to be trained again, the longest time from a fault to the next
finished round, and whether the weights are those of a run in one process without faults. The last line is
JSON.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tyro
from chaos_run import Arena, Outcome, as_json, run_plan
from fault_plan import Fault, draw, parse
from rich.console import Console
from rich.table import Table
from timing import machine
from tiny import tiny_run

from raygf.config.run import ResourceConfig, RunConfig, StorageConfig
from raygf.on_ray.cluster import silent_ray
from raygf.rounds.driver import Driver
from raygf.training.exit_trainer import LocalExecutor

EXITS, STEPS = 3, 3
_KINDS = {
    "exit": ("kill exit", "stick exit"),
    "share": ("kill share", "stick share"),
    "driver": ("kill driver",),
    "write": ("fail write",),
    "job": ("kill job",),
    "node": ("drop node",),
}


@dataclass(frozen=True)
class Options:
    """What to draw."""

    seed: int = 0
    """First seed."""
    seeds: int = 1
    """How many seeds, one plan each."""
    rounds: int = 6
    """Rounds of every run."""
    targets: tuple[str, ...] = ("exit", "exit", "driver", "write", "job", "node")
    """What faults happen to; twice as likely where it is named twice. Shares of the fusion pass are added
    where there are any."""
    plan: str = ""
    """One plan of your own instead, as in fault_plan.py: "kill exit 2 in round 3 at step 1; fail write 2"."""


@dataclass(frozen=True)
class Shares:
    """Into how many shares the fusion pass and the exits' trainings are divided."""

    shards: int
    replicas: tuple[int, ...]

    @classmethod
    def draw(cls, seed: int) -> Shares:
        """Those of ``seed``."""
        dice = random.Random(f"shares {seed}")
        return cls(dice.choice([1, 2]), dice.choice([(1,), (2,), (1, 1, 2)]))

    def __str__(self) -> str:
        return f"{self.shards}, {'/'.join(map(str, self.replicas))}"


@dataclass
class Results:
    """The outcomes by seed, and the weights of a run without faults by how it is divided."""

    expected: dict[Shares, str] = field(default_factory=dict)
    shares: dict[int, Shares] = field(default_factory=dict)
    plans: dict[int, tuple[Fault, ...]] = field(default_factory=dict)
    outcomes: dict[int, Outcome] = field(default_factory=dict)

    def equal(self, seed: int) -> bool:
        """Whether the weights of ``seed`` are those of the undisturbed run, after every round once."""
        outcome = self.outcomes[seed]
        in_order = outcome.rounds == list(range(1, len(outcome.rounds) + 1))
        return in_order and outcome.weights_sha256 == self.expected[self.shares[seed]]


def run_config(folder: Path, rounds: int, shares: Shares) -> RunConfig:
    """A small network, with limits high enough for every plan that can be drawn."""
    resources = ResourceConfig(
        gpus_per_exit=0,
        driver_gpus=0,
        exit_timeout_s=15.0,
        wait_for_resources_s=120.0,
        max_failures=8,
        max_driver_restarts=8,
        replicas=shares.replicas,
    )
    config = tiny_run(rounds, EXITS, StorageConfig(str(folder), "run"), resources)
    return replace(config, fusion=replace(config.fusion, shards=shares.shards))


def undisturbed(config: RunConfig) -> str:
    """The weights of a run in one process, without Ray and without faults."""
    driver = Driver(config, lambda run, data, exits: LocalExecutor(run, data))
    driver.prepare()
    for _ in driver.rounds(""):
        pass
    found = driver.end().weights_sha256
    driver.close()
    return found


@silent_ray()
def main(options: Options) -> int:
    """Run all plans; returns the exit code, 0 if all weights are equal."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        folder = Path(temporary)
        results, arena = Results(), Arena()
        try:
            for seed in range(options.seed, options.seed + options.seeds):
                shares = results.shares[seed] = Shares.draw(seed)
                if shares not in results.expected:
                    straight = run_config(folder / "undisturbed" / str(seed), options.rounds, shares)
                    results.expected[shares] = undisturbed(straight)
                targets = (*options.targets, *["share"] * (shares.shards > 1))
                plan = parse(options.plan) or draw(seed, options.rounds, EXITS, STEPS, targets)
                place = folder / str(seed)
                results.plans[seed] = plan
                config = run_config(place, options.rounds, shares)
                results.outcomes[seed] = run_plan(arena, config, plan, place)
                tell(seed, results)
        finally:
            arena.close()
    return show(results)


def tell(seed: int, results: Results) -> None:
    """Print one line on standard error."""
    outcome = results.outcomes[seed]
    equal = "equal" if results.equal(seed) else "NOT EQUAL"
    plan = "; ".join(map(str, results.plans[seed]))
    print(f"{time.strftime('%H:%M:%S')} seed {seed}: {equal}, {outcome.seconds} s: {plan}", file=sys.stderr)


def show(results: Results) -> int:
    """The tables, and last the line of JSON."""
    columns = (
        "seed",
        "shards, replicas",
        "faults",
        "retries",
        "rounds lost",
        "longest recovery [s]",
        "run [s]",
        "hash equal",
    )
    table = Table(*columns)
    for seed, outcome in results.outcomes.items():
        longest = max(outcome.recovery_s.values(), default=0.0)
        numbers = (outcome.retries, outcome.lost, f"{longest:.1f}", f"{outcome.seconds:.1f}")
        plan = "; ".join(map(str, results.plans[seed]))
        table.add_row(
            str(seed),
            str(results.shares[seed]),
            plan,
            *map(str, numbers),
            "yes" if results.equal(seed) else "NO",
        )
    Console(width=150).print(table)
    recoveries = by_kind(results)
    Console(width=150).print(recovery_table(recoveries))
    equal = [results.equal(seed) for seed in results.outcomes]
    summary = {
        "seeds": len(equal),
        "equal": sum(equal),
        "faults": sum(len(plan) for plan in results.plans.values()),
        "retries": sum(outcome.retries for outcome in results.outcomes.values()),
        "trainings_repeated": sum(outcome.repeated for outcome in results.outcomes.values()),
        "rounds_lost": sum(outcome.lost for outcome in results.outcomes.values()),
        "recovery_s": recoveries,
        "weights_sha256": {str(shares): sha256 for shares, sha256 in results.expected.items()},
        "runs": {seed: as_json(outcome) for seed, outcome in results.outcomes.items()},
        "machine": machine(),
    }
    print(json.dumps(summary), flush=True)
    return 0 if all(equal) else 1


def by_kind(results: Results) -> dict[str, list[float]]:
    """Seconds from a fault to the next finished round, by the kind of fault."""
    found: dict[str, list[float]] = defaultdict(list)
    for outcome in results.outcomes.values():
        for text, seconds in outcome.recovery_s.items():
            found[" ".join(text.split()[:2])].append(seconds)
    order = [kind for kinds in _KINDS.values() for kind in kinds]
    return {kind: sorted(found[kind]) for kind in order if kind in found}


def recovery_table(recoveries: Mapping[str, list[float]]) -> Table:
    """One row a kind of fault."""
    table = Table(
        "fault", "times", "median [s]", "min [s]", "max [s]", title="from a fault to the next round"
    )
    for kind, seconds in recoveries.items():
        values: list[Any] = [statistics.median(seconds), min(seconds), max(seconds)]
        table.add_row(kind, str(len(seconds)), *(f"{value:.1f}" for value in values))
    return table


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))

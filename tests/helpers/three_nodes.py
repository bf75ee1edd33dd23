"""Two runs at the same time on a simulated cluster of three nodes, each in a placement group of its own.

A process can only be in one cluster, so this is a program of its own: ``three_nodes.py FOLDER``. Its last
line on standard output is JSON.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table
from tiny import tiny_run

from raygf.config.run import RunConfig, StorageConfig
from raygf.on_ray.driver import RemoteDriver
from raygf.on_ray.placement import Bundles

STRATEGIES = {"spread": "STRICT_SPREAD", "packed": "STRICT_PACK"}
KINDS = ("DriverActor", "ExitActor")
WAIT_S = 120.0

Placement = dict[str, Counter[str]]
"""How many actors of each kind there are, by node."""


def run_config(folder: Path, name: str, seed: int) -> RunConfig:
    """Two rounds of a small network with two exits."""
    return replace(tiny_run(2, 2, StorageConfig(str(folder), name)), seed=seed)


def main(folder: Path) -> dict[str, Any]:
    """Start the cluster, place both runs, let them meet after their first round, and see where they are."""
    cluster = Cluster()
    try:
        nodes = [cluster.add_node(num_cpus=4, include_dashboard=False) for _ in range(3)]
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        groups = {name: placement_group([{"CPU": 1}] * 3, strategy) for name, strategy in STRATEGIES.items()}
        assert all(group.wait(WAIT_S) for group in groups.values())
        expected = asked(groups)
        met: list[Placement] = []
        barrier = threading.Barrier(
            len(groups), action=lambda: met.append(await_running(nodes, expected)), timeout=WAIT_S
        )
        with ThreadPoolExecutor(len(groups)) as threads:
            ends = [
                threads.submit(train, run_config(folder, name, seed), group, barrier)
                for seed, (name, group) in enumerate(groups.items())
            ]
            hashes = dict(zip(groups, [end.result(WAIT_S) for end in ends], strict=True))
        (seen,) = met
        return {"asked": expected, "running": seen, "weights_sha256": hashes}
    finally:
        ray.shutdown()
        cluster.shutdown()


def train(config: RunConfig, group: PlacementGroup, barrier: threading.Barrier) -> str:
    """A run in ``group``; it goes on after its first round once the others are there too."""
    driver = RemoteDriver(config, Bundles(group, 0, (1, 2)))
    try:
        driver.prepare()
        for record in driver.rounds(""):
            if record.round == 1:
                barrier.wait()
        return driver.end().weights_sha256
    finally:
        driver.close()


def asked(groups: dict[str, PlacementGroup]) -> Placement:
    """Where Ray has put the bundles of the driver (0) and of the exits (1, 2)."""
    places: Placement = {kind: Counter() for kind in KINDS}
    for group in groups.values():
        by_bundle = placement_group_table(group)["bundles_to_node_id"]
        for bundle, node in by_bundle.items():
            places["ExitActor" if int(bundle) else "DriverActor"][node] += 1
    return places


def await_running(nodes: Sequence[Any], expected: Placement) -> Placement:
    """``running`` once it is ``expected``, or as it is after a while: a pool starts with its first actor."""
    limit = time.monotonic() + WAIT_S / 2
    while (places := running(nodes)) != expected and time.monotonic() < limit:
        time.sleep(0.2)
    return places


def running(nodes: Sequence[Any]) -> Placement:
    """Where the actors' processes are: a worker is a child of its node's raylet."""
    places: Placement = {kind: Counter() for kind in KINDS}
    for node in nodes:
        (raylet,) = node.all_processes["raylet"]
        for process in psutil.Process(raylet.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                title = (process.cmdline() or [""])[0]
                for kind in KINDS:
                    places[kind][node.node_id] += title.startswith(f"ray::{kind}")
    return {kind: +nodes for kind, nodes in places.items()}  # without zeros


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))

"""A node is lost with all that runs on it, and comes back: for a whole run, and for a pool of exit actors.

A process can only be in one cluster, so this is a program of its own: ``lost_node.py FOLDER``. Its last line
on standard output is JSON. The head has no CPUs; everything runs on the other node, which is dropped in the
middle of a round. Ray is made to notice that in seconds.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from faults import Faults
from ray.cluster_utils import Cluster
from runs import wait_until
from tiny import ON_CPUS, tiny_run

from raygf.compute import resolve_compute
from raygf.config.run import RunConfig, StorageConfig
from raygf.data.load import load_data
from raygf.models.build import build_model
from raygf.on_ray.driver import RemoteDriver
from raygf.on_ray.executor import RayExecutor
from raygf.training.exit_trainer import Trained
from raygf.training.network import BoundNetwork

EXITS = 3
WAIT_S = 120.0
_NOTICED_SOON = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 300,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 2,
}


def run_config(folder: Path) -> RunConfig:
    """Three rounds; two failures in a row would end the run."""
    once = {"max_failures": 1, "max_driver_restarts": 1}
    resources = replace(ON_CPUS, wait_for_resources_s=WAIT_S, **once)
    return tiny_run(3, EXITS, StorageConfig(str(folder / "runs"), "small"), resources)


def main(folder: Path) -> dict[str, Any]:
    """Start both, drop their node in round 2, give it back when they wait for it, and see what they made."""
    config, run, pool = run_config(folder), Faults(folder / "run"), Faults(folder / "pool")
    run.add("stick exit 1 in round 2")
    pool.add("; ".join(f"stick exit {exit} in round 2" for exit in range(1, EXITS + 1)))
    said: dict[str, list[str]] = {"run": [], "pool": []}
    cluster = Cluster(True, head_node_args={"num_cpus": 0, "_system_config": _NOTICED_SOON})
    try:
        node = cluster.add_node(num_cpus=EXITS + 1 + EXITS)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        with ThreadPoolExecutor(2) as threads:
            made = [
                threads.submit(whole_run, config, run, said["run"].append),
                threads.submit(one_round, config, pool, said["pool"].append),
            ]
            wait_until(lambda: not run.waiting() and not pool.waiting(), WAIT_S)
            cluster.remove_node(node, allow_graceful=False)
            dropped = time.monotonic()
            wait_until(
                lambda: all("a node that can hold" in " ".join(texts) for texts in said.values()), WAIT_S
            )
            cluster.add_node(num_cpus=EXITS + 1 + EXITS)
            results = [each.result(WAIT_S) for each in made]
        return {"run": results[0], "pool": results[1], "said": said, "seconds": time.monotonic() - dropped}
    finally:
        ray.shutdown()
        cluster.shutdown()


def whole_run(config: RunConfig, faults: Faults, notify: Callable[[str], None]) -> dict[str, Any]:
    """All rounds, by a driver and exit actors on the node that is dropped."""
    driver = RemoteDriver(config, notify=notify, parts=faults.parts())
    try:
        driver.prepare()
        records = list(driver.rounds(""))
        notes = [note for record in records for note in record.notes]
        rounds = [record.round for record in records]
        return {"rounds": rounds, "notes": notes, "weights_sha256": driver.end().weights_sha256}
    finally:
        driver.close()


def one_round(config: RunConfig, faults: Faults, notify: Callable[[str], None]) -> dict[str, Any]:
    """Round 2 of a pool without a driver, whose process is safe on the head."""
    config = replace(config, resources=replace(config.resources, driver_cpus=0.0))
    dataset = load_data(config.data, config.seed)
    network = build_model(config.model, dataset.spec, config.seed)
    state = BoundNetwork(network, resolve_compute(config.compute)).state()
    pool = RayExecutor(config, dataset, EXITS, faults.trainer, notify=notify)
    try:
        trained = pool.train(state, 2, [None] * EXITS)
        return {"notes": trained.notes, "deltas": hashes(trained)}
    finally:
        pool.close()


def hashes(trained: Trained) -> list[str]:
    """SHA-256 of every exit's delta."""
    return [hashlib.sha256(update.delta.tobytes()).hexdigest() for update in trained.updates]


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))

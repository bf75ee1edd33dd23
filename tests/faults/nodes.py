"""Simulated clusters of several nodes: one that loses a node, and one that two runs share.

A process can only be in one cluster, so this is a program of its own: ``nodes.py lost FOLDER`` or
``nodes.py shared FOLDER``. Its last line on standard output is JSON.

``lost``: a whole run and a pool of exit actors are on a node that is lost with all that runs on it, and comes
back. The head has no CPUs; the other node is dropped in the middle of a round, which Ray is made to notice
within a second or two.

``shared``: two runs at the same time on two nodes, each in a placement group of its own.
"""

import hashlib
import json
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import ray
from faults import Faults
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group, placement_group_table
from runs import raygf_actors, wait_until, with_resources
from tiny import ON_CPUS, tiny_run

from raygf.compute import resolve_compute
from raygf.config.run import StorageConfig
from raygf.data.load import load_data
from raygf.models.build import build_model
from raygf.on_ray.driver import RemoteDriver
from raygf.on_ray.executor import RayExecutor
from raygf.on_ray.placement import Bundles
from raygf.training.network import BoundNetwork

EXITS = 2
WAIT_S = 120.0
STRATEGIES = {"spread": "STRICT_SPREAD", "packed": "STRICT_PACK"}
KINDS = ("DriverActor", "ExitActor")
_NOTICED_SOON = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 300,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 2,
}

Placement = dict[str, Counter[str]]
"""How many actors of each kind there are, by node."""


def main(program, folder):
    """Run one of the programs on a cluster of its own."""
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": _NOTICED_SOON}
    cluster = Cluster(True, head_node_args=head) if program == "lost" else Cluster()
    try:
        return {"lost": lose_a_node, "shared": share_two_nodes}[program](cluster, folder)
    finally:
        ray.shutdown()
        cluster.shutdown()


def joined(cluster, nodes, cpus):
    """The nodes, once this process is in the cluster."""
    made = [cluster.add_node(num_cpus=cpus, include_dashboard=False) for _ in range(nodes)]
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    return made


# A node is lost ---------------------------------------------------------------------------------------------


def lost_config(folder):
    """Three rounds; two failures of an exit, or four of the driver, would end the run."""
    resources = replace(ON_CPUS, wait_for_resources_s=WAIT_S, max_failures=1, max_driver_restarts=3)
    return tiny_run(3, EXITS, StorageConfig(str(folder / "runs"), "small"), resources)


def lose_a_node(cluster, folder):
    """Start both, drop their node in round 2, give it back when they wait for it, and see what they made."""
    config, run, pool = lost_config(folder), Faults(folder / "run"), Faults(folder / "pool")
    run.add("stick exit 1 in round 2")
    pool.add("; ".join(f"stick exit {exit} in round 2" for exit in range(1, EXITS + 1)))
    said: dict[str, list[str]] = {"run": [], "pool": []}
    cpus = 2 + EXITS
    (node,) = joined(cluster, 1, cpus)
    with ThreadPoolExecutor(2) as threads:
        made = [
            threads.submit(whole_run, config, run, said["run"].append),
            threads.submit(one_round, config, pool, said["pool"].append),
        ]
        wait_until(lambda: not run.waiting() and not pool.waiting(), WAIT_S)
        cluster.remove_node(node, allow_graceful=False)
        wait_until(lambda: all("a node that can hold" in " ".join(texts) for texts in said.values()), WAIT_S)
        cluster.add_node(num_cpus=cpus)
        results = [each.result(WAIT_S) for each in made]
    return {"run": results[0], "pool": results[1], "said": said}


def whole_run(config, faults, notify):
    """All rounds, by a driver and an exit actor on the node that is dropped."""
    driver = RemoteDriver(with_resources(config, actors=1), notify=notify, parts=faults.parts())
    try:
        driver.prepare()
        records = list(driver.rounds(""))
        notes = [note for record in records for note in record.notes]
        rounds = [record.round for record in records]
        return {"rounds": rounds, "notes": notes, "weights_sha256": driver.end().weights_sha256}
    finally:
        driver.close()


def one_round(config, faults, notify):
    """Round 2 of a pool without a driver, whose process is safe on the head."""
    config = with_resources(config, driver_cpus=0.0)
    dataset, state = start_of(config)
    pool = RayExecutor(config, dataset, EXITS, faults.trainer, notify=notify)
    try:
        trained = pool.train(state, 2, [None] * EXITS)
        return {"notes": trained.notes, "deltas": hashes(trained)}
    finally:
        pool.close()


def start_of(config):
    """The data and the network before the first round."""
    dataset = load_data(config.data, config.seed)
    network = build_model(config.model, dataset.spec, config.seed)
    return dataset, BoundNetwork(network, resolve_compute(config.compute)).state()


def hashes(trained):
    """SHA-256 of every exit's delta."""
    return [hashlib.sha256(update.delta.tobytes()).hexdigest() for update in trained.updates]


# Two runs on two nodes --------------------------------------------------------------------------------------


def shared_config(folder, name, seed):
    """Two rounds of a small network with two exits."""
    return replace(tiny_run(2, 2, StorageConfig(str(folder), name)), seed=seed)


def share_two_nodes(cluster, folder):
    """Place both runs, let them meet after their first round, and see where they are."""
    nodes = joined(cluster, 2, 4)
    groups = {name: placement_group([{"CPU": 1}] * 2, strategy) for name, strategy in STRATEGIES.items()}
    assert all(group.wait(WAIT_S) for group in groups.values())
    expected = asked(groups)

    def meet():
        """A pool starts with its first actor, the others come later."""
        wait_until(lambda: running(nodes) == expected, WAIT_S / 2)

    barrier = threading.Barrier(len(groups), action=meet, timeout=WAIT_S)
    with ThreadPoolExecutor(len(groups)) as threads:
        ends = [
            threads.submit(train, shared_config(folder, name, seed), group, barrier.wait)
            for seed, (name, group) in enumerate(groups.items())
        ]
        found = dict(zip(groups, [end.result(WAIT_S) for end in ends], strict=True))
    return {"running": expected, "weights_sha256": found}


def train(config, group, meet):
    """A run in ``group``; it goes on after its first round once the others are there too."""
    driver = RemoteDriver(config, Bundles(group, 0, (1,)))
    try:
        driver.prepare()
        for record in driver.rounds(""):
            if record.round == 1:
                meet()
        return driver.end().weights_sha256
    finally:
        driver.close()


def asked(groups):
    """Where Ray has put the bundles of the driver (0) and of the exits' actor (1)."""
    places: Placement = {kind: Counter() for kind in KINDS}
    for group in groups.values():
        by_bundle = placement_group_table(group)["bundles_to_node_id"]
        for bundle, node in by_bundle.items():
            places["ExitActor" if int(bundle) else "DriverActor"][node] += 1
    return places


def running(nodes):
    """Where the actors' processes are: a worker is a child of its node's raylet."""
    raylets = {node.node_id: psutil.Process(node.all_processes["raylet"][0].process.pid) for node in nodes}
    return {
        kind: +Counter({node: len(raygf_actors(kind, raylet)) for node, raylet in raylets.items()})
        for kind in KINDS
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]))))

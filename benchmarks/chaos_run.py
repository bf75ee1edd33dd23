"""One run under faults, in a cluster of two nodes: in this process, or in jobs that can be killed."""

from __future__ import annotations

import json
import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray
from fault_plan import Fault
from faults import Faults
from ray.cluster_utils import Cluster

from raygf.config.run import RunConfig
from raygf.on_ray.cluster import silent_ray
from raygf.on_ray.driver import RemoteDriver
from raygf.storage.checkpoint import CheckpointStore

POLL_S = 0.01
_TRIED_AGAIN = ("retried in round", "driver restarted", "trying again after")
DOWN_S = 20.0
"""Seconds after which a dropped node is replaced: Ray has noticed by then that it is gone."""


@dataclass(frozen=True)
class Outcome:
    """The result of a run. ``rounds``: those in the last checkpoint; ``recovery_s``: by fault."""

    weights_sha256: str
    rounds: list[int]
    notes: list[str]
    repeated: int
    lost: int
    recovery_s: dict[str, float]
    seconds: float

    @property
    def retries(self) -> int:
        """Exit trainings, drivers and writes that were tried again."""
        return sum(any(word in note for word in _TRIED_AGAIN) for note in self.notes)


class Arena:
    """A head and a node "b", of two CPUs each. Together they have room for a run."""

    def __init__(self) -> None:
        head = {"num_cpus": 2, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._node = self._cluster.add_node(num_cpus=2)
        self.address = str(self._cluster.address)
        ray.init(address=self.address, log_to_driver=False, logging_level="ERROR")

    def drop(self) -> None:
        """Kill node b."""
        self._cluster.remove_node(self._node, allow_graceful=False)

    def restore(self) -> None:
        """Start node b again."""
        self._node = self._cluster.add_node(num_cpus=2)

    def close(self) -> None:
        """End the cluster."""
        ray.shutdown()
        self._cluster.shutdown()


def run_plan(arena: Arena, config: RunConfig, plan: tuple[Fault, ...], folder: Path) -> Outcome:
    """Train ``config`` while the faults of ``plan`` happen.

    Raises:
        RuntimeError: a fault has not happened, or the run ended early.
    """
    faults = Faults(folder / "faults")
    faults.add("\n".join(map(str, plan)))
    started = time.monotonic()
    body = in_jobs if any(fault.target == "job" for fault in plan) else train
    with ThreadPoolExecutor(1) as threads:
        run = threads.submit(body, config, folder, arena.address)
        while not run.done():
            if due_now(faults, "node"):
                arena.drop()
                wait([run], timeout=DOWN_S)
                arena.restore()
            time.sleep(POLL_S)
        run.result()
    seconds = time.monotonic() - started
    if waiting := faults.waiting():
        raise RuntimeError(f"did not happen: {', '.join(map(str, waiting))}")
    return read_outcome(config, folder, faults, seconds)


@silent_ray()
def train(config: RunConfig, folder: Path, address: str) -> None:
    """The run, with a line in ``records`` for every round as it comes, and in the end its ``weights``."""
    if not ray.is_initialized():
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    driver = RemoteDriver(config, parts=Faults(folder / "faults").parts())
    try:
        driver.prepare()
        with (folder / "records").open("a") as lines:
            for record in driver.rounds(""):
                values = {"round": record.round, "notes": record.notes, "at": time.time()}
                print(json.dumps(values), file=lines, flush=True)
        (folder / "weights").write_text(driver.end().weights_sha256)
    finally:
        driver.close()


def in_jobs(config: RunConfig, folder: Path, address: str) -> None:
    """The run in a process that is killed when its fault is due, and resumed by another."""
    faults, context = Faults(folder / "faults"), multiprocessing.get_context("spawn")
    while not (folder / "weights").exists():
        job = context.Process(target=train, args=(config, folder, address))
        job.start()
        while job.is_alive():
            if due_now(faults, "job"):
                job.kill()
            job.join(POLL_S)
        if job.exitcode != 0 and not (job.exitcode == -9):
            raise RuntimeError(f"the job ended with exit code {job.exitcode}")
        config = replace(config, storage=replace(config.storage, resume=True))


def due_now(faults: Faults, target: str) -> bool:
    """Whether a round has begun in which ``target`` is to be lost; marks that fault as fired."""
    rounds = [fault.round for fault in faults.waiting() if fault.target == target]
    return any(faults.logged(f"began-{round}") and faults.due(target=target, round=round) for round in rounds)


def read_outcome(config: RunConfig, folder: Path, faults: Faults, seconds: float) -> Outcome:
    """The outcome, read from the run's files."""
    records = [json.loads(line) for line in (folder / "records").read_text().splitlines()]
    checkpoint, _ = CheckpointStore(config.storage.path, config.storage.name, 1).newest()
    assert checkpoint is not None
    exits = config.model.msdnet.exits
    began = sum(len(faults.logged(f"began-{round}")) for round in range(1, config.rounds + 1))
    whole = [len(faults.logged(f"ended-{round}")) // exits for round in range(1, config.rounds + 1)]
    recovery = {}
    for fired in faults.fired():
        after = [record["at"] for record in records if record["at"] > fired.at]
        with suppress(ValueError):
            recovery[str(fired.fault)] = round(min(after) - fired.at, 2)
    return Outcome(
        (folder / "weights").read_text(),
        [int(entry["round"]) for entry in checkpoint.meta["history"]],
        [note for record in records for note in record["notes"]],
        began - exits * config.rounds,
        sum(times - 1 for times in whole),
        recovery,
        round(seconds, 1),
    )


def as_json(outcome: Outcome) -> dict[str, Any]:
    """As JSON values."""
    return asdict(outcome)

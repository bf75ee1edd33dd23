"""A long run of a tiny network under Ray: checks that memory, open files and threads do not grow.

    python benchmarks/soak.py --figure soak.png

It starts a Ray of its own on this machine, whatever RAY_ADDRESS says, and looks into its processes.

The run is a real one: a driver actor, an exit actor for each exit, a checkpoint a round. After every round,
when the driver and its actors are idle, each process is measured. Its own memory is what it has resident and
does not share: pages of the object store that it has mapped count for the store. Ray's part of a process
grows with the time even if nothing is done there; so an actor that does nothing is measured as well, and
its growth is subtracted from that of the others. For the driver, the text of the run's history is
subtracted, too: a known 1.2 KiB a round, which every checkpoint holds.

Bars, on the slope over the rounds after the warm-up, less its confidence interval (95 %, from the means of
ten stretches): at most 2 KiB a round for memory and the store, one in 50 rounds for open files, threads and
objects. A delta of this network has 2.7 MiB, so a leak of one in 1 000 rounds would show.

Ray's own process is shown and has no bar. The exit code is 1 if a bar does not hold.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from timing import machine
from tiny import tiny_run

from raygf.config.run import RunConfig, StorageConfig
from raygf.evaluation.figures import new_figure, plain_axes, run_style, whole_numbers
from raygf.on_ray.driver import RemoteDriver
from raygf.records import read_history
from raygf.storage.checkpoint import CheckpointStore

BYTES_BAR, COUNT_BAR = 2 * 1024, 0.02
"""What may be added a round."""
STRETCHES = 10
T_95 = 2.306
"""Student's t for 95 % and STRETCHES - 2 degrees of freedom."""
RESTING_S = 0.1
IDLE = "idle actor"
NO_BAR = ("raylet", IDLE)
LARGE = ("memory", "bytes")
LOOKS = {"memory": 0, "files": 1, "threads": 2}
"""What is looked at in a process: bytes of its own, open files, threads."""
HEAP = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(128 * 1024),
    "MALLOC_TRIM_THRESHOLD_": str(128 * 1024),
}
"""Settings of glibc in which a leak can be seen: one heap a process, and large blocks given back at once.
Left to itself it has a heap for each thread, and it takes hundreds of rounds until none of them grows; and it
keeps what was freed, so that they breathe by megabytes."""
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Options:
    """How long, and how many exits."""

    rounds: int = 600
    """Rounds in all."""
    warmup: int = 100
    """Rounds at the start that the bars leave out: libraries load, allocators reach their sizes."""
    exits: int = 3
    """Exits, each with an actor of its own."""
    figure: str = ""
    """File for the curves; empty: none."""

    def __post_init__(self) -> None:
        if self.rounds - self.warmup < 2 * STRETCHES:
            raise SystemExit(f"--rounds must be at least --warmup + {2 * STRETCHES}")


@dataclass(frozen=True)
class Curves:
    """The measurements, one row per round: LOOKS of every process (R, 3), bytes and objects in the store
    (R, 2), and bytes of the run's history (R,)."""

    processes: dict[str, Counts]
    store: Counts
    history: Counts

    def series(self, name: str, what: str) -> NDArray[np.float64]:
        """One curve (R,)."""
        return self.processes[name][:, LOOKS[what]].astype(np.float64)


def look(process: psutil.Process) -> tuple[int, int, int]:
    """LOOKS of ``process`` now."""
    memory = process.memory_info()
    return memory.rss - memory.shared, process.num_fds(), process.num_threads()


class Store:
    """Asks the raylet of this node how full the object store is."""

    def __init__(self) -> None:
        from ray._private.grpc_utils import init_grpc_channel
        from ray.core.generated import node_manager_pb2, node_manager_pb2_grpc

        (node,) = ray.nodes()
        channel = init_grpc_channel(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}")
        self._stub = node_manager_pb2_grpc.NodeManagerServiceStub(channel)
        self._request = node_manager_pb2.GetNodeStatsRequest(include_memory_info=False)

    def look(self) -> tuple[int, int]:
        """Bytes and objects in it now."""
        stats = self._stub.GetNodeStats(self._request, timeout=30).store_stats
        return int(stats.object_store_bytes_used), int(stats.num_local_objects)


def soak(config: RunConfig, exits: int) -> Curves:
    """Train, and measure everything after every round; one more is trained, after which the actors end."""
    idle = idle_actor()
    driver = RemoteDriver(replace(config, rounds=config.rounds + 1))
    driver.prepare()
    # Filled from the start: what is noted here must not look like growth of the job.
    processes: dict[str, Counts] = {}
    found: dict[str, psutil.Process] = {}
    store, stored = Store(), np.full((config.rounds, 2), -1)
    try:
        for number, record in enumerate(driver.rounds("")):
            if number == config.rounds:
                continue
            found = found or await_processes(exits)
            processes = processes or {name: np.full((config.rounds, len(LOOKS)), -1) for name in found}
            rest(found)
            for name, process in found.items():
                processes[name][number] = look(process)
            stored[number] = store.look()
            if sys.stderr.isatty():
                print(f"\rround {record.round}", end="", file=sys.stderr, flush=True)
        driver.end()
    finally:
        driver.close()
        ray.kill(idle)
    return Curves(processes, stored, history_bytes(config.storage)[: config.rounds])


def history_bytes(storage: StorageConfig) -> Counts:
    """What the text of the history had after each round (R,), by the newest checkpoint."""
    checkpoint, _ = CheckpointStore(storage.path, storage.name, 1).newest()
    assert checkpoint is not None
    return np.cumsum([len(json.dumps(entry)) + 2 for entry in read_history(checkpoint.meta)])


def idle_actor() -> ray.actor.ActorHandle:
    """An actor that does nothing; it runs when this returns."""

    class Idle:  # in here, that its code travels with it: an actor can not import this program
        def ready(self) -> bool:
            return True

    idle = ray.remote(Idle).options(num_cpus=0).remote()
    assert ray.get(idle.ready.remote(), timeout=120)
    return idle


def await_processes(exits: int) -> dict[str, psutil.Process]:
    """As ``find_processes``, when all exit actors are there, which the first round need not wait for."""
    until = time.monotonic() + 120
    while len(found := find_processes()) != exits + 4 and time.monotonic() < until:
        time.sleep(RESTING_S)
    return found


def find_processes() -> dict[str, psutil.Process]:
    """This process, the driver, its exit actors, the idle actor and the raylet, by name."""
    found, actors = {"job": psutil.Process()}, []
    for process in psutil.Process().children(recursive=True):
        title = " ".join(process.cmdline()[:1])
        if title.startswith("ray::DriverActor"):
            found["driver"] = process
        elif title.startswith("ray::ExitActor"):
            actors.append(process)
        elif title.startswith("ray::Idle"):
            found[IDLE] = process
        elif title.endswith("raylet/raylet"):
            found["raylet"] = process
    return found | {f"exit actor {number}": actor for number, actor in enumerate(actors, start=1)}


def rest(processes: Mapping[str, psutil.Process]) -> None:
    """Wait until they are idle: the driver is at most one round ahead, then it waits for the next request."""
    trainers = [process for name, process in processes.items() if name not in ("job", *NO_BAR)]
    until, before = time.monotonic() + 30, -1.0
    while time.monotonic() < until:
        spent = sum(sum(process.cpu_times()[:2]) for process in trainers)
        if spent - before < 0.02:  # a tick or two: Ray's own threads never sleep for long
            return
        before = spent
        time.sleep(RESTING_S)


@dataclass(frozen=True)
class Slope:
    """Growth a round, and half the width of its 95 % confidence interval."""

    value: float
    half: float

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Slope:
        """The slope of ``values`` (R,) through the means of STRETCHES stretches.

        Neighbouring rounds are alike, as memory moves in steps; means of stretches are nearly independent.
        """
        parts = np.array_split(np.arange(len(values)), STRETCHES)
        x, y = (
            np.array([series[part].mean() for part in parts]) for series in (np.arange(len(values)), values)
        )
        centred = x - x.mean()
        spread = float((centred**2).sum())
        value = float((centred * y).sum()) / spread
        rest = y - y.mean() - value * centred
        return cls(value, T_95 * float(np.sqrt((rest**2).sum() / (STRETCHES - 2) / spread)))


@dataclass(frozen=True)
class Verdict:
    """One row of the table."""

    name: str
    what: str
    start: float
    end: float
    low: float
    high: float
    slope: Slope
    judged: Slope
    holds: bool


def judge(curves: Curves, warmup: int) -> list[Verdict]:
    """Every curve against its bar."""
    rows = []
    for name in curves.processes:
        memory = curves.series(name, "memory")
        known = curves.series(IDLE, "memory") if name not in NO_BAR else 0.0
        added = memory - known - (curves.history if name == "driver" else 0.0)
        rows.append(verdict(name, "memory", memory[warmup:], added[warmup:]))
        for what in ("files", "threads"):
            counts = curves.series(name, what)[warmup:]
            rows.append(verdict(name, what, counts, counts))
    for number, what in enumerate(("bytes", "objects")):
        looks = curves.store[:, number].astype(np.float64)
        rows.append(verdict("object store", what, looks[warmup:], looks[warmup:]))
    return rows


def verdict(name: str, what: str, values: NDArray[np.float64], judged: NDArray[np.float64]) -> Verdict:
    """A row for ``values`` (R,), of which ``judged`` (R,) has the bar."""
    start, end, low, high = float(values[0]), float(values[-1]), float(values.min()), float(values.max())
    slope = Slope.of(judged)
    bar = BYTES_BAR if what in LARGE else COUNT_BAR
    holds = name in NO_BAR or slope.value - slope.half <= bar
    return Verdict(name, what, start, end, low, high, Slope.of(values), slope, holds)


def show(rows: Sequence[Verdict]) -> None:
    """The table."""
    table = Table("", "", "start", "end", "least", "most", "slope a round (95 %)", "judged", "bar")
    for row in rows:
        large = row.what in LARGE
        shown = [
            f"{value / 2**20:.2f}" if large else f"{value:.0f}"
            for value in (row.start, row.end, row.low, row.high)
        ]
        unit = 1024 if large else 1
        slope, judged = (
            f"{each.value / unit:+.2f} ± {each.half / unit:.2f}" + (" KiB" if large else "")
            for each in (row.slope, row.judged)
        )
        what = f"{row.what} [MiB]" if large else row.what
        held = "none" if row.name in NO_BAR else "holds" if row.holds else "DOES NOT HOLD"
        compared = judged if row.what == "memory" and row.name not in NO_BAR else ""
        table.add_row(row.name, what, *shown, slope, compared, held)
    Console(width=140).print(table)


def draw(curves: Curves, warmup: int, path: str) -> None:
    """Memory over its value after the warm-up, and the store, over the rounds."""
    figure = new_figure(8, 6)
    above, below = figure.subplots(2, 1, sharex=True)
    for number, name in enumerate(curves.processes):
        memory = curves.series(name, "memory")
        grown = (memory - memory[warmup : warmup + 10].mean()) / 2**20
        style = {**run_style(number), "marker": "", "linestyle": "-", "linewidth": 1.0}
        above.plot(np.arange(1, len(grown) + 1), grown, label=name, **style)
    below.plot(np.arange(1, len(curves.store) + 1), curves.store[:, 0] / 2**20, color="black")
    above.set_ylabel("own memory over its value\nafter the warm-up (MiB)")
    below.set_ylabel("object store (MiB)")
    below.set_xlabel("round")
    for axes in (above, below):
        axes.axvline(warmup, color="grey", linewidth=0.8, linestyle=":")
        plain_axes(axes)
    figure.legend(loc="outside upper center", frameon=False, ncols=len(curves.processes), fontsize="small")
    below.set_ylim(bottom=0)
    whole_numbers(below)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def plain_heap() -> None:
    """Start this program anew unless it has HEAP: a process reads that when it starts, as its children do."""
    if any(os.environ.get(name) != value for name, value in HEAP.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | HEAP)


@contextmanager
def own_cluster(cpus: int) -> Iterator[None]:
    """A cluster of this program's own; Ray keeps no records of its calls for the dashboard.

    They take some 10 MiB in every process, and the first 4 000 calls to fill up.
    """
    os.environ["RAY_task_events_report_interval_ms"] = "0"  # noqa: SIM112 (Ray reads it as it is written)
    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=200 << 20,
    )
    try:
        yield
    finally:
        ray.shutdown()


def summary(options: Options, rows: Sequence[Verdict], seconds: float) -> dict[str, Any]:
    """The last line."""
    slopes = {row.name: round(row.judged.value) for row in rows if row.what == "memory"}
    halves = {row.name: round(row.judged.half) for row in rows if row.what == "memory"}
    return {
        "rounds": options.rounds,
        "warmup": options.warmup,
        "slope_bytes_a_round": slopes,
        "half_interval_bytes": halves,
        "bar_bytes_a_round": BYTES_BAR,
        "broken": [f"{row.name}: {row.what}" for row in rows if not row.holds],
        "seconds": round(seconds, 1),
        "machine": machine(),
    }


def main(options: Options) -> int:
    """Run, judge, show; returns the exit code."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, own_cluster(options.exits + 1):
        curves = soak(tiny_run(options.rounds, options.exits, StorageConfig(folder, "soak")), options.exits)
    rows = judge(curves, options.warmup)
    show(rows)
    if options.figure:
        draw(curves, options.warmup, options.figure)
    print(json.dumps(summary(options, rows, time.perf_counter() - started)), flush=True)
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    plain_heap()
    sys.exit(main(tyro.cli(Options, description=__doc__)))

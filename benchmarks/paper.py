"""Trains the experiments behind docs/results.md, one run after the other or several at once, resumable.

    python benchmarks/paper.py --data /data/cifar10                      # the next one, until all are done
    python benchmarks/paper.py --data /data/cifar10 --at-once 2          # one core each
    python benchmarks/paper.py --data /data/cifar10 --only vgg-1500-metagf-r30-lr0.1-s0   # one, again
    python benchmarks/paper.py --list                                    # what is left, and for how long

``--data`` holds CIFAR-10 as train*.parquet and test*.parquet. Every finished run adds a line to runs.csv in
``--out``, and lines to budgets.csv (accuracy over operations) and rounds.csv (what happened on the way). A
run that was interrupted goes on after its last round. ``python benchmarks/results.py`` makes the tables and
figures of docs/results.md from these files alone.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from experiments import ALL, COMPARISONS, METHODS, NETWORKS, SCALES, TRIED_ON, Experiment, Plan
from experiments import ROUNDS as USUAL_ROUNDS
from rich.console import Console
from timing import machine

import raygf
from raygf.compute import torch_threads
from raygf.evaluation.budgeted import budgeted_curve
from raygf.evaluation.outputs import Calibration
from raygf.records import History

RUNS, BUDGETS, ROUNDS = "runs.csv", "budgets.csv", "rounds.csv"
POINTS = 20
"""Rounds of a run that are kept, evenly spaced."""
Line = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What is trained, and where results go."""

    data: str = ""
    """Folder of CIFAR-10."""
    out: Path = Path("docs/results")
    """Folder of the results."""
    storage: str = "runs/results"
    """Folder of the runs."""
    scale: Literal["small", "paper"] = "small"
    """Networks and images, where not given: small ones, or the paper's, which take GPUs."""
    images: int | None = None
    """Training images, equally many of every class: 1500, or 45000 at the paper's scale."""
    networks: tuple[str, ...] = ()
    """Networks: vgg and msdnet are small; vgg16, resnet56, msdnet7 and the same with -100 are the paper's;
    digits takes --images 192 and no --data."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Methods; also ablations, see benchmarks/experiments.py."""
    comparisons: tuple[str, ...] = ("epochs", "compute", "steps")
    """What is equal; also long, longer, longest."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; of weights, order, augmentation and which images are held out."""
    at_once: int = 1
    """Runs at once, one thread each."""
    only: str = ""
    """Train this one, or what its folder in --storage lacks; its lines go to standard output alone."""
    list: bool = False
    """Train nothing; say what is left and for how long."""

    def plan(self) -> Plan:
        """The experiments. Raises ValueError: there are none such."""
        networks, images = SCALES[self.scale]
        networks, images = self.networks or networks, self.images or images
        asked = ((networks, NETWORKS), (self.methods, ALL), (self.comparisons, COMPARISONS))
        for names, known in asked:
            if unknown := set(names) - set(known):
                raise ValueError(f"{min(unknown)!r} is none of {', '.join(known)}")
        if images not in USUAL_ROUNDS and (small := set(networks) & set(TRIED_ON)):
            counts = ", ".join(map(str, USUAL_ROUNDS))
            raise ValueError(f"--images {images}: {min(small)} is trained on {counts}")
        return Plan(images, networks, self.methods, self.comparisons, self.seeds)


def train(experiment: Experiment, options: Options) -> dict[str, list[Line]]:
    """Train ``experiment``, or what is left of it, and measure it."""
    config = experiment.config(options.data, options.storage)
    folder = Path(options.storage, experiment.name)
    return measure(experiment, raygf.train(config, resume=any(folder.glob("*.npz"))))


def measure(experiment: Experiment, run: raygf.Run) -> dict[str, list[Line]]:
    """The lines of a finished run for every file of results."""
    val, test = run.loaded.outputs("val"), run.loaded.outputs("test")
    curve = budgeted_curve(val, test, run.result.operations)
    result, history = run.result, run.history
    line: Line = {
        "name": experiment.name,
        **asdict(experiment),
        "training_passes": f"{result.training_passes:.3f}",
        "training_operations": result.training_operations,
        "steps": experiment.steps(),
        "seconds": f"{result.seconds:.0f}",
        "val_mean": f"{np.mean(val.top1):.5f}",
        "test_mean": f"{np.mean(test.top1):.5f}",
        "area": f"{area(curve.operations, curve.accuracy):.5f}",
        "test": cells(test.top1),
        "ece": cells(Calibration.of(test, (1.0,) * len(test.top1)).error[0]),
        "operations": " ".join(map(str, result.operations)),
        "weights_sha256": result.weights_sha256[:16],
        "commit": commit(),
        "machine": machine_name(),
        "raygf": raygf.__version__,
    }
    budgets = [
        {"name": experiment.name, "operations": f"{spent:.0f}", "accuracy": f"{accuracy:.4f}"}
        for spent, accuracy in zip(curve.operations, curve.accuracy, strict=True)
    ]
    return {RUNS: [line], BUDGETS: budgets, ROUNDS: list(on_the_way(experiment.name, history))}


def cells(shares: Iterable[float]) -> str:
    """Shares, one an exit, in one cell."""
    return " ".join(f"{share:.4f}" for share in shares)


def area(operations: np.ndarray, accuracy: np.ndarray) -> float:
    """Mean accuracy between the cheapest and the dearest setting, by the trapezoidal rule over operations."""
    order = np.argsort(operations)
    return float(np.trapezoid(accuracy[order], operations[order]) / np.ptp(operations))


def on_the_way(name: str, history: History) -> Iterator[Line]:
    """Some rounds: passes and seconds so far, accuracies (mean over exits), conflict, mean weights."""
    seconds, every = 0.0, max(1, len(history) // POINTS)
    for entry in history:
        seconds += sum(entry["seconds"].values())
        if entry["round"] % every and entry["round"] != len(history):
            continue
        fusion = entry["fusion"] or {}
        yield {
            "name": name,
            "round": entry["round"],
            "training_passes": f"{entry['training_passes']:.2f}",
            "seconds": f"{seconds:.1f}",
            "train_mean": f"{np.mean(entry['train']['accuracy']):.4f}",
            "val": cells(entry["val"]["accuracy"]),
            "conflict_before": fusion.get("conflict_before", ""),
            "conflict_after": fusion.get("conflict_after", ""),
            "mean_weight": cells(fusion.get("mean_weight", ())),
        }


def commit() -> str:
    """The commit of the program, marked if the code was changed."""
    here = Path(__file__).parents[1]
    asked = ["git", "rev-parse", "--short=10", "HEAD"]
    answer = subprocess.run(asked, cwd=here, capture_output=True, text=True, check=False)
    changed = subprocess.run(
        ["git", "diff", "--quiet", "HEAD", "--", "raygf", "benchmarks"], cwd=here, check=False
    )
    return answer.stdout.strip() + "-changed" * changed.returncode


def machine_name() -> str:
    """Processor and versions, in one cell."""
    known = machine()
    return " ".join(f"{name}={known[name]}" for name in known)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The lines of a file of results; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Add ``lines`` to a file of results."""
    lines = list(lines)
    fresh = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerows(lines)


def left(plan: Plan, rows: list[dict[str, str]]) -> list[Experiment]:
    """What is known to be still to run."""
    done = {row["name"] for row in rows}
    return [experiment for experiment in plan.experiments(rows) if experiment.name not in done]


def hours_left(todo: list[Experiment], rows: list[dict[str, str]], at_once: int) -> float:
    """How long ``todo`` takes, by the seconds that a pass over an image of each network took so far."""
    spent: dict[str, list[float]] = {}
    for row in rows:
        images = float(row["training_passes"]) * float(row["images"])
        spent.setdefault(row["network"], []).append(float(row["seconds"]) / images)
    speeds = {network: float(np.median(each)) for network, each in spent.items()}
    typical = float(np.median(list(speeds.values()) or [np.nan]))
    each = (speeds.get(one.network, typical) * one.passes() * one.images for one in todo)
    return sum(each) / 3600 / at_once


class Children:
    """Runs in processes of their own."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._running: dict[str, tuple[subprocess.Popen[str], Path]] = {}

    @property
    def names(self) -> set[str]:
        """What is running."""
        return set(self._running)

    def start(self, experiment: Experiment) -> None:
        """Train ``experiment`` in a process of one thread; what it says goes to a file."""
        options = self._options
        log = Path(options.storage, f"{experiment.name}.log")
        log.parent.mkdir(parents=True, exist_ok=True)
        argv = [sys.executable, __file__, "--only", experiment.name, "--data", options.data]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with log.open("a") as errors:
            child = subprocess.Popen(
                [*argv, "--storage", options.storage],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )
        self._running[experiment.name] = child, log

    def ended(self) -> Iterator[dict[str, list[Line]]]:
        """The results of those that have ended. Raises RuntimeError: one has failed."""
        for name, (child, log) in list(self._running.items()):
            if child.poll() is None:
                continue
            del self._running[name]
            output = child.stdout.read() if child.stdout else ""
            if child.returncode:
                raise RuntimeError(f"{name} ended with {child.returncode}, see {log}")
            yield json.loads(output.splitlines()[-1])

    def stop(self) -> None:
        """End all; they go on from their last rounds later."""
        for child, _ in self._running.values():
            child.terminate()


def run_all(options: Options, console: Console) -> None:
    """Train what is left."""
    plan, children = options.plan(), Children(options)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the runs end, too
    try:
        while True:
            for lines in children.ended():
                for name, some in lines.items():
                    if some:
                        append(options.out / name, some)
            rows = read_rows(options.out / RUNS)
            waiting = [one for one in left(plan, rows) if one.name not in children.names]
            while waiting and len(children.names) < options.at_once:
                console.print(f"{time.strftime('%H:%M')} {waiting[0].name}, {waiting[0].passes():.0f} passes")
                children.start(waiting.pop(0))
            if not children.names:
                return
            time.sleep(2)
    finally:
        children.stop()


def main(options: Options) -> None:
    """Train, or tell."""
    console = Console(stderr=True)
    rows = read_rows(options.out / RUNS)
    try:
        experiment = Experiment.named(options.only) if options.only else None
        options.plan()
    except ValueError as error:
        console.print(f"error: {error}")
        sys.exit(2)
    if experiment:
        with torch_threads(1):
            lines = train(experiment, options)
        print(json.dumps(lines))
        return
    if not options.list:
        run_all(options, console)
        rows = read_rows(options.out / RUNS)
    todo = left(options.plan(), rows)
    for experiment in todo:
        console.print(experiment.name)
    hours = hours_left(todo, rows, options.at_once)
    print(json.dumps({"done": len(rows), "left": len(todo), "hours": round(hours, 2)}))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

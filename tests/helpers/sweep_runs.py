"""What the tests of sweeps share: small trials, and a look at what MLflow and the disk have of them."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

TINY = (
    *("--data.train-limit", "48", "--data.val", "50", "--model.msdnet.base", "1"),
    *("--model.msdnet.step", "1", "--model.msdnet.channels", "8"),
)
"""A tenth of a second a round."""

_ACTORS = ("ray::DriverActor", "ray::ExitActor", "ray::ImplicitFunc", "ray::run_trial")


@dataclass(frozen=True)
class Tracked:
    """A run in MLflow."""

    id: str
    name: str
    status: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    rounds: list[int]


def tracked_sweep(uri: str) -> tuple[Tracked, dict[str, Tracked]]:
    """The only sweep's run in MLflow, and those of its trials by name; deleted runs don't count."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("raygf")
    assert experiment is not None
    runs = [_tracked(client, run) for run in client.search_runs([experiment.experiment_id])]
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.tags]
    children = [run for run in runs if run.tags.get("mlflow.parentRunId") == parent.id]
    assert len(children) == len(runs) - 1
    assert len({child.name for child in children}) == len(children), "a trial has two runs"
    return parent, {child.name: child for child in children}


def _tracked(client: Any, run: Any) -> Tracked:
    history = client.get_metric_history(run.info.run_id, "val_accuracy/average")
    rounds = sorted({point.step for point in history})
    info, data = run.info, run.data
    return Tracked(info.run_id, info.run_name, info.status, data.tags, data.params, data.metrics, rounds)


def table(path: str | Path) -> dict[str, dict[str, str]]:
    """The sweep's results by trial."""
    with Path(path).open() as stream:
        return {line["trial"]: line for line in csv.DictReader(stream)}


def wait_until(condition: Callable[[], object], seconds: float = 90) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, f"not within {seconds:.0f} s"
        time.sleep(0.05)


def checkpoints(sweep: Path) -> dict[str, int]:
    """The number of the newest checkpoint of every trial that has one."""
    found: dict[str, int] = {}
    for file in sweep.glob("*/checkpoint_*/checkpoint.npz"):
        trial, number = file.parts[-3], int(file.parts[-2].rpartition("_")[2])
        found[trial] = max(number, found.get(trial, 0))
    return found


def trial_actors(kind: str = "") -> list[psutil.Process]:
    """The processes of trials in the cluster that this process has started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            title = (process.cmdline() or [""])[0]
        except psutil.Error:
            continue
        if title.startswith(_ACTORS) and kind in title:
            found.append(process)
    return found

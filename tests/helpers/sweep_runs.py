"""What the tests of sweeps share: small trials, and a look at what MLflow and the disk have of them."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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


def checkpoints(sweep: Path) -> dict[str, int]:
    """The number of the newest checkpoint of every trial that has one."""
    found: dict[str, int] = {}
    for file in sweep.glob("*/checkpoint_*/checkpoint.npz"):
        trial, number = file.parts[-3], int(file.parts[-2].rpartition("_")[2])
        found[trial] = max(number, found.get(trial, 0))
    return found

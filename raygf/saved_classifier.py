"""An adaptive classifier in two files: its network in a checkpoint archive, its thresholds as JSON.

The archive also says what the classifier needs of the data set, so that no images are needed to load it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from raygf.adaptive import AdaptiveClassifier, ImageTask
from raygf.compute import make_repeatable, resolve_compute
from raygf.config import ComputeConfig
from raygf.data.base import InputSpec
from raygf.data.statistics import ChannelStatistics
from raygf.errors import CheckpointError
from raygf.evaluation.checkpointed import LoadedRun, read_config, restore_network
from raygf.evaluation.threshold_table import ThresholdTable
from raygf.storage.checkpoint import Checkpoint, load_checkpoint, write_archive

NETWORK, THRESHOLDS = "network.npz", "thresholds.json"


def save_classifier(run: LoadedRun, classifier: AdaptiveClassifier, folder: Path) -> tuple[Path, Path]:
    """Write the classifier of ``run`` to the existing ``folder``: paths of the network and the thresholds.

    Raises:
        OSError: the folder can't be written.
    """
    task = classifier.task
    description = {
        "input": asdict(task.input),
        "statistics": asdict(task.statistics),
        "class_names": list(task.class_names),
        "operations": list(classifier.operations),
    }
    trained = run.checkpoint
    # The method's own arrays are for going on with the training.
    archive = Checkpoint(trained.round, trained.network, {}, {**trained.meta, **description})
    network, thresholds = folder / NETWORK, folder / THRESHOLDS
    with network.open("wb") as stream:
        write_archive(stream, archive)
    rows = classifier.table.to_json() if classifier.table is not None else None
    thresholds.write_text(json.dumps(rows, indent=1) + "\n")
    return network, thresholds


def load_classifier(
    network: str, thresholds: str, compute: ComputeConfig | None = None
) -> AdaptiveClassifier:
    """The classifier that ``save_classifier`` wrote to these two files.

    Args:
        compute: Where and how it runs; by default as the run was configured, on whatever device there is.

    Raises:
        CheckpointError: a file is missing or damaged, or holds something else.
        ConfigError: the network can't be built here.
    """
    checkpoint = load_checkpoint(network)
    config = read_config(checkpoint, network)
    task, operations = _read_task(checkpoint.meta, network)
    resolved = resolve_compute(compute or replace(config.compute, device="auto"))
    make_repeatable(resolved)
    bound = restore_network(checkpoint, config, task.input, resolved, network)
    table = _read_table(thresholds, len(operations))
    return AdaptiveClassifier(bound.network, task, operations, table, resolved, config.eval_batch_size)


def _read_task(meta: Mapping[str, Any], path: str) -> tuple[ImageTask, list[int]]:
    try:
        statistics = ChannelStatistics(*(tuple(meta["statistics"][name]) for name in ("mean", "std")))
        task = ImageTask(InputSpec(**meta["input"]), statistics, tuple(meta["class_names"]))
        return task, [int(count) for count in meta["operations"]]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not the network of a saved classifier: {type(error).__name__}: {error}"
        ) from None


def _read_table(path: str, exits: int) -> ThresholdTable | None:
    try:
        rows = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: can't be read: {error}") from None
    if rows is None:
        return None
    try:
        table = ThresholdTable.from_json(rows)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if table.thresholds.shape[1] != exits - 1:
        raise CheckpointError(
            f"{path}: thresholds for {table.thresholds.shape[1] + 1} exits, but the network has {exits}"
        )
    return table

"""An adaptive classifier in files.

In two: its network in a checkpoint archive, its thresholds as JSON. The archive also says what the classifier
needs of the data set, so that no images are needed to load it. Or as one exported program an exit.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from raygf.compute import make_repeatable, resolve_compute
from raygf.config.run import ComputeConfig
from raygf.data.base import ChannelStatistics, InputSpec
from raygf.errors import CheckpointError, ConfigError, StorageError, one_line
from raygf.evaluation.budgeted import ThresholdTable
from raygf.evaluation.loading import LoadedRun, read_config, restore_network
from raygf.serving.adaptive import AdaptiveClassifier, ImageTask, stages_and_heads
from raygf.storage.checkpoint import Checkpoint, load_checkpoint, write_archive

NETWORK, THRESHOLDS, CLASSIFIER = "network.npz", "thresholds.json", "classifier.json"


def save_classifier(run: LoadedRun, classifier: AdaptiveClassifier, folder: Path) -> tuple[Path, Path]:
    """Write the classifier of ``run`` to the existing ``folder``: paths of the network and the thresholds.

    Raises:
        OSError: the folder can't be written.
    """
    trained = run.checkpoint
    # The method's own arrays are for going on with the training.
    archive = Checkpoint(trained.round, trained.network, {}, {**trained.meta, **_describe(classifier)})
    network, thresholds = folder / NETWORK, folder / THRESHOLDS
    with network.open("wb") as stream:
        write_archive(stream, archive)
    thresholds.write_text(json.dumps(_rows(classifier), indent=1) + "\n")
    return network, thresholds


def _describe(classifier: AdaptiveClassifier) -> dict[str, Any]:
    """What is to be known of a classifier beside its network and thresholds."""
    task = classifier.task
    return {
        "input": asdict(task.input),
        "statistics": asdict(task.statistics),
        "class_names": list(task.class_names),
        "operations": list(classifier.operations),
    }


def _rows(classifier: AdaptiveClassifier) -> list[dict[str, Any]] | None:
    return None if classifier.table is None else classifier.table.to_json()


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
        raise CheckpointError(f"{path}: not the network of a saved classifier: {one_line(error)}") from None


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


class Segment(nn.Module):
    """One stage and its head."""

    def __init__(self, stage: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.stage, self.head = stage, head

    def forward(self, state: Any) -> tuple[Tensor, Any]:
        """From the state before (images (B, C, H, W) at first) to logits (B, classes) and the state after."""
        after = self.stage(state)
        return self.head(after), after


def export_segments(classifier: AdaptiveClassifier, folder: str | Path) -> list[Path]:
    """Write ``segment-1.pt2``, ``segment-2.pt2`` … to ``folder``, shallow to deep; returns their paths.

    Each program maps a state to ``(logits, next state)``: ``torch.export.load(path).module()(state)``. The
    first one's state are the images (B, C, H, W), float32, normalised; there may be any number of them. The
    programs run on the classifier's device; its network is left as it was.

    ``classifier.json``, beside the segments and in each (``extra_files``), has what else is needed: the size
    of images, their mean and standard deviation (of pixels of 0 … 1), the names of the classes, the
    operations up to each exit, the thresholds by cost and the default budget.

    Raises:
        ConfigError: the network can't be exported.
        StorageError: the folder can't be written.
    """
    stages, heads = stages_and_heads(classifier.network)
    known = {"default_budget": classifier.default_budget, "thresholds": _rows(classifier)}
    text, place = json.dumps({**_describe(classifier), **known}, indent=1) + "\n", Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
        (place / CLASSIFIER).write_text(text)
    except OSError as error:
        raise StorageError(f"can't write segments to {place}: {error}") from None
    paths: list[Path] = []
    state: Any = classifier.task.input.blank(2, classifier.compute.device)
    for number, (stage, head) in enumerate(zip(stages, heads, strict=True), start=1):
        # A copy, because the parameters may be views of one vector, all of which would be stored with each.
        segment = copy.deepcopy(Segment(stage, head)).eval().requires_grad_(False)
        paths.append(place / f"segment-{number}.pt2")
        state = _export(segment, state, number, paths[-1], text)
    return paths


def _export(segment: Segment, state: Any, number: int, path: Path, text: str) -> Any:
    """Write the program of ``segment``, with ``text`` inside, to ``path``; returns the state after it."""
    batch = torch.export.Dim("batch", min=1)
    shapes = pytree.tree_map(lambda part: {0: batch}, state)
    try:
        with torch.no_grad():
            _, after = segment(state)
            program = torch.export.export(segment, (state,), dynamic_shapes=(shapes,))
        torch.export.save(program, path, extra_files={CLASSIFIER: text})
    except OSError as error:
        raise StorageError(f"can't write {path}: {error}") from None
    except Exception as error:  # torch.export may raise anything for what it can't follow
        raise ConfigError(f"segment {number} can't be exported: {one_line(error)}") from error
    return after

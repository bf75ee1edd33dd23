"""A trained network in two files that need no raygf to be read: ``model.safetensors`` and ``model.json``.

The weights are under the names of the network's state dict; the JSON says what network it is, what goes in
and comes out, what every exit costs, and at which confidence an image may leave.
"""

import json
from dataclasses import asdict, dataclass, replace

import numpy as np
from safetensors.numpy import save
from torch import nn

from raygf.compute import Compute, make_repeatable, resolve_compute
from raygf.config.fields import to_dict
from raygf.config.run import ComputeConfig
from raygf.data.base import ChannelStatistics, InputSpec
from raygf.errors import CheckpointError, one_line
from raygf.evaluation.budgeted import ThresholdTable
from raygf.evaluation.loading import LoadedRun, read_config, restore_network
from raygf.storage.checkpoint import MODEL, WEIGHTS, load_checkpoint
from raygf.storage.folder import inside
from raygf.storage.run_storage import without_passwords
from raygf.training.network import as_tensor

_ELSEWHERE = ("resources", "storage", "tracking")
"""Sections of a run that do not matter to its network."""


@dataclass(frozen=True)
class ImageTask:
    """What goes in and what comes out: images, how they are normalised, the names of the classes."""

    input: InputSpec
    statistics: ChannelStatistics
    class_names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A network from its two files, in evaluation mode: all that is needed to use it, without its data set.

    ``operations`` (n,): up to each exit, for one image. ``table``: thresholds by cost, None if there are
    none. ``batch_size``: of the run's evaluation.
    """

    network: nn.Module
    compute: Compute
    task: ImageTask
    operations: tuple[int, ...]
    table: ThresholdTable | None
    batch_size: int


def model_files(run: LoadedRun, table: ThresholdTable | None) -> dict[str, bytes]:
    """The two files of the network of ``run``, by name; ``table``: its thresholds by cost."""
    config, dataset, state, costs = run.config, run.dataset, run.checkpoint.network, run.costs()
    settings = {name: value for name, value in to_dict(config).items() if name not in _ELSEWHERE}
    known = {
        "format": 1,
        "name": config.storage.name,
        "network": config.model.name,
        "method": config.method,
        "data": dataset.name,
        "rounds": run.checkpoint.round,
        "weights_sha256": state.sha256(),
        "input": asdict(dataset.spec),
        "statistics": asdict(dataset.statistics),
        "class_names": list(dataset.class_names),
        "exits": len(costs),
        "operations": [cost.operations for cost in costs],
        "parameters": [cost.parameters for cost in costs],
        "default_budget": costs[-1].operations if table is None else table.default_budget,
        "thresholds": None if table is None else table.to_json(),
        "policy": None if table is None else table.policy,
        "temperatures": None if table is None else list(table.temperatures),
        "config": without_passwords({**settings, "storage": {"name": config.storage.name}}),
        "tensors": list(run.bound.space.names),
    }
    views = {name: view.numpy() for name, view in run.bound.space.views(as_tensor(state.vector)).items()}
    arrays = {name: np.asarray(array, order="C") for name, array in {**views, **state.buffers}.items()}
    return {WEIGHTS: save(arrays, {"format": "pt"}), MODEL: f"{json.dumps(known, indent=1)}\n".encode()}


def load_model(
    folder: str, compute: ComputeConfig | None = None, network: nn.Module | None = None
) -> TrainedModel:
    """The network whose two files are in ``folder`` (local or a URI): a run's, or one that was exported.

    Args:
        compute: Where and how it runs; by default as the run was configured, on whatever device there is.
        network: A network of one's own that was trained; by default it is built from its name.

    Raises:
        CheckpointError: a file is missing or damaged, or belongs to another network.
        ConfigError: the network can't be built here.
    """
    path = inside(folder, WEIGHTS)
    checkpoint = load_checkpoint(path)
    config, known = read_config(checkpoint, path), checkpoint.meta
    try:
        statistics = ChannelStatistics(*(tuple(known["statistics"][each]) for each in ("mean", "std")))
        task = ImageTask(InputSpec(**known["input"]), statistics, tuple(known["class_names"]))
        operations, rows = tuple(known["operations"]), known["thresholds"]
        more = {name: known[name] for name in ("policy", "temperatures") if known.get(name)}
        table = None if rows is None else ThresholdTable.from_json(rows, **more)
        if table is not None and table.thresholds.shape[1] != len(operations) - 1:
            raise ValueError(f"thresholds are not those of {len(operations)} exits")
    except (KeyError, TypeError, ValueError, CheckpointError) as error:
        raise CheckpointError(f"{inside(folder, MODEL)}: {one_line(error)}") from None
    resolved = resolve_compute(compute or replace(config.compute, device="auto"))
    make_repeatable(resolved)
    bound = restore_network(checkpoint, config, task.input, resolved, path, network)
    return TrainedModel(bound.network, resolved, task, operations, table, config.eval_batch_size)

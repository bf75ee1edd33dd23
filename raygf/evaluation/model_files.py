"""A trained network in two files that need no raygf to be read: ``model.safetensors`` and ``model.json``.

The weights are under the names of the network's state dict; the JSON says what network it is, what goes in
and comes out, what every exit costs, and at which confidence an image may leave.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import nn

from raygf.compute import Compute, make_repeatable, resolve_compute
from raygf.config.fields import from_dict, to_dict
from raygf.config.run import ComputeConfig, ModelConfig
from raygf.data.base import ChannelStatistics, InputSpec
from raygf.errors import CheckpointError, one_line, without_password
from raygf.evaluation.budgeted import ThresholdTable
from raygf.evaluation.loading import LoadedRun
from raygf.models.build import build_model
from raygf.storage.folder import RunFolder, above
from raygf.training.network import BoundNetwork, NetworkState, as_tensor

WEIGHTS, MODEL = "model.safetensors", "model.json"
_FORMAT = 1


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
    none. ``known``: all that ``model.json`` says.
    """

    network: nn.Module
    compute: Compute
    task: ImageTask
    operations: tuple[int, ...]
    table: ThresholdTable | None
    known: Mapping[str, Any]


def model_files(run: LoadedRun, table: ThresholdTable | None) -> dict[str, bytes]:
    """The two files of the network of ``run``, by name; ``table``: its thresholds by cost."""
    config, dataset, state, costs = run.config, run.dataset, run.checkpoint.network, run.costs()
    network = to_dict(config.model)
    known = {
        "format": _FORMAT,
        "network": network if config.model.name == "msdnet" else {"name": network["name"]},
        "method": config.method,
        "data": dataset.name,
        "seed": config.seed,
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
        "compute": to_dict(config.compute),
        "batch_size": config.eval_batch_size,
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
    files, name = RunFolder(*above("folder", folder)), MODEL
    try:
        known = json.loads(files.read(MODEL))
        if known["format"] != _FORMAT:
            raise CheckpointError(f"has format {known['format']!r:.20}, this version reads {_FORMAT}")
        statistics = ChannelStatistics(*(tuple(known["statistics"][each]) for each in ("mean", "std")))
        task = ImageTask(InputSpec(**known["input"]), statistics, tuple(known["class_names"]))
        operations, rows = tuple(known["operations"]), known["thresholds"]
        table = None if rows is None else ThresholdTable.from_json(rows)
        if table is not None and table.thresholds.shape[1] != len(operations) - 1:
            raise CheckpointError(f"its thresholds are not those of {len(operations)} exits")
        compute = compute or replace(from_dict(ComputeConfig, known["compute"]), device="auto")
        config = from_dict(ModelConfig, {**known["network"], "weights": ""})  # the other file has all
        resolved, name = resolve_compute(compute), WEIGHTS
        make_repeatable(resolved)
        bound = BoundNetwork(
            build_model(config, task.input, known["seed"]) if network is None else network, resolved
        )
        bound.load(_state(bound, load(files.read(WEIGHTS))))
    except FileNotFoundError:
        raise CheckpointError(
            f"{files.path(name)}: there is no such file; a run writes it at its end"
        ) from None
    except (OSError, KeyError, TypeError, ValueError, SafetensorError, CheckpointError) as error:
        ours = isinstance(error, CheckpointError)
        why = error if ours else f"not a whole model of raygf ({one_line(error)})"
        raise CheckpointError(f"{without_password(files.path(name))}: {why}") from None
    return TrainedModel(bound.network.eval(), resolved, task, operations, table, known)


def _state(bound: BoundNetwork, arrays: Mapping[str, NDArray[Any]]) -> NetworkState:
    """``arrays`` by name as a state of ``bound``.

    Raises:
        CheckpointError: they are of another network, or not finite.
    """
    views = {name: tuple(view.shape) for name, view in bound.space.views(bound.vector).items()}
    if odd := [name for name, shape in views.items() if name not in arrays or arrays[name].shape != shape]:
        raise CheckpointError(f"{odd[0]} is not that of the network as it is here")
    vector = np.concatenate([arrays[name].ravel() for name in views])
    state = NetworkState(vector, {name: array for name, array in arrays.items() if name not in views})
    bound.check_restored(state)
    return state

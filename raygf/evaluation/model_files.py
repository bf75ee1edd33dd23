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
from raygf.config.fields import from_dict, storage_path, to_dict
from raygf.config.run import ComputeConfig, ModelConfig
from raygf.data.base import ChannelStatistics, InputSpec
from raygf.errors import CheckpointError, ConfigError, one_line, without_password
from raygf.evaluation.budgeted import ThresholdTable
from raygf.evaluation.loading import LoadedRun
from raygf.models.build import build_model
from raygf.storage.folder import RunFolder, brief
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
    batch_size: int
    known: Mapping[str, Any]


def model_files(run: LoadedRun, table: ThresholdTable | None) -> dict[str, bytes]:
    """The two files of the network of ``run``, by name; ``table``: its thresholds by cost."""
    state, space = run.checkpoint.network, run.bound.space
    views = {name: view.numpy() for name, view in space.views(as_tensor(state.vector)).items()}
    arrays = {name: np.asarray(array, order="C") for name, array in {**views, **state.buffers}.items()}
    text = json.dumps(describe_model(run, table), indent=1, allow_nan=False)
    return {WEIGHTS: save(arrays, {"format": "pt"}), MODEL: f"{text}\n".encode()}


def describe_model(run: LoadedRun, table: ThresholdTable | None) -> dict[str, Any]:
    """What ``model.json`` says of the network of ``run``."""
    config, dataset, costs = run.config, run.dataset, run.costs()
    network = to_dict(config.model)
    if config.model.name != "msdnet":
        del network["msdnet"]
    return {
        "format": _FORMAT,
        "network": network,
        "method": config.method,
        "data": dataset.name,
        "seed": config.seed,
        "rounds": run.checkpoint.round,
        "weights_sha256": run.checkpoint.network.sha256(),
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
    files = RunFolder(*_parent(folder))
    known, shown = _read_known(_read(files, MODEL)), without_password(files.path(MODEL))
    try:
        task, operations, table = _read_task(known)
        config = from_dict(ModelConfig, {**known["network"], "weights": ""})  # the file here has all
        compute = compute or replace(from_dict(ComputeConfig, known["compute"]), device="auto")
        seed, batch_size = int(known["seed"]), int(known["batch_size"])
    except (KeyError, TypeError, ValueError, ConfigError, CheckpointError) as error:
        raise CheckpointError(f"{shown}: {one_line(error, kind=isinstance(error, KeyError))}") from None
    resolved = resolve_compute(compute)
    make_repeatable(resolved)
    built = network if network is not None else build_model(config, task.input, seed)
    bound = BoundNetwork(built, resolved)
    try:
        bound.load(_state(bound, load(_read(files, WEIGHTS))))
    except (SafetensorError, CheckpointError) as error:
        raise CheckpointError(f"{without_password(files.path(WEIGHTS))}: {error}") from None
    return TrainedModel(bound.network.eval(), resolved, task, operations, table, batch_size, known)


def _parent(folder: str) -> tuple[str, str]:
    """The folder above and the name in it, as ``RunFolder`` takes them."""
    place, mark, options = folder.partition("?") if "://" in folder else (folder, "", "")
    parent, _, name = storage_path("folder", place).rstrip("/").rpartition("/")
    return f"{parent or '/'}{mark}{options}", name


def _read(files: RunFolder, name: str) -> bytes:
    try:
        return files.read(name)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        why = "there is no such file; a run writes it at its end" if missing else brief(error)
        raise CheckpointError(f"{without_password(files.path(name))}: {why}") from None


def _read_known(content: bytes) -> dict[str, Any]:
    """What ``model.json`` says; nothing if it is no JSON object of this format."""
    try:
        known = json.loads(content)
    except ValueError:
        return {}
    return known if isinstance(known, dict) and known.get("format") == _FORMAT else {}


def _read_task(known: Mapping[str, Any]) -> tuple[ImageTask, tuple[int, ...], ThresholdTable | None]:
    """
    Raises:
        CheckpointError, KeyError, TypeError, ValueError: it says something else.
    """
    if not known:
        raise CheckpointError(
            f"not a raygf model, or of another format than {_FORMAT}, which this version reads"
        )
    statistics = ChannelStatistics(*(tuple(known["statistics"][name]) for name in ("mean", "std")))
    task = ImageTask(InputSpec(**known["input"]), statistics, tuple(known["class_names"]))
    operations, rows = tuple(int(count) for count in known["operations"]), known["thresholds"]
    table = None if rows is None else ThresholdTable.from_json(rows)
    if table is not None and table.thresholds.shape[1] != len(operations) - 1:
        exits = table.thresholds.shape[1] + 1
        raise CheckpointError(f"thresholds for {exits} exits, but costs for {len(operations)}")
    return task, operations, table


def _state(bound: BoundNetwork, arrays: Mapping[str, NDArray[Any]]) -> NetworkState:
    """``arrays`` by name as a state of ``bound``.

    Raises:
        CheckpointError: they are of another network, or not finite.
    """
    views = {name: tuple(view.shape) for name, view in bound.space.views(bound.vector).items()}
    found = {name: array.shape for name, array in arrays.items() if name in views}
    if odd := sorted(name for name in views if views[name] != found.get(name)):
        raise CheckpointError(
            f"{odd[0]} is not that of the network as it is here: it belongs to another network"
        )
    vector = np.concatenate([arrays[name].ravel() for name in views])
    state = NetworkState(vector, {name: array for name, array in arrays.items() if name not in views})
    bound.check_restored(state)
    return state

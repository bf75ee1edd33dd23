"""A past run brought back from one checkpoint file: network, data set, configuration, compute.

And its network in two files that need no raygf to be read, ``model.safetensors`` and ``model.json``: the
weights under the names of the network's state dict; what network it is, what goes in and comes out, what
every exit costs, and at which confidence an image may leave.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.numpy import save
from torch import Tensor, nn

from raygf.compute import Compute, make_repeatable, resolve_compute
from raygf.config.fields import from_dict, to_dict
from raygf.config.run import Policy, RunConfig
from raygf.data.base import BatchSource, ChannelStatistics, Dataset, InputSpec, SplitName
from raygf.data.load import load_data
from raygf.errors import CheckpointError, ConfigError, DataError, without_passwords
from raygf.evaluation.budgeted import ThresholdTable, calibrate
from raygf.evaluation.outputs import ExitOutputs, collect_outputs, fit_temperatures
from raygf.models.build import build_model
from raygf.models.costs import ExitCost, measure_costs
from raygf.models.msdnet_lazy import exit_stages
from raygf.models.multi_exit import MultiExitNetwork
from raygf.storage.checkpoint import MODEL, WEIGHTS, Checkpoint, load_checkpoint
from raygf.training.network import BoundNetwork, as_tensor
from raygf.training.space import find_ownership

BATCHES = (1, 64)
"""Images that latency is measured for."""
_WARM_UP, _TIMED = 2, 5
"""Forward passes before those that are timed, and those."""
_ELSEWHERE = ("resources", "storage", "tracking")
"""Sections of a run that do not matter to its network."""


@dataclass(frozen=True, eq=False)
class LoadedRun:
    """A run as it was after ``checkpoint.round`` rounds, ready to be evaluated."""

    config: RunConfig
    dataset: Dataset
    bound: BoundNetwork
    """The network with the checkpoint's weights, on its device, in evaluation mode."""
    batches: BatchSource
    checkpoint: Checkpoint

    def costs(self) -> list[ExitCost]:
        """Parameters and operations up to every exit, shallow to deep."""
        return measure_costs(self.bound.network, self.dataset.spec)

    def owned(self) -> Tensor:
        """The mask (n, T): which exit depends on which parameter tensor."""
        example = self.dataset.spec.blank(2, self.bound.compute.device)
        return find_ownership(self.bound.network, example, self.bound.space)

    def outputs(self, split: SplitName, temperatures: tuple[float, ...] = ()) -> ExitOutputs:
        """What every exit says about every image of ``split``; ``temperatures``: see ``collect_outputs``.

        Raises DataError: the split has no images.
        """
        if not self.dataset.count(split):
            hint = " (data.val = 0: none were held out)" if split == "val" else ""
            raise DataError(f"{self.dataset.name} has no {split} images to evaluate{hint}")
        return collect_outputs(self.bound, self.batches.evaluate(split), temperatures)

    def thresholds(self, policy: Policy | None = None) -> ThresholdTable:
        """Thresholds by cost, and temperatures, from the validation images; ``policy``: by default the run's.

        Raises:
            DataError: there are none.
            NonFiniteError: an exit's output is infinite or NaN.
        """
        val, operations = self.outputs("val"), [cost.operations for cost in self.costs()]
        temperatures = fit_temperatures(self.bound, self.batches.evaluate("val"))
        return calibrate(val, operations, policy or self.config.policy, temperatures)

    @torch.inference_mode()
    def latency(self, batch: int) -> tuple[float, ...]:
        """Milliseconds up to every exit, the earlier ones included, for ``batch`` black images: medians.

        Empty for a network without stages and heads.
        """
        network, compute = self.bound.network.eval(), self.bound.compute
        if not isinstance(network, MultiExitNetwork):
            return ()
        images = self.dataset.spec.blank(batch, compute.device).contiguous(memory_format=compute.layout)
        steps, rounds = exit_stages(network, network.stages), []
        for _ in range(_WARM_UP + _TIMED):
            state, times, started = images, [], perf_counter()
            for step, head in zip(steps, network.heads, strict=True):
                with compute.autocast():
                    state = step(state)
                    head(state)
                if compute.device == "cuda":
                    torch.cuda.synchronize()
                times.append(1000 * (perf_counter() - started))
            rounds.append(times)
        return tuple(np.median(rounds[_WARM_UP:], axis=0).tolist())


class HasLoaded(Protocol):
    """A run that is loaded when it is needed, such as ``raygf.api.Run``."""

    @property
    def loaded(self) -> LoadedRun:
        """The run with its network and data set."""


def load_run(path: str, config: RunConfig | None = None) -> LoadedRun:
    """The run whose checkpoint is the file ``path`` (local or a URI).

    Args:
        config: what may differ where it is evaluated, as places and devices; by default all is as it was.

    Raises:
        CheckpointError: the file is missing or damaged, or does not fit the network or the data set.
        DataError: the data set is missing or damaged.
        ConfigError: the network can't be built here.
        ResourceError: the run's device is not available here.
    """
    checkpoint = load_checkpoint(path)
    config = config or read_config(checkpoint, path)
    resolved = resolve_compute(config.compute)
    make_repeatable(resolved)
    dataset = load_data(config.data, config.seed)
    trained, here = checkpoint.meta.get("input"), asdict(dataset.spec)
    if isinstance(trained, dict) and trained != here:
        raise CheckpointError(
            f"{path}: its network tells {_described(trained)} apart, "
            f"but the data set {dataset.name} has {_described(here)}"
        )
    bound = restore_network(checkpoint, config, dataset.spec, resolved, path)
    batches = dataset.open(resolved, config.batch_size, config.eval_batch_size)
    return LoadedRun(config, dataset, bound, batches, checkpoint)


def read_config(checkpoint: Checkpoint, path: str) -> RunConfig:
    """The configuration that ``checkpoint`` was written with; ``path`` names it in errors.

    Raises CheckpointError: there is none, or this version can't read it.
    """
    values = checkpoint.meta.get("config")
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: does not say which configuration it belongs to")
    try:
        return from_dict(RunConfig, values)
    except ConfigError as error:
        raise CheckpointError(f"{path}: this version can't read its configuration: {error}") from None


def restore_network(
    checkpoint: Checkpoint,
    config: RunConfig,
    spec: InputSpec,
    compute: Compute,
    path: str,
    network: nn.Module | None = None,
) -> BoundNetwork:
    """The network of ``config``, or ``network``, with the checkpoint's weights, in evaluation mode.

    Raises:
        CheckpointError: they are of another network, of other classes or image sizes, or not finite.
        ConfigError: the network can't be built here.
    """
    # The pretrained weights that the run started from need not be here: the checkpoint has all.
    model = replace(config.model, weights="")
    bound = BoundNetwork(build_model(model, spec, config.seed) if network is None else network, compute)
    names = checkpoint.meta.get("tensors")
    if isinstance(names, list) and names != list(bound.space.names):
        raise CheckpointError(
            f"{path}: its tensors are not those of model.name = {config.model.name!r} as it is here: "
            "it belongs to another network"
        )
    try:
        bound.check_restored(checkpoint.evaluated)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    bound.load(checkpoint.evaluated)
    bound.network.eval()
    return bound


def _described(spec: Mapping[str, Any]) -> str:
    channels, height, width = (spec.get(side) for side in ("channels", "height", "width"))
    return f"{spec.get('classes')} classes of {channels}x{height}x{width} images"


@dataclass(frozen=True)
class ImageTask:
    """What goes in and what comes out: images, how they are normalised, the names of the classes."""

    input: InputSpec
    statistics: ChannelStatistics
    class_names: tuple[str, ...]


def model_files(run: LoadedRun, table: ThresholdTable | None) -> dict[str, bytes]:
    """The two files of the network of ``run``, by name; ``table``: its thresholds by cost."""
    config, dataset, state, costs = run.config, run.dataset, run.checkpoint.evaluated, run.costs()
    # What this machine calls its files is of no use elsewhere, and the two files may be published.
    config = replace(config, data=replace(config.data, path=""), model=replace(config.model, weights=""))
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

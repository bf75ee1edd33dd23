"""A trained network in two files that need no raygf to be read: ``model.safetensors`` and ``model.json``.

The weights are under the names of the network's state dict; the JSON says what network it is, what goes in
and comes out, what every exit costs, and at which confidence an image may leave.
"""

import json
from dataclasses import asdict, dataclass, replace

import numpy as np
from safetensors.numpy import save

from raygf.config.fields import to_dict
from raygf.data.base import ChannelStatistics, InputSpec
from raygf.evaluation.budgeted import ThresholdTable
from raygf.evaluation.loading import LoadedRun
from raygf.storage.checkpoint import MODEL, WEIGHTS
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


def model_files(run: LoadedRun, table: ThresholdTable | None) -> dict[str, bytes]:
    """The two files of the network of ``run``, by name; ``table``: its thresholds by cost."""
    config, dataset, state, costs = run.config, run.dataset, run.checkpoint.network, run.costs()
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

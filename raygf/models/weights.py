"""Weights to start from: a state dict in a file, a run's network, or one of its checkpoints."""

import json
import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from raygf.errors import ConfigError, one_line


def load_weights(network: nn.Module, path: str, classes: int, state: dict[str, Tensor] | None = None) -> None:
    """Load what ``path`` means (or ``state``, which was read from there) into ``network``.

    A classifier keeps its initial weights where the file's is for another number of classes.

    Raises ConfigError: the file can't be read, does not fit the network, or holds NaN or infinity.
    """
    state = read_weights(path) if state is None else state
    own = network.state_dict()
    extra = dict(network.named_buffers())  # a run also stores those that are in no state dict
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys() - extra.keys())
    misfit = f"model.weights = {path!r}: do not fit {type(network).__name__}: "
    if missing or unknown:
        shown = (f"{len(some)} tensors ({some[0]} …)" if some else "none" for some in (missing, unknown))
        raise ConfigError(misfit + "{} missing, {} unknown".format(*shown))
    state = {name: state[name] for name in own}
    other = [name for name, tensor in state.items() if tensor.shape != own[name].shape]
    for name in other:  # a classifier may differ in the number of classes
        there, here = tuple(state[name].shape), tuple(own[name].shape)
        if here[:1] != (classes,) or not there or here[1:] != there[1:]:
            raise ConfigError(f"{misfit}{name} is {there}, not {here}")
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        what = "is not finite: the file holds NaN or infinity"
        raise ConfigError(f"model.weights = {path!r}: {broken[0]} {what}")
    network.load_state_dict({name: own[name] if name in other else tensor for name, tensor in state.items()})


def read_weights(path: str) -> dict[str, Tensor]:
    """Names and tensors in the file ``path``, of which no code is run; of a run's folder, its newest ones.

    Files of torch.save, .safetensors, and checkpoints of runs (.npz).

    Raises ConfigError: it can't be read, or holds something else.
    """
    place = Path(path)
    newest = [*sorted(place.glob("round-*.npz")), *place.glob("model.safetensors")]
    file = str(newest[-1]) if newest else path
    try:
        if file.endswith(".npz"):
            content: Any = _of_checkpoint(file)
        elif file.endswith(".safetensors"):
            content = load_file(file)
        else:
            content = torch.load(file, "cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds for a damaged file
        why = one_line(error).split(". ")[0]
        if isinstance(error, pickle.UnpicklingError):  # torch advises to run the code in it
            why = "it is damaged, or holds more than tensors; save the network's state dict with torch.save"
        raise ConfigError(f"model.weights = {path!r}: can't be read: {why}") from error
    for key in ("model", "state_dict"):  # under which training programs keep the weights
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ConfigError(f"model.weights = {path!r}: must hold a state dict: names and tensors")
    return dict(content)


def _of_checkpoint(file: str) -> dict[str, Tensor]:
    """The state dict in a run's checkpoint."""
    with np.load(file, allow_pickle=False) as archive:
        meta = json.loads(archive["meta"].item())
        average = "method/average" in archive.files  # of the weights, which a run hands on in their place
        vector, begin = ("method/average", "method/average/") if average else ("vector", "buffer/")
        parts = np.split(archive[vector], np.cumsum([math.prod(shape) for shape in meta["shapes"]])[:-1])
        buffers = {name: torch.from_numpy(archive[name]) for name in archive.files if name.startswith(begin)}
    named = zip(meta["tensors"], parts, meta["shapes"], strict=True)
    return {
        **{name: torch.from_numpy(part.reshape(shape)) for name, part, shape in named},
        **{name.removeprefix(begin): tensor for name, tensor in buffers.items()},
    }

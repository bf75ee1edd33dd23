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

from raygf.errors import ConfigError

WRAPPERS = ("model", "state_dict")
"""Keys under which training programs keep the weights beside other things."""


def load_weights(network: nn.Module, path: str, classes: int, state: dict[str, Tensor] | None = None) -> None:
    """Load what ``path`` means (or ``state``, which was read from there) into ``network``.

    A classifier keeps its initial weights where the file's is for another number of classes.

    Raises:
        ConfigError: the file can't be read, does not fit the network, or holds NaN or infinity.
    """
    state = read_weights(path) if state is None else state
    own = network.state_dict()
    extra = dict(network.named_buffers())  # a run also stores those that are in no state dict
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys() - extra.keys())
    if missing or unknown:
        raise _misfit(path, network, f"{_some(missing)} missing, {_some(unknown)} unknown")
    state = {name: state[name] for name in own}
    other = {name for name, tensor in state.items() if tensor.shape != own[name].shape}
    wrong = sorted(name for name in other if not _is_classifier(own[name], state[name], classes))
    if wrong:
        name = wrong[0]
        raise _misfit(path, network, f"{name} is {tuple(state[name].shape)}, not {tuple(own[name].shape)}")
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ConfigError(
            f"model.weights = {path!r}: {broken[0]} is not finite: the file holds NaN or infinity"
        )
    network.load_state_dict({name: own[name] if name in other else tensor for name, tensor in state.items()})


def read_weights(path: str) -> dict[str, Tensor]:
    """Names and tensors in the file ``path``, of which no code is run; of a run's folder, its newest ones.

    Files of torch.save, .safetensors, and checkpoints of runs (.npz).

    Raises:
        ConfigError: it can't be read, or holds something else.
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
        kind = type(error).__name__
        raise ConfigError(f"model.weights = {path!r}: can't be read: {kind}: {_why(error)}") from error
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ConfigError(f"model.weights = {path!r}: must hold a state dict: names and tensors")
    return dict(content)


def _of_checkpoint(file: str) -> dict[str, Tensor]:
    """The state dict in a run's checkpoint.

    Raises:
        ValueError: it does not say how its tensors are shaped.
    """
    with np.load(file, allow_pickle=False) as archive:
        meta = json.loads(archive["meta"].item())
        if "shapes" not in meta:
            raise ValueError("it is of an earlier version; take its run's model.safetensors")
        parts = np.split(archive["vector"], np.cumsum([math.prod(shape) for shape in meta["shapes"]])[:-1])
        buffers = {name: torch.from_numpy(archive[name]) for name in archive.files if "buffer/" in name}
    named = zip(meta["tensors"], parts, meta["shapes"], strict=True)
    return {
        **{name: torch.from_numpy(part.reshape(shape)) for name, part, shape in named},
        **{name.removeprefix("buffer/"): tensor for name, tensor in buffers.items()},
    }


def _why(error: Exception) -> str:
    """The cause in a sentence. Of a pickle that is more than tensors torch advises to run the code in it."""
    if isinstance(error, pickle.UnpicklingError):
        return "it is damaged, or holds more than tensors; save the network's state dict with torch.save"
    return (str(error).splitlines() or [""])[0].split(". ")[0]


def _is_classifier(own: Tensor, loaded: Tensor, classes: int) -> bool:
    """Whether the tensors differ in the number of classes alone."""
    return own.dim() == loaded.dim() > 0 and own.shape[0] == classes and own.shape[1:] == loaded.shape[1:]


def _some(names: list[str]) -> str:
    """How many names, and the first of them."""
    return f"{len(names)} tensors ({names[0]} …)" if names else "none"


def _misfit(path: str, network: nn.Module, why: str) -> ConfigError:
    return ConfigError(f"model.weights = {path!r}: do not fit {type(network).__name__}: {why}")

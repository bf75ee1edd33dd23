"""Pretrained weights from a local file."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from raygf.errors import ConfigError

WRAPPERS = ("model", "state_dict")
"""Keys under which training programs keep the weights beside other things."""


def load_local_weights(network: nn.Module, path: str, classes: int) -> None:
    """Load the state dict in the file ``path`` into ``network``; only tensors are read, no code is run.

    The network's own classifier keeps its initial weights where the file's is for another number of classes.

    Raises:
        ConfigError: the file can't be read, does not fit the network, or holds NaN or infinity.
    """
    state = _read(path)
    own = network.state_dict()
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unknown:
        raise _misfit(path, network, f"{_some(missing)} missing, {_some(unknown)} unknown")
    other = {name for name, tensor in state.items() if tensor.shape != own[name].shape}
    wrong = sorted(name for name in other if not _is_classifier(own[name], state[name], classes))
    if wrong:
        name = wrong[0]
        raise _misfit(path, network, f"{name} is {tuple(state[name].shape)}, not {tuple(own[name].shape)}")
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ConfigError(f"weights = {path!r}: {broken[0]} is not finite: the file holds NaN or infinity")
    network.load_state_dict({name: own[name] if name in other else tensor for name, tensor in state.items()})


def _read(path: str) -> dict[str, Tensor]:
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds for a damaged file
        kind = type(error).__name__
        raise ConfigError(f"weights = {path!r}: can't be read: {kind}: {_why(error)}") from error
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ConfigError(f"weights = {path!r}: must hold a state dict: names and tensors")
    return dict(content)


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
    return ConfigError(f"weights = {path!r}: do not fit {type(network).__name__}: {why}")

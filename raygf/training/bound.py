"""A network whose parameters and gradients are views of two flat vectors."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from raygf.compute import Compute
from raygf.errors import CheckpointError
from raygf.fusion.flat import FlatSpace
from raygf.training.peers import ALONE, Peers
from raygf.training.state import Arrays, NetworkState, Vector


class BoundNetwork:
    """``network`` on its device, its trainable parameters living in ``vector`` (P,), gradients in ``grad``.

    Loading a state is then one copy, a step of SGD one kernel, a delta one subtraction.
    """

    def __init__(self, network: nn.Module, compute: Compute, peers: Peers = ALONE) -> None:
        """``peers``: the workers that each hold this network and train it together."""
        self.compute = compute
        self.peers = peers
        self.network = network.to(compute.device)
        self.space = FlatSpace.of(network)
        self.vector = self.space.pack(dict(network.named_parameters()))
        self.grad = torch.zeros_like(self.vector)
        parameters = dict(network.named_parameters())
        frozen = {name: p.data for name, p in parameters.items() if name not in self.space.names}
        self._rest = {**frozen, **dict(network.named_buffers())}
        grads = self.space.views(self.grad)
        for name, view in self.space.views(self.vector).items():
            parameters[name].data = view
            parameters[name].grad = grads[name]

    def load(self, state: NetworkState) -> None:
        """Copy ``state`` in.

        Raises:
            CheckpointError: it belongs to another network.
        """
        self.check(state)
        self.vector.copy_(as_tensor(state.vector))
        for name, tensor in self._rest.items():
            tensor.copy_(as_tensor(state.buffers[name]))

    def check(self, state: NetworkState) -> None:
        """Raise CheckpointError unless ``state`` has this network's sizes and number formats."""
        self.check_vector("parameters", state.vector)
        mine = {name: (tuple(tensor.shape), _kind(tensor)) for name, tensor in self._rest.items()}
        theirs = {name: (array.shape, _kind(array)) for name, array in state.buffers.items()}
        if mine != theirs:
            odd = sorted(set(mine.items()) ^ set(theirs.items()))[0][0]
            raise CheckpointError(
                f"buffer {odd} of the checkpoint does not fit: it belongs to another network, or to other "
                "classes or image sizes"
            )

    def check_vector(self, what: str, vector: np.ndarray) -> None:
        """Raise CheckpointError unless ``vector`` has a float32 number for every parameter."""
        if vector.shape != (self.space.size,):
            raise CheckpointError(
                f"the checkpoint has {vector.size:,} {what}, this network {self.space.size:,}: "
                "it belongs to another network, or to other classes or image sizes"
            )
        if vector.dtype != np.float32:
            raise CheckpointError(f"the checkpoint's {what} are {vector.dtype}, not float32")

    def state(self) -> NetworkState:
        """A copy of what the network holds now."""
        return NetworkState(to_numpy(self.vector), self.buffer_arrays())

    def buffer_arrays(self) -> Arrays:
        """A copy of the buffers alone."""
        return {name: to_numpy(tensor) for name, tensor in self._rest.items()}

    def buffer_tensors(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """``arrays`` as fresh tensors on the device, for ``torch.func.functional_call``."""
        return {name: as_tensor(array).clone().to(self.compute.device) for name, array in arrays.items()}

    def tensor(self, vector: Vector) -> Tensor:
        """``vector`` on the device; on the CPU without a copy: only to be read."""
        return as_tensor(vector).to(self.compute.device)


def _kind(values: Tensor | np.ndarray) -> str:
    """The number format, the same name for both."""
    return str(values.dtype).removeprefix("torch.")


def as_tensor(array: np.ndarray) -> Tensor:
    """A tensor that shares ``array``'s memory, which may be read-only: never write into the result."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A copy of ``tensor`` as an array of its own."""
    return tensor.detach().to("cpu", copy=True).numpy()

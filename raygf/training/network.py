"""A network whose trainable parameters live in one flat vector, and its state as NumPy arrays.

The arrays are what is broadcast, returned and stored.
"""

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raygf.compute import Compute
from raygf.errors import CheckpointError
from raygf.training.peers import ALONE, Peers
from raygf.training.space import FlatSpace

Vector = NDArray[np.float32]
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class NetworkState:
    """``vector`` (P,): the trainable parameters. ``buffers``: everything else of the state dict, by name.

    The arrays may be read-only views of shared memory: never write into them.
    """

    vector: Vector
    buffers: Arrays

    def sha256(self) -> str:
        """SHA-256 over the vector, then the buffers in the order of their names."""
        digest = hashlib.sha256(np.ascontiguousarray(self.vector, dtype="<f4").data)
        for name in sorted(self.buffers):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(self.buffers[name]).data)
        return digest.hexdigest()


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
        parameters = dict(network.named_parameters())
        self.vector = self.space.pack(parameters)
        self.grad = torch.zeros_like(self.vector)
        frozen = {name: p.data for name, p in parameters.items() if name not in self.space.names}
        self._rest = {**frozen, **dict(network.named_buffers())}
        grads = self.space.views(self.grad)
        for name, view in self.space.views(self.vector).items():
            parameters[name].data = view
            parameters[name].grad = grads[name]

    def forward(
        self, images: Tensor, run: Callable[[Tensor], Sequence[Tensor]] | None = None
    ) -> Sequence[Tensor]:
        """Every exit's logits (B, classes), in the configured number format; or what ``run`` makes."""
        with self.compute.autocast():
            logits: Sequence[Tensor] = (run or self.network)(images)
        return logits

    @property
    def buffers(self) -> dict[str, Tensor]:
        """All of the state dict that is not in ``vector``, by name."""
        return self._rest

    def buffer_copies(self) -> dict[str, Tensor]:
        """``buffers``, copied."""
        return {name: tensor.clone() for name, tensor in self._rest.items()}

    def exchange(self, buffers: dict[str, Tensor]) -> None:
        """Swap the contents of the network's buffers and of ``buffers``."""
        for name, tensor in self._rest.items():
            mine = tensor.clone()
            tensor.copy_(buffers[name])
            buffers[name].copy_(mine)

    def load(self, state: NetworkState) -> None:
        """Copy ``state`` in; CheckpointError if it belongs to another network."""
        self.check(state)
        self.vector.copy_(as_tensor(state.vector))
        for name, tensor in self._rest.items():
            tensor.copy_(as_tensor(state.buffers[name]))

    def check(self, state: NetworkState) -> None:
        """Raise CheckpointError unless ``state`` has this network's sizes and number formats."""
        if state.vector.shape != (self.space.size,) or state.vector.dtype != np.float32:
            raise CheckpointError(
                f"the checkpoint has {state.vector.size:,} parameters ({state.vector.dtype}), this network "
                f"{self.space.size:,} (float32): it belongs to another network, classes or image sizes"
            )
        mine = {name: (tuple(tensor.shape), _kind(tensor)) for name, tensor in self._rest.items()}
        theirs = {name: (array.shape, _kind(array)) for name, array in state.buffers.items()}
        if mine != theirs:
            odd = sorted(set(mine.items()) ^ set(theirs.items()))[0][0]
            raise CheckpointError(
                f"buffer {odd} of the checkpoint does not fit: it belongs to another network, or to other "
                "classes or image sizes"
            )

    def check_restored(self, state: NetworkState) -> None:
        """Raise CheckpointError unless ``state`` belongs to this network and is finite throughout."""
        self.check(state)
        if bad := not_finite(self.space, as_tensor(state.vector), state.buffers):
            raise CheckpointError(
                f"the checkpoint's weights are not finite: {bad}; take an earlier checkpoint"
            )

    def state(self) -> NetworkState:
        """A copy of what the network holds now."""
        return NetworkState(to_numpy(self.vector), self.buffer_arrays())

    def buffer_arrays(self) -> Arrays:
        """A copy of the buffers alone."""
        return {name: to_numpy(tensor) for name, tensor in self._rest.items()}

    def tensor(self, vector: Vector) -> Tensor:
        """``vector`` on the device; on the CPU without a copy: only to be read."""
        return as_tensor(vector).to(self.compute.device)


class Average:
    """An exponential moving average of a network: ``ā ← d ā + (1 − d) a``, beginning as the first ``a``.

    ``d = max(0, 1 − 1 / (horizon · updates a round))``. Floating-point buffers are averaged alike, others are
    the last network's. Polyak, Juditsky 1992; evaluated as in Tarvainen, Valpola, NeurIPS 2017.
    """

    def __init__(self, horizon: float, device: str = "cpu") -> None:
        """``horizon``: in rounds; 0: nothing is averaged."""
        self._horizon, self._device = horizon, device
        self.tensors: dict[str, Tensor] = {}

    def update(self, vector: Tensor, buffers: Mapping[str, Tensor], updates: float = 1) -> None:
        """Take in a network's ``vector`` (P,) and ``buffers``; ``updates``: how many a round has."""
        named = {"average": vector, **{f"average/{name}": tensor for name, tensor in buffers.items()}}
        for name, new in named.items() if self._horizon else ():
            mine = self.tensors.get(name)
            if mine is None or not new.is_floating_point():
                self.tensors[name] = new.clone()
            else:
                mine.lerp_(new, min(1.0, 1 / (self._horizon * updates)))

    def arrays(self) -> Arrays:
        """What must be stored of it."""
        return {name: to_numpy(tensor) for name, tensor in self.tensors.items()}

    def restore(self, arrays: Arrays) -> None:
        """Take back what ``arrays`` gave, among others."""
        mine = {name: as_tensor(array) for name, array in arrays.items() if name.startswith("average")}
        self.tensors = {name: tensor.to(self._device, copy=True) for name, tensor in mine.items()}


def averaged(arrays: Arrays, state: NetworkState) -> NetworkState:
    """The average among a method's ``arrays``; ``state`` if there is none."""
    buffers = {name: arrays.get(f"average/{name}", array) for name, array in state.buffers.items()}
    return NetworkState(arrays.get("average", state.vector), buffers)


def _kind(values: Tensor | np.ndarray) -> str:
    """The number format, by the same name for tensors and arrays."""
    return str(values.dtype).removeprefix("torch.")


def as_tensor(array: np.ndarray) -> Tensor:
    """A tensor that shares ``array``'s memory, which may be read-only: never write into the result."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A copy of ``tensor`` as an array of its own."""
    return tensor.detach().to("cpu", copy=True).numpy()


def not_finite(space: FlatSpace, vector: Tensor, buffers: Mapping[str, np.ndarray] | None = None) -> str:
    """The first parameter tensor of ``vector`` (P,), or buffer, that is not finite; "" if all are.

    ``stages.0.conv.weight (12 of 432 values), the first of 7 tensors``
    """
    tensors = {name: as_tensor(array) for name, array in (buffers or {}).items()}
    if not torch.isfinite(vector.sum(dtype=torch.float64)):  # in the usual case one pass over the memory
        tensors = {**space.views(vector), **tensors}
    counts = {name: int((~torch.isfinite(tensor)).sum()) for name, tensor in tensors.items()}
    bad = [name for name, count in counts.items() if count]
    if not bad:
        return ""
    more = f", the first of {len(bad)} tensors" if len(bad) > 1 else ""
    return f"{bad[0]} ({counts[bad[0]]} of {tensors[bad[0]].numel()} values){more}"

"""The state of a network as NumPy arrays: what is broadcast, returned and stored."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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

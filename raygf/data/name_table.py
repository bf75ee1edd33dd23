"""Many names in little memory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class NameTable:
    """File names as two arrays. As Python strings, ImageNet's would take 100 MB in every process."""

    text: NDArray[np.uint8]
    """All names, one after the other."""
    ends: NDArray[np.int64]
    """Where each one ends (N,)."""

    @classmethod
    def of(cls, names: Iterable[str]) -> NameTable:
        """The table of ``names``, in order."""
        encoded = [os.fsencode(name) for name in names]
        lengths = np.array([len(name) for name in encoded], np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), lengths.cumsum())

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.text[start : self.ends[index]].tobytes())

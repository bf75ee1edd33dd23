"""Finding what is infinite or NaN, and saying where it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from raygf.fusion.flat import FlatSpace
from raygf.training.bound import as_tensor


def not_finite(vector: Tensor, space: FlatSpace) -> str:
    """The shallowest parameter tensor in which ``vector`` (P,) is not finite, for people; "" if it is.

    ``stages.0.conv.weight (12 of 432 values), the first of 7 tensors``
    """
    if torch.isfinite(vector.sum(dtype=torch.float64)):  # the usual case, one pass over the memory
        return ""
    parts = torch.split(vector, [slot.stop - slot.start for slot in space.slots])
    counts = [int((~torch.isfinite(part)).sum()) for part in parts]
    entries = zip(space.names, counts, map(len, parts), strict=True)
    return _said([entry for entry in entries if entry[1]])


def buffers_not_finite(buffers: Mapping[str, NDArray[Any]]) -> str:
    """As ``not_finite``, for the buffers of a network: running statistics of BatchNorm."""
    tensors = {name: as_tensor(array) for name, array in buffers.items()}
    counts = {name: int((~torch.isfinite(tensor)).sum()) for name, tensor in tensors.items()}
    return _said([(name, count, tensors[name].numel()) for name, count in counts.items() if count])


def _said(bad: list[tuple[str, int, int]]) -> str:
    if not bad:
        return ""
    name, count, size = bad[0]
    more = f", the first of {len(bad)} tensors" if len(bad) > 1 else ""
    return f"{name} ({count} of {size} values){more}"

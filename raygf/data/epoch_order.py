"""In which order a pass visits the images of a split.

Images that lie in *units* (Parquet row groups) are cheap to read only a unit at a time, and a training set
is far too large to keep. So the units are shuffled and laid end to end on a circle, and every image is
moved forward from the beginning of its unit by a random stretch of up to ``window`` places. The images
sorted by where they come to stand are the epoch. Then every image comes exactly once, all parts of the
epoch are alike, and at any time only the units of the last ``window`` places are needed. Units near the end
of the circle reach over its beginning; those are read twice. If the window holds the whole split, the order
is a plain random permutation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class EpochOrder:
    """One pass over a split."""

    images: Indices
    """Indices in the store, in order (N,)."""
    visits: Indices | None
    """For every image a number for the stretch of the pass in which its unit is kept (N,): twice the unit's
    place in the pass, one more where it is read again. None: no units."""


def in_order(images: Indices, units: Indices | None) -> EpochOrder:
    """The ``images`` as they stand; ``units`` (N,) are those of these images."""
    return EpochOrder(images, None if units is None else 2 * units)


def shuffled(images: Indices, units: Indices | None, window: int, stream: torch.Generator) -> EpochOrder:
    """The ``images`` (N,) in random order, as the module describes.

    Args:
        images: indices in the store.
        units: which unit each lies in (N,); None: they are read singly, and fully shuffled.
        window: images of this many places are kept at a time, apart from one unit.
        stream: where the draws come from.
    """
    count = len(images)
    if units is None:
        return EpochOrder(images[_permutation(count, stream)], None)
    _, unit, sizes = np.unique(units, return_inverse=True, return_counts=True)
    turn = _permutation(len(sizes), stream)  # the units in the order of this epoch
    rank = np.empty_like(turn)
    rank[turn] = np.arange(len(turn))
    if window >= count:
        order = _permutation(count, stream)
        return EpochOrder(images[order], 2 * rank[unit[order]])
    starts = np.empty_like(turn)
    starts[turn] = sizes[turn].cumsum() - sizes[turn]
    moved = torch.rand(count, generator=stream, dtype=torch.float64).numpy() * window
    places = starts[unit] + moved
    again = places >= count  # beyond the end: at the beginning, where the unit is read for itself
    order = np.argsort(np.where(again, places - count, places), kind="stable")
    return EpochOrder(images[order], (2 * rank[unit] + again)[order])


def _permutation(count: int, stream: torch.Generator) -> Indices:
    permutation: Indices = torch.randperm(count, generator=stream).numpy()
    return permutation

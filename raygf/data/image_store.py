"""Encoded images on disk, as the streaming data sets see them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class ImageStore(Protocol):
    """Which encoded images there are, and how to get at them. Plain values: it is sent to other processes."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """The label of every image (N,)."""
        ...

    @property
    def units(self) -> NDArray[np.int64] | None:
        """Which unit every image lies in (N,): units are read as a whole. None: images are read singly."""
        ...

    @property
    def bytes_per_image(self) -> float:
        """Mean size of an image in memory; only asked for where there are units."""
        ...

    def where(self, image: int) -> str:
        """What to call an image in messages."""
        ...

    def check(self) -> None:
        """Raise DataError if the files can't be seen from this machine."""
        ...

    def open(self) -> ImageReader:
        """A reader, for one process."""
        ...


class ImageReader(Protocol):
    """Reads encoded images, keeping the units of those visits that are under way."""

    def read(self, image: int, visit: int) -> NDArray[np.uint8] | None:
        """An encoded image as a writable array of its bytes, or None where there is none.

        Args:
            image: index in the store.
            visit: the stretch of a pass in which the image's unit is kept; see ``raygf.data.epoch_order``.

        Raises:
            DataError: a file is gone or damaged.
        """
        ...

    def leave(self, visits: Iterable[int]) -> None:
        """Forget the units of visits that are over."""
        ...

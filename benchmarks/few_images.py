"""A few real images: the first ones of a Parquet set, or of scikit-learn's digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from raygf.data.base import InputSpec, channel_statistics
from raygf.data.in_memory import ImageSet
from raygf.data.pixels import decode_rgb
from raygf.data.small_sets import load_digits, resize
from raygf.data.splits import Split
from raygf.data.stores import index_shards
from raygf.errors import DataError

PADDING = 1 / 8
"""Of the random crop, as a share of the image's side: the 4 pixels of CIFAR."""


def few_images(path: str, count: int, size: int) -> ImageSet:
    """A data set of ``count`` training images of 3 x ``size`` x ``size``, and no others.

    Args:
        path: folder with train*.parquet; empty: digits, their grey in all three channels.

    Raises:
        DataError: there are not that many images, or they can't be read.
    """
    train, names = _first_rows(path, count, size) if path else _digits(count, size)
    if len(train) < count:
        raise DataError(f"{path or 'digits'}: there are {len(train)} images, not {count}")
    none = train.take(np.arange(0))
    spec = InputSpec(3, size, size, len(names))
    pad = round(PADDING * size)
    statistics = channel_statistics(train.images)
    return ImageSet("few images", spec, names, train, none, none, statistics, pad, flip=bool(path))


def _digits(count: int, size: int) -> tuple[Split, tuple[str, ...]]:
    source = load_digits(size)
    few = source.train.take(np.arange(min(count, len(source.train))))
    return Split(few.images.repeat(3, axis=1), few.labels), source.class_names


def _first_rows(path: str, count: int, size: int) -> tuple[Split, tuple[str, ...]]:
    files = sorted(Path(path).expanduser().glob("train*.parquet"))
    if not files:
        raise DataError(f"{path}: no files train*.parquet")
    store = index_shards(files[:1])
    reader = store.open()
    rows = range(min(count, len(store.labels)))
    images = [resize(_decoded(reader.read(row, int(store.units[row])), row)[None], size) for row in rows]
    names = store.class_names or tuple(str(label) for label in range(int(store.labels.max()) + 1))
    return Split(np.concatenate(images), store.labels[: len(rows)]), names


def _decoded(file: np.ndarray | None, row: int) -> np.ndarray:
    if file is None:
        raise DataError(f"row {row} has no image")
    return decode_rgb(file.tobytes())

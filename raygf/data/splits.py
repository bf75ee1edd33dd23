"""One split's images and labels, and how a run's seed divides the training images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from raygf.compute import generator
from raygf.config.run import DataConfig
from raygf.data.base import ChannelStatistics
from raygf.errors import DataError

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Split:
    """Images uint8 (N, C, H, W), 0 black to 255, and their labels int64 (N,).

    Sent through Ray's object store, the arrays arrive as read-only views: nothing may write into them.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise DataError(f"images must be uint8 (N, C, H, W), not {self.images.dtype} {self.images.shape}")
        if self.labels.dtype != np.int64 or self.labels.shape != self.images.shape[:1]:
            raise DataError(
                f"labels must be int64 ({len(self.images)},), not {self.labels.dtype} {self.labels.shape}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Indices) -> Split:
        """The images at ``indices`` (K,), copied, in that order."""
        return Split(self.images[indices], self.labels[indices])


def divide(
    labels: NDArray[np.int64], class_names: tuple[str, ...], config: DataConfig, seed: int
) -> tuple[Indices, Indices]:
    """The training and the validation images of run ``seed``, as increasing indices into ``labels`` (N,).

    ``config.val`` images are drawn first; of the rest, ``config.per_class`` of every class are kept; of
    those, ``config.train_limit``. Each draw has a stream of its own and takes the head of a permutation, so
    that a smaller subset of one seed lies within a larger one.

    Raises:
        DataError: more images are asked for than there are, or less than two are left to train on.
    """
    train, val = hold_out(len(labels), config.val, seed)
    if config.per_class is not None:
        train = train[keep_per_class(labels[train], class_names, config.per_class, seed)]
    if config.train_limit is not None:
        train = train[keep_limit(len(train), config.train_limit, seed)]
    if len(train) < 2:
        raise DataError(
            f"{len(train)} training image is left: at least 2 are needed to train; lower --data.val, raise "
            "--data.train-limit or --data.per-class"
        )
    return train, val


def hold_out(count: int, val: int, seed: int) -> tuple[Indices, Indices]:
    """``count`` indices divided by a seeded permutation: (training, ``val`` for validation), increasing."""
    if val >= count:
        raise DataError(
            f"data.val = {val}: there are only {count} training images, so none would be left to train; "
            "lower --data.val"
        )
    order = _permutation(count, seed, "val")
    return np.sort(order[val:]), np.sort(order[:val])


def keep_per_class(
    labels: NDArray[np.int64], class_names: tuple[str, ...], per_class: int, seed: int
) -> Indices:
    """Increasing indices into ``labels`` (N,) of ``per_class`` images of every class, chosen by seed."""
    order = _permutation(len(labels), seed, "per_class")
    shuffled = labels[order]
    kept = []
    for label, name in enumerate(class_names):
        members = order[shuffled == label]
        if len(members) < per_class:
            raise DataError(
                f"data.per_class = {per_class}: class {name!r} has only {len(members)} training images; "
                "lower --data.per-class"
            )
        kept.append(members[:per_class])
    return np.sort(np.concatenate(kept))


def keep_limit(count: int, limit: int, seed: int) -> Indices:
    """``limit`` of ``count`` indices, chosen by seed, increasing."""
    if limit > count:
        raise DataError(
            f"data.train_limit = {limit}: only {count} training images are left; lower --data.train-limit"
        )
    return np.sort(_permutation(count, seed, "train_limit")[:limit])


def _permutation(count: int, seed: int, purpose: str) -> Indices:
    permutation: Indices = torch.randperm(count, generator=generator(seed, "data", purpose)).numpy()
    return permutation


@dataclass(frozen=True, eq=False)
class Source:
    """The splits that a data set comes with; all images have one size."""

    name: str
    class_names: tuple[str, ...]
    train: Split
    test: Split
    val: Split | None = None
    """A validation split of its own; None where it is to be held out of ``train``."""
    statistics: ChannelStatistics | None = None
    """Published channel statistics; None where they are to be computed of the training images."""

"""Labelled images, and how a run's configuration and seed divide them into training, validation and test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from raygf.compute import generator
from raygf.config.run import DataConfig
from raygf.data.base import ChannelStatistics, Indices, digest_of, permutation
from raygf.data.stores import Part
from raygf.errors import DataError

TEST_SEED = 0  # Not the run's: runs of different seeds are compared on the same test images.


T = TypeVar("T", "Split", Part)
"""Images in memory, or on disk."""


@dataclass(frozen=True, eq=False)
class Source(Generic[T]):
    """What a data set comes with, before a run divides it."""

    name: str
    class_names: tuple[str, ...]
    train: T
    test: T | None = None
    """None where it has to be held out of ``train``."""
    val: T | None = None
    """A validation split beside the test split; None where it is to be held out of ``train``."""
    statistics: ChannelStatistics | None = None
    """Published channel statistics; None where they are to be computed of the training images."""

    def divide(self, config: DataConfig, seed: int) -> tuple[T, T, T]:
        """Training, validation and test images of run ``seed``; the test images don't depend on the seed.

        Raises DataError: more images are asked for than there are, less than two are left to train on, or a
        split is to be held out that the set brings, or the other way round.
        """
        if self.val is not None and config.val:
            raise DataError(
                f"data.val = {config.val}: {self.name} has a validation split of its own; "
                "set --data.val 0 to use it"
            )
        total, count, test = len(self.train.labels), config.test, self.test
        rest = np.arange(total)
        if test is None:
            if count is None:
                raise DataError(
                    f"{self.name} has no test images (a folder val, or files val*.parquet or test*.parquet); "
                    "hold some training images out with --data.test"
                )
            rest, held_out = _hold_out("test", count, total, TEST_SEED)
            test = self.train.take(held_out)
        elif count is not None:
            own = f"{self.name} has test images of its own"
            raise DataError(f"data.test = {count}: {own}; leave --data.test out")
        train, val = divide(self.train.labels[rest], self.class_names, config, seed)
        own_val = self.val if self.val is not None else self.train.take(rest[val])
        kept = self.train if len(train) == total else self.train.take(rest[train])
        return kept, own_val, test


@dataclass(frozen=True, eq=False)
class Split:
    """Images uint8 (N, C, H, W), 0 black to 255, and their labels int64 (N,).

    Sent through Ray's object store, the arrays arrive as read-only views: nothing may write into them.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def digest(self) -> str:
        """Of pixels and labels."""
        return digest_of(self.images, self.labels)

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

    Raises DataError: more images are asked for than there are, or less than two are left to train on.
    """
    train, val = _hold_out("val", config.val, len(labels), seed)
    if config.per_class is not None:
        train = train[_keep_per_class(labels[train], class_names, config.per_class, seed)]
    if config.train_limit is not None:
        if config.train_limit > len(train):
            raise DataError(
                f"data.train_limit = {config.train_limit}: only {len(train)} training images are left; "
                "lower --data.train-limit"
            )
        order = permutation(len(train), generator(seed, "data", "train_limit"))
        train = train[np.sort(order[: config.train_limit])]
    if len(train) < 2:
        raise DataError(
            f"{len(train)} training image is left: at least 2 are needed to train; lower --data.val, raise "
            "--data.train-limit or --data.per-class"
        )
    return train, val


def _hold_out(split: str, count: int, total: int, seed: int) -> tuple[Indices, Indices]:
    """``total`` indices divided by a seeded permutation, increasing: the rest, and ``count`` held out."""
    if count >= total:
        raise DataError(
            f"data.{split} = {count}: there are only {total} training images, so none would be left to "
            f"train; lower --data.{split}"
        )
    order = permutation(total, generator(seed, "data", split))
    return np.sort(order[count:]), np.sort(order[:count])


def _keep_per_class(
    labels: NDArray[np.int64], class_names: tuple[str, ...], per_class: int, seed: int
) -> Indices:
    """Increasing indices into ``labels`` (N,) of ``per_class`` images of every class, chosen by seed."""
    order = permutation(len(labels), generator(seed, "data", "per_class"))
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

"""From configuration to a data set on disk: finds the files, reads the labels, divides the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from raygf.config import DataConfig
from raygf.data.base import InputSpec
from raygf.data.copies import refuse_copies
from raygf.data.image_folder import index_folder
from raygf.data.image_store import ImageStore
from raygf.data.shards import ShardStore, common_names, index_shards
from raygf.data.splits import divide
from raygf.data.streamed_batches import Part
from raygf.data.streamed_set import StreamedSet
from raygf.data.view_maker import ViewSizes
from raygf.errors import DataError
from raygf.paths import local_path
from raygf.seeding import generator

TEST_SEED = 0  # Not the run's: runs of different seeds are compared on the same test images.
UNLABELLED = -1  # What ImageNet's test images have for a label on the Hugging Face hub.


@dataclass(frozen=True, eq=False)
class StreamedSource:
    """What a set on disk comes with."""

    name: str
    class_names: tuple[str, ...]
    train: ImageStore
    test: ImageStore | None
    """None where it has to be held out of ``train``."""
    val: ImageStore | None = None
    """A validation split beside the test split; None where it is to be held out of ``train``."""


def load_streamed(config: DataConfig, seed: int) -> StreamedSet:
    """The set of ``config``, divided by ``seed``; a test set held out does not depend on the seed.

    Raises:
        DataError: files are missing, damaged or there twice, labels out of range, or images too few.
    """
    if config.image_size is not None:
        raise DataError(
            f"data.image_size = {config.image_size}: not for {config.source}; set --data.crop, --data.resize"
        )
    if not config.path:
        raise DataError(f"data.path is empty: {config.source} needs the set's folder; set --data.path")
    folder = local_path("data.path", config.path)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; set --data.path to the folder of the image set")
    source = _find_folders(folder) if config.source == "imagefolder" else _find_shards(folder)
    train, val, test = _divide(source, config, seed)
    return StreamedSet(
        source.name,
        InputSpec(3, config.crop, config.crop, len(source.class_names)),
        source.class_names,
        train,
        val,
        test,
        ViewSizes(config.crop, config.resize, config.flip),
        config.workers,
        config.max_undecodable,
    )


def _find_folders(folder: Path) -> StreamedSource:
    if not (folder / "train").is_dir():
        raise DataError(f"{folder}: no folder train in it; expected {folder}/train/CLASS/*.JPEG")
    train = index_folder(str(folder), "train")
    test = None
    if (folder / "val").is_dir():
        test = index_folder(str(folder), "val", train.class_names)
    return StreamedSource(folder.name, train.class_names, train, test)


def _find_shards(folder: Path) -> StreamedSource:
    """Files ``train*.parquet``, and ``val*.parquet`` or ``test*.parquet``, here or in the subfolder ``data``.

    The test images are those in ``test*.parquet`` if they have labels, else those in ``val*.parquet``.
    """
    place = folder if any(folder.glob("*.parquet")) else folder / "data"
    found = {name: sorted(place.glob(f"{name}*.parquet")) for name in ("train", "val", "test")}
    if not found["train"]:
        raise DataError(f"{folder}: no files train*.parquet here or in its subfolder data; set --data.path")
    stores = {name: index_shards(files) for name, files in found.items() if files}
    for files in found.values():
        refuse_copies(files)
    if "test" in stores and (stores["test"].labels == UNLABELLED).all():
        del stores["test"]
    names = _class_names(list(stores.values()), folder)
    val, test = stores.get("val"), stores.get("test")
    if test is None:
        return StreamedSource(folder.name, names, stores["train"], val)
    return StreamedSource(folder.name, names, stores["train"], test, val)


def _class_names(stores: Sequence[ShardStore], folder: Path) -> tuple[str, ...]:
    """The names that the files give, or numbers; all labels are checked against them."""
    names = common_names((store.files[0], store.class_names) for store in stores)
    if not names:
        largest = max(int(store.labels.max()) for store in stores)
        rows = sum(len(store.labels) for store in stores)
        if largest >= rows:
            raise DataError(
                f"{folder}: labels go up to {largest} with only {rows} images; number the classes from 0"
            )
        names = tuple(str(label) for label in range(largest + 1))
    for store in stores:
        outside = (store.labels < 0) | (store.labels >= len(names))
        if outside.any():
            row = int(outside.argmax())
            raise DataError(
                f"{store.where(row)}: label {store.labels[row]} is out of range; labels must be from 0 to "
                f"{len(names) - 1}"
            )
    return names


def _divide(source: StreamedSource, config: DataConfig, seed: int) -> tuple[Part, Part, Part]:
    """Training, validation and test images."""
    if source.val is not None and config.val:
        raise DataError(
            f"data.val = {config.val}: {source.name} has a validation split of its own; "
            "set --data.val 0 to use it"
        )
    rest, test = _held_out_test(source, config.test)
    train, val = divide(source.train.labels[rest], source.class_names, config, seed)
    own = source.val
    return (
        Part(source.train, rest[train]),
        Part(source.train, rest[val]) if own is None else Part(own, np.arange(len(own.labels))),
        test,
    )


def _held_out_test(source: StreamedSource, count: int | None) -> tuple[NDArray[np.int64], Part]:
    """The training images that are left, and the test images."""
    total = len(source.train.labels)
    if source.test is not None:
        if count is not None:
            raise DataError(
                f"data.test = {count}: {source.name} has test images of its own; leave --data.test out"
            )
        return np.arange(total), Part(source.test, np.arange(len(source.test.labels)))
    if count is None:
        raise DataError(
            f"{source.name} has no test images (a folder val, or files val*.parquet or test*.parquet); hold "
            "some training images out with --data.test"
        )
    if count >= total:
        raise DataError(
            f"data.test = {count}: there are only {total} training images, so none would be left to train; "
            "lower --data.test"
        )
    order = torch.randperm(total, generator=generator(TEST_SEED, "data", "test")).numpy()
    return np.sort(order[count:]), Part(source.train, np.sort(order[:count]))

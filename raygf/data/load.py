"""From configuration to data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from raygf.compute import generator
from raygf.config.fields import local_path
from raygf.config.run import DataConfig
from raygf.data.base import Dataset, InputSpec, channel_statistics
from raygf.data.in_memory import ImageSet
from raygf.data.small_sets import load_cifar, load_digits, load_parquet
from raygf.data.splits import Source, Split, divide
from raygf.data.stores import ImageStore, ShardStore, common_names, index_folder, index_shards, refuse_copies
from raygf.data.streaming import Part, StreamedSet
from raygf.data.workers import ViewSizes
from raygf.errors import DataError

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
    train, val, test = _divide_streamed(source, config, seed)
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


def _divide_streamed(source: StreamedSource, config: DataConfig, seed: int) -> tuple[Part, Part, Part]:
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


STREAMED = ("imagefolder", "shards")


def load_data(config: DataConfig, seed: int) -> Dataset:
    """The data set of ``config``, divided by ``seed``: held in memory, or left on disk if it is of that kind.

    Raises:
        DataError: the data set is missing or damaged, or has fewer images than ``config`` asks for.
    """
    return load_streamed(config, seed) if config.source in STREAMED else _load_images(config, seed)


def _load_images(config: DataConfig, seed: int) -> ImageSet:
    if config.test is not None:
        raise DataError(
            f"data.test = {config.test}: {config.source} has test images of its own; leave --data.test out"
        )
    source = _read(config)
    train, val = _divide(source, config, seed)
    _, channels, height, width = train.images.shape
    if config.pad >= min(height, width):
        raise DataError(
            f"data.pad = {config.pad}: of images of {width}x{height} pixels a crop could show nothing; lower "
            "--data.pad or set --data.image-size"
        )
    return ImageSet(
        name=source.name,
        spec=InputSpec(channels, height, width, len(source.class_names)),
        class_names=source.class_names,
        train=train,
        val=val,
        test=source.test,
        statistics=source.statistics or channel_statistics(train.images),
        pad=config.pad,
        flip=config.flip,
    )


def _read(config: DataConfig) -> Source:
    match config.source:
        case "digits":
            return load_digits(config.image_size)
        case "cifar10" | "cifar100":
            return load_cifar(config.source, config.path, config.image_size)
        case "parquet":
            return load_parquet(config.path, config.image_size)
        case _:
            raise AssertionError(f"{config.source} is not held in memory")


def _divide(source: Source, config: DataConfig, seed: int) -> tuple[Split, Split]:
    if source.val is not None and config.val:
        raise DataError(
            f"data.val = {config.val}: {source.name} has a validation split of its own; "
            "set --data.val 0 to use it"
        )
    train, val = divide(source.train.labels, source.class_names, config, seed)
    kept = source.train if len(train) == len(source.train) else source.train.take(train)
    return kept, source.val if source.val is not None else source.train.take(val)

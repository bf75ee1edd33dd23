"""From configuration to data set: finds the images, divides them, and decodes them or leaves them on disk."""

from pathlib import Path
from typing import Any

from raygf.config.fields import local_path
from raygf.config.run import DataConfig
from raygf.data.augment import Augmentation
from raygf.data.base import Dataset, InputSpec, channel_statistics
from raygf.data.in_memory import ImageSet
from raygf.data.small_sets import HUB, decode_parts, load_cifar, load_digits, load_own, require_hub
from raygf.data.splits import Source, Split
from raygf.data.stores import Part, ShardStore, common_names, index_folder, index_shards
from raygf.data.streaming import STATISTICS, StreamedSet
from raygf.errors import DataError, import_function

UNLABELLED = -1  # What ImageNet's test images have for a label on the Hugging Face hub.


def load_data(config: DataConfig, seed: int) -> Dataset:
    """The data set of ``config``, divided by ``seed``: held in memory, or left on disk if it is of that kind.

    Raises DataError: files are missing, damaged or there twice, labels are out of range, images are too few
    for what ``config`` asks for, or too many for the memory.
    """
    match config.source:
        case "imagefolder" | "shards":
            return _load_streamed(config, seed)
        case "parquet":
            shards = find_shards(_folder(config))
            return _hold(shards, decode_parts(shards.divide(config, seed), config.image_size), config)
        case "digits":
            images = load_digits(config.image_size)
        case "cifar10" | "cifar100":
            images = load_cifar(config.source, config.path, config.image_size)
        case _:
            images = load_own(config)
    return _hold(images, images.divide(config, seed), config)


def check_source(config: DataConfig, files: bool = True) -> None:
    """Raise what ``load_data`` would raise at once: no such function or package, with ``files`` no folder."""
    if config.source.startswith(HUB):
        require_hub(config)
    elif ":" in config.source:
        import_function("data.source", config.source)
    elif files and config.source != "digits":
        _folder(config)


def _load_streamed(config: DataConfig, seed: int) -> StreamedSet:
    if config.image_size is not None:
        raise DataError(
            f"data.image_size = {config.image_size}: not for {config.source}; set --data.crop, --data.resize"
        )
    folder = _folder(config)
    source = find_folders(folder) if config.source == "imagefolder" else find_shards(folder)
    return StreamedSet(
        source.name,
        InputSpec(3, config.crop, config.crop, len(source.class_names)),
        source.class_names,
        *source.divide(config, seed),
        STATISTICS,
        crop=config.crop,
        resize=config.resize,
        flip=config.flip,
        augmentation=Augmentation(config.augment, config.erasing, config.transform),
        workers=config.workers,
    )


def _hold(source: Source[Any], splits: tuple[Split, Split, Split], config: DataConfig) -> ImageSet:
    """The set in memory of training, validation and test images ``splits``, which come from ``source``."""
    images = splits[0].images
    _, channels, height, width = images.shape
    if config.pad >= min(height, width):
        raise DataError(
            f"data.pad = {config.pad}: of images of {width}x{height} pixels a crop could show nothing; lower "
            "--data.pad or set --data.image-size"
        )
    if channels not in (1, 3) and config.augment != "none":
        raise DataError(f"data.augment = {config.augment!r}: for images of 1 or 3 channels, not {channels}")
    return ImageSet(
        source.name,
        InputSpec(channels, height, width, len(source.class_names)),
        source.class_names,
        *splits,
        source.statistics or channel_statistics(images),
        pad=config.pad,
        flip=config.flip,
        augmentation=Augmentation(config.augment, config.erasing, config.transform),
    )


def _folder(config: DataConfig) -> Path:
    """The folder that ``data.path`` stands for."""
    if not config.path:
        raise DataError(f"data.path is empty: {config.source} needs the set's folder; set --data.path")
    folder = local_path("data.path", config.path)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; set --data.path to the folder of the image set")
    return folder


def find_folders(folder: Path) -> Source[Part]:
    """Class folders in ``train`` and, where present, ``val``, which are the test images."""
    if not (folder / "train").is_dir():
        raise DataError(f"{folder}: no folder train in it; expected {folder}/train/CLASS/*.JPEG")
    train = index_folder(str(folder), "train")
    test = None
    if (folder / "val").is_dir():
        test = Part.of(index_folder(str(folder), "val", train.class_names))
    return Source(folder.name, train.class_names, Part.of(train), test)


def find_shards(folder: Path) -> Source[Part]:
    """Files ``train*.parquet``, and ``val*.parquet`` or ``test*.parquet``, here or in the subfolder ``data``.

    The test images are those in ``test*.parquet`` if they have labels, else those in ``val*.parquet``.
    """
    place = folder if any(folder.glob("*.parquet")) else folder / "data"
    found = {name: sorted(place.glob(f"{name}*.parquet")) for name in ("train", "val", "test")}
    if not found["train"]:
        raise DataError(f"{folder}: no files train*.parquet here or in its subfolder data; set --data.path")
    stores = {name: index_shards(files) for name, files in found.items() if files}
    if "test" in stores and (stores["test"].labels == UNLABELLED).all():
        del stores["test"]
    names = _class_names(list(stores.values()), folder)
    parts = {name: Part.of(store) for name, store in stores.items()}
    val, test = parts.get("val"), parts.get("test")
    if test is None:
        test, val = val, None
    return Source(folder.name, names, parts["train"], test, val)


def _class_names(stores: list[ShardStore], folder: Path) -> tuple[str, ...]:
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

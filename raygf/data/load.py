"""From configuration to data set."""

from __future__ import annotations

from raygf.config import DataConfig
from raygf.data.base import Dataset, InputSpec
from raygf.data.cifar import load_cifar
from raygf.data.digits import load_digits
from raygf.data.images import ImageSet
from raygf.data.parquet import load_parquet
from raygf.data.source import Source
from raygf.data.splits import Split, divide
from raygf.data.statistics import channel_statistics
from raygf.data.streamed_load import load_streamed
from raygf.errors import DataError

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

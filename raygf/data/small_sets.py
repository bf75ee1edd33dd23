"""Image sets in Parquet files as on the Hugging Face hub: encoded images beside whole-number labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from raygf.config.fields import local_path
from raygf.data.base import ChannelStatistics
from raygf.data.pixels import decode_rgb
from raygf.data.splits import Source, Split
from raygf.data.stores import Columns, find_columns, refuse_copies
from raygf.errors import DataError

MAX_BYTES = 8 * 2**30


def require_memory(count: int, shape: Sequence[int]) -> None:
    """Raise DataError if ``count`` images uint8 of ``shape`` (C, H, W) are more than may be held in memory.

    To be asked before they are scaled: the first one may be too large already.
    """
    needed = count * math.prod(shape)
    if needed > MAX_BYTES:
        raise DataError(
            f"{count} images of {shape[-1]}x{shape[-2]} pixels take {needed / 2**30:.1f} GiB; at most "
            f"{MAX_BYTES / 2**30:g} GiB are held in memory: set a smaller --data.image-size"
        )


def resize(images: NDArray[np.uint8], size: int | None) -> NDArray[np.uint8]:
    """``images`` uint8 (N, C, H, W) as (N, C, size, size): bilinear, smoothed when made smaller.

    An image that is not square is cut to its central square first, so nothing is distorted. ``size`` None
    leaves the images as they are.

    Raises:
        DataError: they would take more memory than a set may.
    """
    if size is None:
        return images
    require_memory(len(images), (images.shape[1], size, size))
    side = min(images.shape[2:])
    top, left = ((length - side) // 2 for length in images.shape[2:])
    square = images[:, :, top : top + side, left : left + side]
    if side == size:
        return np.ascontiguousarray(square)
    # tensor() copies: the array may be read-only, which from_numpy can't stand for.
    scaled = functional.interpolate(torch.tensor(square), size=(size, size), mode="bilinear", antialias=True)
    pixels: NDArray[np.uint8] = scaled.contiguous().numpy()
    return pixels


ROWS = 1000  # Rows read at once, whatever the size of the row groups.
PATTERNS = {"train": "train*.parquet", "val": "val*.parquet", "test": "test*.parquet"}


@dataclass(frozen=True)
class ParquetFile:
    """One file of a split, before its images are read."""

    path: Path
    rows: int
    columns: Columns


def load_parquet(path: str, image_size: int | None) -> Source:
    """The set in ``path``: files ``train*.parquet``, ``test*.parquet`` and, where present, ``val*.parquet``.

    The files lie in the folder itself or in its subfolder ``data``. All images must have one size unless
    ``image_size`` scales them (the central square of each, see ``raygf.data.small_sets``).

    Raises:
        DataError: the folder, a split, a column or an image is missing or damaged, a file is there twice, a
            label is out of range, or the pixels would take more than 8 GiB. Rows are counted from 0.
    """
    folder, found = _find_files(path)
    files = {name: [_open_file(file) for file in paths] for name, paths in found.items()}
    for paths in found.values():
        refuse_copies(paths)
    names = _common_names([file for part in files.values() for file in part])
    reader = _Reader(_row_count(files), len(names) or None, image_size)
    splits = {name: reader.read(part) for name, part in files.items()}
    return Source(
        folder.name,
        names or _numbered(splits, folder),
        splits["train"],
        splits["test"],
        splits.get("val"),
    )


def _find_files(path: str) -> tuple[Path, dict[str, list[Path]]]:
    """The folder, and its files of each split that is there."""
    if not path:
        raise DataError("data.path is empty: parquet needs the folder of the image set; set --data.path")
    folder = local_path("data.path", path)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; set --data.path to the folder of the image set")
    for place in (folder, folder / "data"):
        found = {name: sorted(place.glob(pattern)) for name, pattern in PATTERNS.items()}
        if any(found.values()):
            break
    else:
        raise DataError(f"{folder}: no files train*.parquet here or in its subfolder data; set --data.path")
    for name in ("train", "test"):
        if not found[name]:
            raise DataError(f"{place}: no files {PATTERNS[name]}; a {name} split is needed")
    return folder, {name: files for name, files in found.items() if files}


def _open_file(path: Path) -> ParquetFile:
    with _parquet(path) as file:
        return ParquetFile(path, file.metadata.num_rows, find_columns(file.schema_arrow, path))


def _common_names(files: list[ParquetFile]) -> tuple[str, ...]:
    """The class names of all ``files``; empty if none has any."""
    named = [file for file in files if file.columns.class_names]
    for file in named[1:]:
        if file.columns.class_names != named[0].columns.class_names:
            raise DataError(f"{file.path}: its class names differ from those of {named[0].path}")
    return named[0].columns.class_names if named else ()


def _row_count(files: dict[str, list[ParquetFile]]) -> int:
    for part in files.values():
        if not any(file.rows for file in part):
            raise DataError(f"{part[0].path}: the split has no rows; fetch it again")
    return sum(file.rows for part in files.values() for file in part)


def _numbered(splits: dict[str, Split], folder: Path) -> tuple[str, ...]:
    """Numbers for names: 0 to the largest label."""
    largest = max(int(split.labels.max()) for split in splits.values())
    rows = sum(len(split) for split in splits.values())
    if largest >= rows:
        raise DataError(
            f"{folder}: labels go up to {largest} with only {rows} images; number the classes from 0"
        )
    return tuple(str(label) for label in range(largest + 1))


class _Reader:
    """Reads splits into arrays of one image size, that of the first image of all."""

    def __init__(self, total_rows: int, classes: int | None, image_size: int | None) -> None:
        self._total_rows = total_rows
        self._classes = classes
        self._image_size = image_size
        self._shape: tuple[int, ...] | None = None

    def read(self, files: list[ParquetFile]) -> Split:
        """All rows of ``files``, in order."""
        rows = sum(file.rows for file in files)
        images: NDArray[np.uint8] | None = None
        labels = np.empty(rows, np.int64)
        position = 0
        for file in files:
            for first, encoded, batch_labels in _batches(file):
                _check_labels(batch_labels, self._classes, file.path, first)
                labels[position : position + len(encoded)] = batch_labels
                for row, data in enumerate(encoded, first):
                    pixels = self._pixels(data, file.path, row)
                    if images is None:
                        images = np.empty((rows, *pixels.shape), np.uint8)
                    images[position] = pixels
                    position += 1
        assert images is not None and position == rows, "a split without rows was refused before"
        return Split(images, labels)

    def _pixels(self, data: bytes | None, path: Path, row: int) -> NDArray[np.uint8]:
        if data is None:
            raise DataError(f"{path}: row {row} has no image bytes; images must be stored inside the file")
        try:
            pixels: NDArray[np.uint8] = resize(decode_rgb(data)[None], self._image_size)[0]
        except ValueError as error:
            raise DataError(f"{path}: row {row}: {error}; fetch it again or leave the row out") from error
        if self._shape is None:
            self._shape = pixels.shape
            require_memory(self._total_rows, self._shape)
        if pixels.shape != self._shape:
            raise DataError(
                f"{path}: row {row}: image sizes differ: {_size(pixels.shape)} here, {_size(self._shape)} in "
                "the first; set --data.image-size"
            )
        return pixels


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[-1]}x{shape[-2]}"


def _check_labels(labels: NDArray[np.int64], classes: int | None, path: Path, first: int) -> None:
    outside = labels < 0 if classes is None else (labels < 0) | (labels >= classes)
    if outside.any():
        row = int(outside.argmax())
        span = "at least 0" if classes is None else f"from 0 to {classes - 1}"
        raise DataError(
            f"{path}: row {first + row}: label {labels[row]} is out of range; labels must be {span}"
        )


def _batches(file: ParquetFile) -> Iterator[tuple[int, list[bytes | None], NDArray[np.int64]]]:
    """The file's rows in batches: number of the first row, encoded images, labels (B,)."""
    first = 0
    with _parquet(file.path) as parquet:
        batches = parquet.iter_batches(ROWS, columns=[file.columns.image, file.columns.label])
        while (batch := _damage_named(file.path, lambda: next(batches, None))) is not None:
            yield (
                first,
                _encoded(batch, file.columns.image),
                _labels(batch, file.columns.label, file.path, first),
            )
            first += len(batch)


def _encoded(batch: Any, column: str) -> list[bytes | None]:
    import pyarrow.compute as pc

    name, _, field = column.partition(".")
    values = pc.struct_field(batch.column(name), field) if field else batch.column(name)
    encoded: list[bytes | None] = values.to_pylist()
    return encoded


def _labels(batch: Any, column: str, path: Path, first: int) -> NDArray[np.int64]:
    values = batch.column(column)
    if values.null_count:
        row = first + int(values.is_null().to_numpy(zero_copy_only=False).argmax())
        raise DataError(f"{path}: row {row} has no label; every row needs one")
    labels: NDArray[np.int64] = values.to_numpy(zero_copy_only=False).astype(np.int64)
    return labels


def _parquet(path: Path) -> Any:
    """The Parquet file at ``path``, open."""
    import pyarrow.parquet as pq

    return _damage_named(path, lambda: pq.ParquetFile(path))


def _damage_named(path: Path, read: Callable[[], Any]) -> Any:
    """What ``read`` returns; its complaints about the file become one line that names it."""
    import pyarrow as pa

    try:
        return read()
    except (pa.ArrowException, OSError) as error:
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: not a whole Parquet file ({cause}); fetch it again") from error


# Of the training images, as in the program of MSDNet (github.com/kalviny/MSDNet-PyTorch, dataloader.py).
STATISTICS = {
    "cifar10": ChannelStatistics((0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616)),
    "cifar100": ChannelStatistics((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}


def load_cifar(name: Literal["cifar10", "cifar100"], path: str, image_size: int | None) -> Source:
    """50 000 training and 10 000 test images of 32x32 pixels, unless scaled.

    Args:
        name: which of the two.
        path: the folder that holds the unpacked archive, ``cifar-10-batches-py`` or ``cifar-100-python``.
        image_size: pixels a side to scale to; None: as they are.

    Raises:
        DataError: the folder or a file is missing, or a file differs from the published one (MD5).
    """
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    root = local_path("data.path", path)
    try:
        train, test = (kind(root, train=is_train, download=False) for is_train in (True, False))
    except RuntimeError as error:
        raise DataError(_fault(kind, root)) from error
    return Source(
        name,
        tuple(train.classes),
        _split(train, image_size),
        _split(test, image_size),
        statistics=STATISTICS[name],
    )


def _split(part: Any, image_size: int | None) -> Split:
    images = np.ascontiguousarray(part.data.transpose(0, 3, 1, 2))
    return Split(resize(images, image_size), np.asarray(part.targets, np.int64))


def _fault(kind: Any, root: Path) -> str:
    """Why torchvision refused ``root``, and what to do."""
    from torchvision.datasets.utils import check_integrity

    folder = root / kind.base_folder
    remedy = f"unpack {kind.url} there"
    if not root.is_dir():
        return f"{root}: no such folder; --data.path must hold {kind.base_folder}/ ({kind.url}, unpacked)"
    if not folder.is_dir():
        return f"{folder}: no such folder; unpack {kind.url} in {root} or set --data.path"
    files = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
    for file, md5 in files:
        if not (folder / file).is_file():
            return f"{folder / file}: no such file; {remedy}"
        if not check_integrity(str(folder / file), md5):
            return f"{folder / file}: damaged (its MD5 sum is not the published one); {remedy} anew"
    return f"{folder}: torchvision can't read it; {remedy} anew"


_TEST = bytes.fromhex(
    "00200488b526304000164121934205005a00080122240028062c1e081108960a009019120420fca0128110e040"
    "080adab0441524c942c8a00a0030804004d821408b8020004885c40010400ea090000548e800301000020ecc09"
    "005224840083b8013c21a69c0a0224000fc9402804a498cd02124061e5008024604e9c376a8192160154c84048"
    "42a0a4180a5000b40b8561e68811804b126c80c02205068e420109f202c141398813c009190000148e2102c410"
    "a8e50133283924c944c0c8680e0102832682028922a6402c26062108a860809889a00c1286024a12853ca41500"
)
"""A bit an image: is it one of the 497 to test on? As scikit-learn's ``train_test_split`` draws them from
``random_state`` 0, each class with its share. Runs of different seeds are compared on the same images."""


def load_digits(image_size: int | None) -> Source:
    """1 300 images to train on and 497 to test, each class with its share in both; (1, 8, 8) or enlarged.

    The library's file is read, the library is not loaded: that takes a second, in every process.

    Raises:
        DataError: scikit-learn is not installed.
    """
    table = np.loadtxt(_library() / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    # Grey values are whole numbers from 0 to 16.
    images = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    whole = Split(resize(images, image_size), table[:, -1].astype(np.int64))
    test = np.unpackbits(np.frombuffer(_TEST, np.uint8), count=len(table)).astype(bool)
    names = tuple(str(digit) for digit in range(10))
    return Source("digits", names, whole.take(np.flatnonzero(~test)), whole.take(np.flatnonzero(test)))


def _library() -> Path:
    spec = find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("the digits come with scikit-learn: pip install scikit-learn")
    return Path(spec.submodule_search_locations[0])

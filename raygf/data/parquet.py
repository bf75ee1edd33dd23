"""Image sets in Parquet files as on the Hugging Face hub: encoded images beside whole-number labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raygf.data.copies import refuse_copies
from raygf.data.decode import decode_rgb
from raygf.data.memory_limit import require_memory
from raygf.data.parquet_schema import Columns, find_columns
from raygf.data.resize import resize
from raygf.data.source import Source
from raygf.data.splits import Split
from raygf.errors import DataError
from raygf.paths import local_path

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
    ``image_size`` scales them (the central square of each, see ``raygf.data.resize``).

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

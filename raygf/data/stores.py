"""Encoded images on disk: files in class folders, or rows of Parquet files as on the Hugging Face hub.

A *store* says which images there are and holds their labels; it is plain values, to be sent to other
processes. A *reader* in each process reads the images when they are needed: files one by one, rows by row
group.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raygf.data.base import digest_of
from raygf.errors import DataError, one_line

ENDINGS = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
"""Files that are taken for images, in upper or lower case."""
IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "fine_label")


@dataclass(frozen=True, eq=False)
class Part:
    """Some images of a store."""

    store: FolderStore | ShardStore
    indices: NDArray[np.int64]
    """Their places in the store (N,)."""

    @classmethod
    def of(cls, store: FolderStore | ShardStore) -> Part:
        """All images of ``store``."""
        return cls(store, np.arange(len(store.labels)))

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def images(self) -> NDArray[np.uint8]:
        """Raises DataError: they stay on disk."""
        raise DataError(f"the {len(self)} images of this split stay on disk; run.loaded.batches reads them")

    @property
    def labels(self) -> NDArray[np.int64]:
        """The label of every image (N,)."""
        return self.store.labels[self.indices]

    @property
    def units(self) -> NDArray[np.int64] | None:
        """The unit of every image (N,), where the store is read by units."""
        return None if self.store.units is None else self.store.units[self.indices]

    @property
    def digest(self) -> str:
        """Of the files' names, or the sizes of shards, and of labels: pixels are not read for it."""
        store = self.store
        known = store.files if isinstance(store, FolderStore) else np.append(store.unit_rows, store.size)
        return digest_of(known, self.indices, self.labels)

    def take(self, indices: NDArray[np.int64]) -> Part:
        """The images at ``indices`` (K,)."""
        return Part(self.store, self.indices[indices])

    def files(self) -> Iterator[tuple[str, NDArray[np.uint8] | None]]:
        """Where each image is, and its file as ``ShardReader.read`` gives it; one unit is kept at a time.

        Raises DataError: files are gone or damaged.
        """
        reader, last = self.store.open(), -1
        units = self.units if self.units is not None else np.zeros_like(self.indices)
        for image, unit in zip(self.indices.tolist(), units.tolist(), strict=True):
            if unit != last:
                reader.leave([last])
                last = unit
            yield self.store.where(image), reader.read(image, unit)


@dataclass(frozen=True, eq=False)
class FolderStore:
    """The image files of one split in class folders: a store, and its own reader."""

    folder: str
    """The split's folder."""
    class_names: tuple[str, ...]
    """Names of the class folders; the label is the place in this list."""
    files: NDArray[np.bytes_]
    """Names of the files (N,). As Python strings, ImageNet's would take 100 MB in every process."""
    labels: NDArray[np.int64]
    """The label of every image (N,)."""
    units: None = None

    def where(self, image: int) -> str:
        """The file's path."""
        return f"{self.folder}/{self.class_names[self.labels[image]]}/{os.fsdecode(self.files[image])}"

    def open(self) -> FolderStore:
        """Itself: there is nothing to keep between images."""
        return self

    def read(self, image: int, visit: int) -> NDArray[np.uint8]:
        """The file as a writable array of its bytes; ``visit`` does not matter."""
        path = self.where(image)
        try:
            return np.fromfile(path, np.uint8)
        except FileNotFoundError:
            raise _not_here(path) from None
        except OSError as error:
            cause = error.strerror or error
            raise DataError(f"{path}: can't be read ({cause}); mend or remove it") from error

    def leave(self, visits: Iterable[int]) -> None:
        """Nothing is kept."""


def index_folder(root: str, split: str, class_names: tuple[str, ...] | None = None) -> FolderStore:
    """The images of ``root``/``split``, by class in the order of the names, by file name within a class.

    ``class_names``: the classes; None: the folders that are there, sorted.

    Raises DataError: there is no such folder, it has no classes, another class, or a class without images.
    """
    folder = Path(root) / split
    found = tuple(entry.name for entry in _entries(folder) if entry.is_dir())
    if not found:
        raise DataError(f"{folder}: no class folders; images must lie in {folder}/CLASS/")
    names = found if class_names is None else class_names
    strange = sorted(set(found) - set(names))
    if strange:
        raise DataError(f"{folder / strange[0]}: no class of that name among the training images")
    files, labels = [], []
    for label, name in enumerate(names):
        entries = _entries(folder / name) if name in found else []
        images = [entry for entry in entries if entry.name.lower().endswith(ENDINGS)]
        if odd := next((entry for entry in images if not entry.is_file()), None):
            raise DataError(f"{odd.path}: can't be read (not a regular file); mend or remove it")
        inside = [entry.name for entry in images]
        if class_names is None and not inside:
            raise DataError(f"{folder / name}: no images; expected files ending in {', '.join(ENDINGS)}")
        files.extend(inside)
        labels.append(np.full(len(inside), label, np.int64))
    if not files:
        raise DataError(f"{folder}: no images; expected files ending in {', '.join(ENDINGS)}")
    encoded = np.array([os.fsencode(file) for file in files])
    return FolderStore(str(folder), names, encoded, np.concatenate(labels))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in ``folder``, sorted by name, without hidden files."""
    try:
        with os.scandir(folder) as entries:
            seen = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder}: can't be listed ({error.strerror}); set --data.path") from error
    return sorted(seen, key=lambda entry: entry.name)


@dataclass(frozen=True, eq=False)
class ShardStore:
    """The rows of some Parquet files: a store that is read by *units*, the row groups."""

    files: tuple[str, ...]
    image_columns: tuple[str, ...]
    """Of every file; dotted where the encoded image is the field ``bytes`` of a struct."""
    unit_file: NDArray[np.int64]
    """Which file every row group lies in (U,)."""
    unit_group: NDArray[np.int64]
    """Its number in the file (U,)."""
    unit_rows: NDArray[np.int64]
    """Its rows (U,)."""
    size: int
    """All row groups' bytes, decompressed."""
    labels: NDArray[np.int64]
    """The label of every row (N,)."""
    class_names: tuple[str, ...]
    """As the files have them; empty where they have none."""

    @cached_property
    def units(self) -> NDArray[np.int64]:
        """The row group of every row (N,)."""
        return np.repeat(np.arange(len(self.unit_rows)), self.unit_rows)

    @cached_property
    def unit_starts(self) -> NDArray[np.int64]:
        """Index of every row group's first row (U,)."""
        return self.unit_rows.cumsum() - self.unit_rows

    @property
    def bytes_per_image(self) -> float:
        """Mean size of a row in memory."""
        return self.size / max(1, len(self.labels))

    def where(self, image: int) -> str:
        """The file and the row in it, counted from 0."""
        file = int(self.unit_file[self.units[image]])
        first = int(self.unit_starts[np.searchsorted(self.unit_file, file)])
        return f"{self.files[file]}: row {image - first}"

    def open(self) -> ShardReader:
        """A reader, for one process."""
        return ShardReader(self)

    def __getstate__(self) -> dict[str, Any]:
        derived = ("units", "unit_starts")  # cheaper to work out anew than to send
        return {name: value for name, value in self.__dict__.items() if name not in derived}


class ShardReader:
    """Reads row groups; each visit's is kept until the visit is over."""

    def __init__(self, store: ShardStore) -> None:
        self._store = store
        self._kept: dict[int, Any] = {}

    def read(self, image: int, visit: int) -> NDArray[np.uint8] | None:
        """A copy of the bytes in the image's row; None where the row has no image.

        ``visit`` names the stretch of a pass in which the row group is kept: any number that is not in use
        begins a new one.

        Raises DataError: the file is gone or damaged.
        """
        unit = int(self._store.units[image])
        if visit not in self._kept:
            self._kept[visit] = self._read_unit(unit)
        cell = self._kept[visit][image - int(self._store.unit_starts[unit])].as_buffer()
        return None if cell is None else np.frombuffer(cell, np.uint8).copy()

    def leave(self, visits: Iterable[int]) -> None:
        """Forget the row groups of visits that are over."""
        for visit in visits:
            self._kept.pop(visit, None)

    def _read_unit(self, unit: int) -> Any:
        """The image column of a row group: a chunked Arrow array of binary values."""
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        store = self._store
        file, group = int(store.unit_file[unit]), int(store.unit_group[unit])
        path, column = store.files[file], store.image_columns[file]

        def read() -> Any:
            # Without threads: workers are as many as the processor is to be used by, and are forked.
            with pq.ParquetFile(path) as parquet:
                table = parquet.read_row_group(group, columns=[column], use_threads=False)
            name, _, field = column.partition(".")
            return pc.struct_field(table.column(name), field) if field else table.column(name)

        return _naming_damage(f"{path}: row group {group}", read)


def index_shards(files: Sequence[Path]) -> ShardStore:
    """The rows of ``files``, in order: their labels are read, their images are not.

    A file needs a column ``image`` or ``img``, binary or a struct with binary ``bytes``, and a column
    ``label`` or ``fine_label``, or one other column, of whole numbers. Class names are taken from the
    schema's metadata: those of the Hugging Face hub, or a list ``class_names``.

    Raises DataError: a file is damaged, has not the columns, has a row without label, there are no rows, or
    the files name their classes differently.
    """
    columns, groups, labels, named = [], [], [], []
    for file in files:
        column, sizes, of_rows, names = _index_file(file)
        columns.append(column)
        groups.append(sizes)
        labels.append(of_rows)
        named.append((str(file), names))
    if not any(map(len, labels)):
        raise DataError(f"{files[0]}: the split has no rows; fetch it again")
    rows, sizes = np.concatenate(groups).T
    return ShardStore(
        files=tuple(map(str, files)),
        image_columns=tuple(columns),
        unit_file=np.repeat(np.arange(len(files)), [len(sizes) for sizes in groups]),
        unit_group=np.concatenate([np.arange(len(sizes)) for sizes in groups]),
        unit_rows=rows.copy(),
        size=int(sizes.sum()),
        labels=np.concatenate(labels),
        class_names=common_names(named),
    )


def common_names(named: Iterable[tuple[str, tuple[str, ...]]]) -> tuple[str, ...]:
    """The class names that all files with any have in common, of (file, names); () if none has any."""
    with_names = [(file, names) for file, names in named if names]
    for file, names in with_names[1:]:
        if names != with_names[0][1]:
            raise DataError(f"{file}: its class names differ from those of {with_names[0][0]}")
    return with_names[0][1] if with_names else ()


def _index_file(path: Path) -> tuple[str, NDArray[np.int64], NDArray[np.int64], tuple[str, ...]]:
    """The image column, rows and bytes of the U row groups (U, 2), the labels (N,), and the class names."""
    import pyarrow.parquet as pq

    with _naming_damage(str(path), lambda: pq.ParquetFile(path)) as parquet:
        schema, metadata = parquet.schema_arrow, parquet.metadata
        image, label = _image_column(schema, path), _label_column(schema, path)
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        sizes = [(group.num_rows, group.total_byte_size) for group in groups]
        values = _naming_damage(str(path), lambda: parquet.read(columns=[label]).column(label))
    if values.null_count:
        row = int(values.is_null().to_numpy().argmax())
        raise DataError(f"{path}: row {row} has no label; every row needs one")
    sizes_of_groups = np.array(sizes, np.int64).reshape(-1, 2)  # a file may have no groups
    names = _class_names(schema.metadata or {}, label, path)
    return image, sizes_of_groups, values.to_numpy().astype(np.int64), names


def _image_column(schema: Any, file: Path) -> str:
    from pyarrow import types

    def is_binary(kind: Any) -> bool:
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    for field in schema:
        if field.name in IMAGE_COLUMNS and is_binary(field.type):
            return str(field.name)
        if (
            field.name in IMAGE_COLUMNS
            and types.is_struct(field.type)
            and (any(part.name == "bytes" and is_binary(part.type) for part in field.type))
        ):
            return f"{field.name}.bytes"
    raise _no_column(file, schema, "column 'image' or 'img' that is binary, or a struct with binary 'bytes'")


def _label_column(schema: Any, file: Path) -> str:
    from pyarrow import types

    whole = [str(field.name) for field in schema if types.is_integer(field.type)]
    chosen = [name for name in LABEL_COLUMNS if name in whole][:1] or whole
    if len(chosen) != 1:
        raise _no_column(file, schema, "label column 'label' or 'fine_label' of whole numbers")
    return chosen[0]


def _no_column(file: Path, schema: Any, wanted: str) -> DataError:
    return DataError(f"{file}: no {wanted}; it has {', '.join(schema.names) or 'none'}")


def _class_names(metadata: dict[bytes, bytes], label: str, file: Path) -> tuple[str, ...]:
    """What the schema's ``metadata`` calls the classes of the column ``label``; () if nothing."""
    try:
        if b"class_names" in metadata:
            return tuple(name.strip() for name in metadata[b"class_names"].decode().split(","))
        features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        return tuple(map(str, features.get(label, {}).get("names") or []))
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DataError(f"{file}: its class names can't be understood; write the file anew") from error


def _naming_damage(what: str, read: Callable[[], Any]) -> Any:
    """What ``read`` returns; Arrow's complaints become one line that names ``what``."""
    import pyarrow as pa

    try:
        return read()
    except FileNotFoundError:
        raise _not_here(what) from None
    except (pa.ArrowException, OSError, KeyError) as error:
        cause = one_line(error, kind=False)
        raise DataError(f"{what}: not a whole Parquet file ({cause}); fetch it again") from error


def _not_here(what: str) -> DataError:
    return DataError(f"{what}: no such file on {platform.node()}; every node must see the images there")

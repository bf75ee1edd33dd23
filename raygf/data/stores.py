"""Images in Parquet shards of any size: labels are read once, images by row group when they are needed."""

from __future__ import annotations

import filecmp
import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from raygf.errors import DataError


def refuse_copies(files: Sequence[Path]) -> None:
    """Raise DataError if two of the ``files`` of one split are the same, byte by byte.

    Their images would count twice, and the same image could be trained on and held out. Only files of equal
    size are read, and those up to the first difference.
    """
    by_size: dict[int, list[Path]] = {}
    for file in files:
        by_size.setdefault(file.stat().st_size, []).append(file)
    for alike in by_size.values():
        for one, other in combinations(alike, 2):
            if filecmp.cmp(one, other, shallow=False):
                raise DataError(
                    f"{other}: the same file as {one.name}: its images would count twice; remove one of them"
                )


class ImageStore(Protocol):
    """Which encoded images there are, and how to get at them. Plain values: it is sent to other processes."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """The label of every image (N,)."""
        ...

    @property
    def units(self) -> NDArray[np.int64] | None:
        """Which unit every image lies in (N,): units are read as a whole. None: images are read singly."""
        ...

    @property
    def bytes_per_image(self) -> float:
        """Mean size of an image in memory; only asked for where there are units."""
        ...

    def where(self, image: int) -> str:
        """What to call an image in messages."""
        ...

    def check(self) -> None:
        """Raise DataError if the files can't be seen from this machine."""
        ...

    def open(self) -> ImageReader:
        """A reader, for one process."""
        ...


class ImageReader(Protocol):
    """Reads encoded images, keeping the units of those visits that are under way."""

    def read(self, image: int, visit: int) -> NDArray[np.uint8] | None:
        """An encoded image as a writable array of its bytes, or None where there is none.

        Args:
            image: index in the store.
            visit: the stretch of a pass in which the image's unit is kept; see ``raygf.data.workers``.

        Raises:
            DataError: a file is gone or damaged.
        """
        ...

    def leave(self, visits: Iterable[int]) -> None:
        """Forget the units of visits that are over."""
        ...


@dataclass(frozen=True, eq=False)
class NameTable:
    """File names as two arrays. As Python strings, ImageNet's would take 100 MB in every process."""

    text: NDArray[np.uint8]
    """All names, one after the other."""
    ends: NDArray[np.int64]
    """Where each one ends (N,)."""

    @classmethod
    def of(cls, names: Iterable[str]) -> NameTable:
        """The table of ``names``, in order."""
        encoded = [os.fsencode(name) for name in names]
        lengths = np.array([len(name) for name in encoded], np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), lengths.cumsum())

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.text[start : self.ends[index]].tobytes())


ENDINGS = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
"""Files that are taken for images, in upper or lower case."""


@dataclass(frozen=True, eq=False)
class FolderStore:
    """The image files of one split. An ``raygf.data.stores.ImageStore``."""

    folder: str
    """The split's folder."""
    class_names: tuple[str, ...]
    """Names of the class folders; the label is the place in this list."""
    files: NameTable
    labels: NDArray[np.int64]
    units: None = None
    bytes_per_image: float = 0.0

    def where(self, image: int) -> str:
        """The file's path."""
        return f"{self.folder}/{self.class_names[self.labels[image]]}/{self.files[image]}"

    def check(self) -> None:
        """Raise DataError if the folder can't be seen from this machine."""
        if not Path(self.folder).is_dir():
            raise DataError(
                f"{self.folder}: no such folder on {platform.node()}; every node must see the images there"
            )

    def open(self) -> FolderReader:
        """A reader, for one process."""
        return FolderReader(self)


class FolderReader:
    """Reads single files."""

    def __init__(self, store: FolderStore) -> None:
        self._store = store

    def read(self, image: int, visit: int) -> NDArray[np.uint8]:
        """The file's bytes; ``visit`` does not matter."""
        path = self._store.where(image)
        try:
            return np.fromfile(path, np.uint8)
        except OSError as error:
            cause = error.strerror or error
            raise DataError(f"{path}: can't be read ({cause}); mend or remove it") from error

    def leave(self, visits: Iterable[int]) -> None:
        """Nothing is kept."""


def index_folder(root: str, split: str, class_names: tuple[str, ...] | None = None) -> FolderStore:
    """The images of ``root``/``split``, by class in the order of the names, by file name within a class.

    Args:
        class_names: the classes; None: the folders that are there, sorted.

    Raises:
        DataError: there is no such folder, it has no classes, another class, or a class without images.
    """
    folder = Path(root) / split
    found = tuple(sorted(_folders(folder)))
    if not found:
        raise DataError(f"{folder}: no class folders; images must lie in {folder}/CLASS/")
    names = found if class_names is None else class_names
    strange = sorted(set(found) - set(names))
    if strange:
        raise DataError(f"{folder / strange[0]}: no class of that name among the training images")
    files, labels = [], []
    for label, name in enumerate(names):
        inside = sorted(_images(folder / name)) if name in found else []
        if class_names is None and not inside:
            raise DataError(f"{folder / name}: no images; expected files ending in {', '.join(ENDINGS)}")
        files.extend(inside)
        labels.append(np.full(len(inside), label, np.int64))
    if not files:
        raise DataError(f"{folder}: no images; expected files ending in {', '.join(ENDINGS)}")
    return FolderStore(str(folder), names, NameTable.of(files), np.concatenate(labels))


def _folders(folder: Path) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            yield from (entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: can't be listed ({error.strerror}); set --data.path") from error


def _images(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        yield from (entry.name for entry in entries if _is_image(entry.name))


def _is_image(name: str) -> bool:
    return name.lower().endswith(ENDINGS) and not name.startswith(".")


IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "fine_label")


@dataclass(frozen=True)
class Columns:
    """The columns to read of one file."""

    image: str
    """Dotted where the encoded file is the field ``bytes`` of a struct."""
    label: str
    class_names: tuple[str, ...]
    """Empty where the schema gives none."""


def find_columns(schema: Any, file: Path) -> Columns:
    """The columns of ``file``, which has the Arrow ``schema``.

    Raises:
        DataError: the file has no such columns, or more than one that could be the label.
    """
    label = _label_column(schema, file)
    return Columns(_image_column(schema, file), label, _class_names(schema, label, file))


def _image_column(schema: Any, file: Path) -> str:
    from pyarrow import types

    for name in IMAGE_COLUMNS:
        if name in schema.names:
            kind = schema.field(name).type
            if _is_binary(kind):
                return name
            if types.is_struct(kind) and any(f.name == "bytes" and _is_binary(f.type) for f in kind):
                return f"{name}.bytes"
            raise DataError(
                f"{file}: column {name!r} is {kind}; expected binary, or a struct with binary 'bytes'"
            )
    raise DataError(
        f"{file}: no column 'image' or 'img'; it has {_listing(schema.names)}: rename the one with the images"
    )


def _label_column(schema: Any, file: Path) -> str:
    from pyarrow import types

    whole = [field.name for field in schema if types.is_integer(field.type)]
    for name in LABEL_COLUMNS:
        if name in whole:
            return name
    if len(whole) == 1:
        return str(whole[0])
    found = "no column of whole numbers" if not whole else f"several that could be it ({_listing(whole)})"
    raise DataError(
        f"{file}: no label column 'label' or 'fine_label', and {found}; it has {_listing(schema.names)}"
    )


def _is_binary(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _class_names(schema: Any, label: str, file: Path) -> tuple[str, ...]:
    metadata = schema.metadata or {}
    if b"class_names" in metadata:
        return tuple(name.strip() for name in _text(metadata[b"class_names"], file).split(","))
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        return tuple(str(name) for name in features.get(label, {}).get("names", ()))
    except (ValueError, AttributeError) as error:
        raise DataError(
            f"{file}: its 'huggingface' metadata can't be understood; write the file anew"
        ) from error


def _text(value: bytes, file: Path) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise DataError(f"{file}: its 'class_names' are not UTF-8 text; write the file anew") from None


def _listing(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"


@dataclass(frozen=True, eq=False)
class ShardStore:
    """The rows of some Parquet files. An ``raygf.data.stores.ImageStore`` whose units are row groups."""

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
    class_names: tuple[str, ...]
    """As the files have them; empty where they have none."""

    @cached_property
    def units(self) -> NDArray[np.int64]:
        """The row group of every row (N,)."""
        return np.repeat(np.arange(len(self.unit_rows)), self.unit_rows)

    @property
    def bytes_per_image(self) -> float:
        """Mean size of a row in memory."""
        return self.size / max(1, len(self.labels))

    @cached_property
    def unit_starts(self) -> NDArray[np.int64]:
        """Index of every row group's first row (U,)."""
        return self.unit_rows.cumsum() - self.unit_rows

    def where(self, image: int) -> str:
        """The file and the row in it, counted from 0."""
        file = int(self.unit_file[self.units[image]])
        first = int(self.unit_starts[np.searchsorted(self.unit_file, file)])
        return f"{self.files[file]}: row {image - first}"

    def check(self) -> None:
        """Raise DataError if a file can't be seen from this machine."""
        for file in self.files:
            if not Path(file).is_file():
                raise DataError(
                    f"{file}: no such file on {platform.node()}; every node must see the images there"
                )

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
        self._open: dict[int, Any] = {}

    def read(self, image: int, visit: int) -> NDArray[np.uint8] | None:
        """A copy of the bytes in the image's row; None where the row has no image."""
        unit = int(self._store.units[image])
        if visit not in self._open:
            self._open[visit] = self._read_unit(unit)
        cell = self._open[visit][image - int(self._store.unit_starts[unit])].as_buffer()
        return None if cell is None else np.frombuffer(cell, np.uint8).copy()

    def leave(self, visits: Iterable[int]) -> None:
        """Forget the row groups of visits that are over."""
        for visit in visits:
            self._open.pop(visit, None)

    @property
    def kept(self) -> int:
        """Row groups in memory."""
        return len(self._open)

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

        return _damage_named(f"{path}: row group {group}", read)


def index_shards(files: Sequence[Path]) -> ShardStore:
    """The rows of ``files``, in order: their labels are read, their images are not.

    Raises:
        DataError: a file is damaged or has not the columns, has a row without label, there are no rows, or
            the files name their classes differently.
    """
    shards = [_index_file(file) for file in files]
    if not any(len(shard.labels) for shard in shards):
        raise DataError(f"{files[0]}: the split has no rows; fetch it again")
    return ShardStore(
        tuple(str(file) for file in files),
        tuple(shard.image_column for shard in shards),
        np.repeat(np.arange(len(shards)), [len(shard.rows) for shard in shards]),
        np.concatenate([np.arange(len(shard.rows)) for shard in shards]),
        np.concatenate([shard.rows for shard in shards]),
        sum(shard.size for shard in shards),
        np.concatenate([shard.labels for shard in shards]),
        common_names([(str(f), s.class_names) for f, s in zip(files, shards, strict=True)]),
    )


def common_names(named: Iterable[tuple[str, tuple[str, ...]]]) -> tuple[str, ...]:
    """The class names that all files with any have in common; () if none has any.

    Args:
        named: pairs of a file and its class names.
    """
    with_names = [(file, names) for file, names in named if names]
    for file, names in with_names[1:]:
        if names != with_names[0][1]:
            raise DataError(f"{file}: its class names differ from those of {with_names[0][0]}")
    return with_names[0][1] if with_names else ()


@dataclass(frozen=True, eq=False)
class _Shard:
    image_column: str
    rows: NDArray[np.int64]
    size: int
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]


def _index_file(path: Path) -> _Shard:
    import pyarrow.parquet as pq

    with _damage_named(str(path), lambda: pq.ParquetFile(path)) as parquet:
        columns = find_columns(parquet.schema_arrow, path)
        metadata = parquet.metadata
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        values = _damage_named(str(path), lambda: parquet.read(columns=[columns.label])).column(columns.label)
    if values.null_count:
        row = int(values.is_null().to_numpy().argmax())
        raise DataError(f"{path}: row {row} has no label; every row needs one")
    return _Shard(
        columns.image,
        np.array([group.num_rows for group in groups], np.int64),
        sum(group.total_byte_size for group in groups),
        values.to_numpy().astype(np.int64),
        columns.class_names,
    )


def _damage_named(what: str, read: Callable[[], Any]) -> Any:
    """What ``read`` returns; Arrow's complaints become one line that names ``what``."""
    import pyarrow as pa

    try:
        return read()
    except (pa.ArrowException, OSError) as error:
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{what}: not a whole Parquet file ({cause}); fetch it again") from error

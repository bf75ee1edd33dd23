"""Images in Parquet shards of any size: labels are read once, images by row group when they are needed."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raygf.data.parquet_schema import find_columns
from raygf.errors import DataError


@dataclass(frozen=True, eq=False)
class ShardStore:
    """The rows of some Parquet files. An ``raygf.data.image_store.ImageStore`` whose units are row groups."""

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

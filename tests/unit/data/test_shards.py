"""Parquet shards read by row group."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_up_photographs import photographs, write_shard

from raygf.data.stores import ShardReader, ShardStore, index_shards
from raygf.errors import DataError

FILES = photographs(15)
LABELS = [row % 3 for row in range(15)]


@pytest.fixture
def store(tmp_path: Path) -> ShardStore:
    """Row groups of 4, 4, 1 and 4, 2 rows, between them a file with one of no rows."""
    paths = [
        write_shard(tmp_path / "train-0.parquet", FILES[:9], LABELS[:9]),
        write_shard(tmp_path / "train-1.parquet", [], []),
        write_shard(tmp_path / "train-2.parquet", FILES[9:], LABELS[9:]),
    ]
    return index_shards(paths)


def test_index(store: ShardStore, tmp_path: Path) -> None:
    assert store.labels.tolist() == LABELS and store.labels.dtype == np.int64
    assert store.units.tolist() == [0] * 4 + [1] * 4 + [2] + [4] * 4 + [5] * 2
    assert store.class_names == ("n01", "n02", "n03")
    assert store.where(8) == f"{tmp_path}/train-0.parquet: row 8"
    assert store.where(9) == f"{tmp_path}/train-2.parquet: row 0"
    assert store.where(14) == f"{tmp_path}/train-2.parquet: row 5"
    assert sum(map(len, FILES)) < store.bytes_per_image * 15 < 2 * sum(map(len, FILES))


def test_every_row_in_any_order(store: ShardStore) -> None:
    reader = pickle.loads(pickle.dumps(store)).open()
    for row in np.random.default_rng(0).permutation(15):
        file = reader.read(int(row), int(store.units[row]))
        assert file.tobytes() == FILES[row] and file.flags.writeable


def test_a_row_group_is_read_once_a_visit_and_kept_until_it_ends(
    store: ShardStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    original = ShardReader._read_unit
    monkeypatch.setattr(
        ShardReader, "_read_unit", lambda self, unit: (read.append(unit), original(self, unit))[1]
    )
    reader = store.open()
    for row in (0, 3, 9, 1):
        reader.read(row, int(store.units[row]))
    assert read == [0, 4] and reader.kept == 2
    reader.leave([0, 17])
    assert reader.kept == 1
    reader.read(2, 0)
    reader.read(2, 70)  # another visit of the same row group
    assert read == [0, 4, 0, 0] and reader.kept == 3


def test_only_labels_are_read_for_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    original = pq.ParquetFile.read
    monkeypatch.setattr(
        pq.ParquetFile,
        "read",
        lambda self, columns: (asked.append(columns), original(self, columns=columns))[1],
    )
    index_shards([write_shard(tmp_path / "train.parquet", FILES, LABELS)])
    assert asked == [["label"]]


def test_plain_binary_column_and_missing_bytes(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"img": pa.array([FILES[0], None], pa.binary()), "fine_label": [0, 1]}), path)
    reader = index_shards([path]).open()
    assert reader.read(0, 0).tobytes() == FILES[0] and reader.read(1, 0) is None
    path = write_shard(path, [None, FILES[1]], [0, 1])
    reader = index_shards([path]).open()
    assert reader.read(0, 0) is None and reader.read(1, 0).tobytes() == FILES[1]


def refused(paths: list[Path], *parts: str) -> None:
    with pytest.raises(DataError) as caught:
        index_shards(paths)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_errors(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    path.write_bytes(b"PAR1 nothing PAR1")
    refused([path], "train.parquet: not a whole Parquet file", "fetch it again")
    pq.write_table(pa.table({"picture": [FILES[0]], "label": [0]}), path)
    refused([path], "train.parquet: no column 'image' or 'img'")
    pq.write_table(pa.table({"image": [FILES[0]], "name": ["a"]}), path)
    refused([path], "train.parquet: no label column")
    pq.write_table(pa.table({"image": FILES[:3], "label": [0, None, 1]}), path)
    refused([path], "train.parquet: row 1 has no label")
    write_shard(path, [], [])
    refused([path], "train.parquet: the split has no rows")
    write_shard(path, FILES[:3], LABELS[:3])
    other = write_shard(tmp_path / "other.parquet", FILES[:3], LABELS[:3], names="a,b,c")
    refused([path, other], "other.parquet: its class names differ", "train.parquet")


def test_a_damaged_row_group_and_a_file_that_is_not_here(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "train.parquet", FILES, LABELS)
    store = index_shards([path])
    store.check()
    content = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    content[start : start + 200] = b"\xff" * 200
    path.write_bytes(content)
    reader = store.open()
    assert reader.read(0, 0).tobytes() == FILES[0]
    with pytest.raises(DataError, match=r"train\.parquet: row group 1: not a whole Parquet file"):
        reader.read(5, 1)
    path.unlink()
    with pytest.raises(DataError, match=r"train\.parquet: no such file on .*; every node must see"):
        store.check()

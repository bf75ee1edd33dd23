"""Small made-up photographs of different sizes, on disk in both layouts that are streamed."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from raygf.compute import Compute
from raygf.config.run import DataConfig
from raygf.data.base import Dataset
from raygf.data.load import load_data
from raygf.data.streaming import STATISTICS, StreamedBatches

CPU = Compute("cpu", "fp32", "contiguous")
NAMES = ("n01", "n02", "n03")
BROKEN = b"\xff\xd8\xff no image"


def photograph(seed: int, width: int = 0, height: int = 0) -> bytes:
    """A smooth colour JPEG of some 24 to 47 pixels a side; no two seeds look alike."""
    rng = np.random.default_rng(seed)
    size = (width or int(rng.integers(24, 48)), height or int(rng.integers(24, 48)))
    pixels = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    file = io.BytesIO()
    pixels.save(file, "JPEG", quality=92)
    return file.getvalue()


def photographs(count: int, first: int = 0) -> list[bytes]:
    return [photograph(seed) for seed in range(first, first + count)]


def write_shard(
    path: Path,
    files: Sequence[bytes | None],
    labels: Sequence[int],
    group: int = 4,
    names: str | None = "n01,n02,n03",
) -> Path:
    """One Parquet file with row groups of ``group`` rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = pa.array(
        [{"bytes": file, "path": f"{row}.JPEG"} for row, file in enumerate(files)],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    table = pa.table({"image": images, "label": pa.array(labels, pa.int64())})
    pq.write_table(
        table.replace_schema_metadata({"class_names": names} if names else {}), path, row_group_size=group
    )
    return path


def write_shards(folder: Path, train: int = 30, test: int = 7, broken: Sequence[int] = ()) -> Path:
    """Two training shards and one of test images; the training images ``broken`` can't be decoded."""
    files = [BROKEN if row in broken else file for row, file in enumerate(photographs(train))]
    labels = [row % 3 for row in range(train)]
    half = train // 2
    write_shard(folder / "train-00000-of-00002.parquet", files[:half], labels[:half])
    write_shard(folder / "train-00001-of-00002.parquet", files[half:], labels[half:])
    if test:
        write_shard(
            folder / "validation-00000-of-00001.parquet",
            photographs(test, 1000),
            [row % 3 for row in range(test)],
        )
    return folder


def write_folders(folder: Path, train: int = 30, test: int = 7, broken: Sequence[int] = ()) -> Path:
    """The same images as class folders; in this layout they are ordered by class."""
    for split, count, first in (("train", train, 0), ("val", test, 1000)):
        for row, file in enumerate(photographs(count, first)):
            path = folder / split / NAMES[row % 3] / f"{row:04d}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(BROKEN if split == "train" and row in broken else file)
    return folder


def config(path: Path, **fields: Any) -> DataConfig:
    """A small streamed set: crops of 16 pixels, no workers."""
    values: dict[str, Any] = {"source": "shards", "path": str(path), "crop": 16, "resize": 20, "workers": 0}
    return DataConfig(**{**values, **fields})


def load(path: Path, seed: int = 0, **fields: Any) -> Dataset:
    return load_data(config(path, **fields), seed)


def open_set(
    path: Path, batch: int = 8, eval_batch: int = 8, seed: int = 0, **fields: Any
) -> StreamedBatches:
    """The batches of a small streamed set on the CPU."""
    batches = load(path, seed, **fields).open(CPU, batch, eval_batch)
    assert isinstance(batches, StreamedBatches)
    return batches


def pixels(images: torch.Tensor) -> torch.Tensor:
    """Normalised images (B, 3, H, W) as the uint8 that they were."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (STATISTICS.mean, STATISTICS.std))
    return ((images * std + mean) * 255).round().to(torch.uint8)

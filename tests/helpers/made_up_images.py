"""Small made-up images: in memory, as files, and as sets on disk in every layout that is read."""

import io
import json
import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raygf.compute import Compute
from raygf.config.run import DataConfig
from raygf.data.base import ChannelStatistics, InputSpec
from raygf.data.in_memory import ImageSet
from raygf.data.load import load_data
from raygf.data.splits import Split
from raygf.data.streaming import StreamedSet
from raygf.errors import DataError

CPU = Compute("cpu", "fp32", "contiguous")
NAMES = ("n01", "n02", "n03")
BROKEN = b"\xff\xd8\xff no image"
REAL = Path(os.environ.get("RAYGF_DATA") or Path(__file__).parents[2].parent / "shared" / "data")
"""Where there may be real images."""


@contextmanager
def refused(*parts):
    """What is inside must raise a DataError of one line that has all ``parts``."""
    with pytest.raises(DataError) as caught:
        yield caught
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def make_split(count, shape=(3, 6, 6), seed=0):
    """Random images that can be told apart, with labels 0 … 9 in turn."""
    images = np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)
    return Split(images, np.arange(count, dtype=np.int64) % 10)


def make_set(train=20, val=5, test=7, pad=0, flip=False):
    """An image set of random 6x6 images."""
    return ImageSet(
        "made up",
        InputSpec(3, 6, 6, 10),
        tuple("abcdefghij"),
        *(make_split(count, seed=seed) for seed, count in enumerate((train, val, test), 1)),
        ChannelStatistics((0.5, 0.4, 0.3), (0.2, 0.25, 0.5)),
        pad,
        flip,
    )


def bits(batches):
    """Images and labels of every batch, to be compared."""
    return [(images.contiguous().numpy().tobytes(), labels.tolist()) for images, labels in batches]


def random_pixels(count, size=5, seed=0):
    """``count`` RGB images uint8 (size, size, 3)."""
    return list(np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8))


def encode(pixels, format="PNG", mode=None, **options):
    """Pixels uint8 (H, W, 3) or (H, W) as an image file, converted to ``mode`` first."""
    image = Image.fromarray(pixels)
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, format, **options)
    return file.getvalue()


def photograph(seed, width=0, height=0):
    """A smooth colour JPEG of some 24 to 47 pixels a side; no two seeds look alike."""
    rng = np.random.default_rng(seed)
    size = (width or int(rng.integers(24, 48)), height or int(rng.integers(24, 48)))
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return encode(np.asarray(small.resize(size, Image.Resampling.BICUBIC)), "JPEG", quality=92)


def photographs(count, first=0):
    return [photograph(seed) for seed in range(first, first + count)]


def write_parquet(
    path, files, labels, columns=("image", "label"), names=None, hub_names=None, plain=False, group=2, **more
):
    """One Parquet file with row groups of ``group`` rows, its images in structs or ``plain``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = pa.binary() if plain else pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = files if plain else [{"bytes": file, "path": f"{row}.JPEG"} for row, file in enumerate(files)]
    labels = pa.array(labels, None if len(labels) else pa.int64())
    metadata = {} if names is None else {"class_names": names}
    if hub_names is not None:
        features = {name: {"names": value, "_type": "ClassLabel"} for name, value in hub_names.items()}
        metadata["huggingface"] = json.dumps({"info": {"features": features}})
    table = pa.table({columns[0]: pa.array(rows, kind), columns[1]: labels, **more})
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=group)
    return path


def write_shards(folder, train=30, test=7, broken=()):
    """Two training shards and one of test images; the training images ``broken`` can't be decoded."""
    half = train // 2
    for name, rows, first in (
        ("train-00000-of-00002", range(half), 0),
        ("train-00001-of-00002", range(half, train), 0),
        ("validation-00000-of-00001", range(test), 1000),
    ):
        files = [BROKEN if not first and row in broken else photograph(first + row) for row in rows]
        if files:
            labels = [row % 3 for row in rows]
            write_parquet(folder / f"{name}.parquet", files, labels, names=",".join(NAMES), group=4)
    return folder


def write_folders(folder, train=30, test=7, broken=()):
    """The same images as class folders; in this layout they are ordered by class."""
    for split, count, first in (("train", train, 0), ("val", test, 1000)):
        for row, file in enumerate(photographs(count, first)):
            path = folder / split / NAMES[row % 3] / f"{row:04d}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(BROKEN if split == "train" and row in broken else file)
    return folder


WRITE = {"shards": write_shards, "imagefolder": write_folders}


def load_streamed(path, seed=0, **fields):
    """A small streamed set: crops of 16 pixels, no workers."""
    values = {"source": "shards", "path": str(path), "crop": 16, "resize": 20, "workers": 0, **fields}
    data = load_data(DataConfig(**values), seed)
    assert isinstance(data, StreamedSet)
    return data

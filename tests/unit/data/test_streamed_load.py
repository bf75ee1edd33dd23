"""Streamed sets: which images are in which split, and every way in which a set can be wrong."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from made_up_photographs import (
    CPU,
    config,
    load,
    open_set,
    photographs,
    write_folders,
    write_shard,
    write_shards,
)

from raygf.config.run import DataConfig
from raygf.data.load import load_data
from raygf.data.streaming import StreamedSet
from raygf.errors import ConfigError, DataError

WRITE = {"shards": write_shards, "imagefolder": write_folders}
layouts = pytest.mark.parametrize("source", sorted(WRITE))


def streamed(path: Path, seed: int = 0, **fields: object) -> StreamedSet:
    data = load(path, seed, **fields)
    assert isinstance(data, StreamedSet)
    return data


def refused(path: Path, *parts: str, **fields: object) -> None:
    with pytest.raises(DataError) as caught:
        load(path, **fields)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


@layouts
def test_a_set_as_it_comes(tmp_path: Path, source: str) -> None:
    WRITE[source](tmp_path)
    data = streamed(tmp_path, source=source)
    assert (data.count("train"), data.count("val"), data.count("test")) == (30, 0, 7)
    assert data.class_names == ("n01", "n02", "n03") and data.name == tmp_path.name
    assert (data.spec.channels, data.spec.height, data.spec.width, data.spec.classes) == (3, 16, 16, 3)
    assert data.statistics.mean == (0.485, 0.456, 0.406) and data.statistics.std == (0.229, 0.224, 0.225)
    assert np.bincount(data.train.store.labels).tolist() == [10, 10, 10]
    assert data.test.store is not data.train.store


@layouts
def test_splits_are_disjoint_complete_and_seeded(tmp_path: Path, source: str) -> None:
    WRITE[source](tmp_path, test=0)
    if source == "imagefolder":
        assert not (tmp_path / "val").exists()
    first, again, other = (streamed(tmp_path, seed, source=source, val=6, test=5) for seed in (0, 0, 1))
    parts = [set(first.parts[name].images.tolist()) for name in ("train", "val", "test")]
    assert [len(part) for part in parts] == [19, 6, 5]
    assert set.union(*parts) == set(range(30))
    assert all(np.array_equal(first.parts[name].images, again.parts[name].images) for name in first.parts)
    assert not np.array_equal(first.val.images, other.val.images)
    assert np.array_equal(first.test.images, other.test.images)  # compared on the same images
    without = streamed(tmp_path, source=source, test=5)
    assert set(without.train.images) == parts[0] | parts[1]


@layouts
def test_subsets(tmp_path: Path, source: str) -> None:
    WRITE[source](tmp_path)
    data = streamed(tmp_path, source=source, val=6, per_class=4, train_limit=10)
    labels = data.train.store.labels[data.train.images]
    assert data.count("train") == 10 and np.bincount(labels).max() <= 4
    assert not set(data.train.images) & set(data.val.images)
    per_class = streamed(tmp_path, source=source, val=6, per_class=4)
    assert np.bincount(per_class.train.store.labels[per_class.train.images]).tolist() == [4, 4, 4]
    seen = [labels for _, labels in open_set(tmp_path, source=source, val=6, train_limit=10).train(0, "a")]
    assert sum(map(len, seen)) == 10
    refused(tmp_path, "data.val = 30", "--data.val", source=source, val=30)
    refused(tmp_path, "data.train_limit = 31", source=source, train_limit=31)


def test_a_set_sent_to_another_process_is_small_and_the_same(tmp_path: Path) -> None:
    write_shards(tmp_path)
    data = streamed(tmp_path, val=6)
    list(data.open(CPU, 8, 8).train(0, "a"))  # derives what need not be sent
    sent = pickle.dumps(data)
    assert len(sent) < 5000
    ours, theirs = (
        [i.numpy().tobytes() for i, _ in d.open(CPU, 8, 8).train(0, "a")] for d in (data, pickle.loads(sent))
    )
    assert ours == theirs


def test_test_shards_count_if_they_have_labels(tmp_path: Path) -> None:
    """ImageNet's have none: there the public validation images are the test set."""
    write_shards(tmp_path)
    write_shard(tmp_path / "test-00000-of-00001.parquet", photographs(5), [-1] * 5)
    data = streamed(tmp_path)
    assert (data.count("test"), data.count("val")) == (7, 0)
    write_shard(tmp_path / "test-00000-of-00001.parquet", photographs(5), [0, 1, 2, 0, 1])
    data = streamed(tmp_path)
    assert (data.count("test"), data.count("val"), data.count("train")) == (5, 7, 30)
    refused(tmp_path, "data.val = 3", "validation split of its own", val=3)


def test_shards_in_a_data_folder_and_without_names(tmp_path: Path) -> None:
    write_shard(tmp_path / "data" / "train-0.parquet", photographs(4), [0, 3, 1, 3], names=None)
    write_shard(tmp_path / "data" / "test-0.parquet", photographs(4), [0, 2, 1, 2], names=None)
    assert streamed(tmp_path).class_names == ("0", "1", "2", "3")
    write_shard(tmp_path / "data" / "test-0.parquet", photographs(4), [0, 2, 1, 9], names=None)
    refused(tmp_path, "labels go up to 9 with only 8 images")


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range(tmp_path: Path, label: int) -> None:
    write_shards(tmp_path)
    write_shard(tmp_path / "train-00001-of-00002.parquet", photographs(6), [0, 1, 2, 0, 1, label])
    refused(tmp_path, f"train-00001-of-00002.parquet: row 5: label {label} is out of range", "from 0 to 2")


def test_where_nothing_is(tmp_path: Path) -> None:
    for source in WRITE:
        with pytest.raises(DataError, match=rf"data\.path is empty: {source} needs"):
            load_data(DataConfig(source=source), 0)
        refused(tmp_path / "none", "none: no such folder", "--data.path", source=source)
    refused(tmp_path, "no files train*.parquet here or in its subfolder data", source="shards")
    refused(tmp_path, "no folder train in it; expected", "train/CLASS/*.JPEG", source="imagefolder")
    (tmp_path / "train").mkdir()
    refused(tmp_path, "train: no class folders", source="imagefolder")


@layouts
def test_test_images_must_come_from_somewhere(tmp_path: Path, source: str) -> None:
    WRITE[source](tmp_path, test=0)
    refused(tmp_path, "has no test images", "--data.test", source=source)
    refused(tmp_path, "data.test = 30: there are only 30 training images", source=source, test=30)
    refused(tmp_path, "data.val = 25: there are only 25 training images", source=source, test=5, val=25)
    WRITE[source](tmp_path)
    refused(tmp_path, "data.test = 5", "test images of its own", source=source, test=5)


def test_a_held_out_test_set_is_for_streamed_sets() -> None:
    with pytest.raises(DataError, match=r"data\.test = 5: digits has test images of its own"):
        load_data(DataConfig(test=5), 0)


def test_sizes(tmp_path: Path) -> None:
    write_shards(tmp_path)
    refused(tmp_path, "data.image_size = 32: not for shards; set --data.crop, --data.resize", image_size=32)
    with pytest.raises(ConfigError, match=r"data\.resize = 20: must be at least data\.crop = 24"):
        config(tmp_path, crop=24)


@layouts
def test_the_files_must_be_where_the_set_is_opened(tmp_path: Path, source: str) -> None:
    WRITE[source](tmp_path / "here")
    data = streamed(tmp_path / "here", source=source)
    (tmp_path / "here").rename(tmp_path / "there")
    with pytest.raises(DataError, match="every node must see the images there"):
        data.open(CPU, 8, 8)


SAMPLE = (
    Path(os.environ.get("RAYGF_DATA") or Path(__file__).parents[3].parent / "shared" / "data")
    / "imagenet-sample"
)


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="no real photographs: set RAYGF_DATA")
def test_real_photographs() -> None:
    data = streamed(SAMPLE, val=50, test=50, crop=64, resize=72, workers=2)
    assert [data.count(name) for name in ("train", "val", "test")] == [400, 50, 50]
    assert data.spec.classes == 1000 and data.class_names[0] == "n01440764"
    images, labels = next(iter(data.open(CPU, 32, 32).train(0, "a")))
    assert images.shape == (32, 3, 64, 64) and len(set(labels.tolist())) == 32
    assert abs(float(images.mean())) < 0.4 and 0.6 < float(images.std()) < 1.5

"""From configuration to data set: which images are in which split, and what a set lacks."""

import pickle

import numpy as np
import pytest
from made_up_images import (
    CPU,
    NAMES,
    WRITE,
    bits,
    encode,
    load_streamed,
    photographs,
    random_pixels,
    refused,
    write_parquet,
    write_shards,
)

from raygf.config.run import DataConfig
from raygf.data.base import InputSpec, channel_statistics
from raygf.data.in_memory import ImageSet
from raygf.data.load import load_data
from raygf.errors import DataError, Named

layouts = pytest.mark.parametrize("source", sorted(WRITE))
PIXELS = random_pixels(7)
FILES = [encode(pixels) for pixels in PIXELS]
LABELS = [0, 1, 2, 0, 1, 2, 2]
CHW = np.stack(PIXELS).transpose(0, 3, 1, 2)


def load(path=None, **fields):
    """The digits, or the Parquet set in ``path``, in memory."""
    source = {} if path is None else {"source": "parquet", "path": str(path)}
    data = load_data(DataConfig(**{**source, **fields}), 0)
    assert isinstance(data, ImageSet)
    return data


def test_statistics_are_those_of_the_training_images_that_are_kept():
    data = load(val=100, per_class=20)
    assert data.statistics == channel_statistics(data.train.images)
    assert np.array_equal(np.bincount(data.train.labels), np.full(10, 20))
    assert data.spec == InputSpec(1, 8, 8, 10) and (data.pad, data.flip) == (4, True)
    other = load_data(DataConfig(val=100, pad=2, flip=False, image_size=32), 1)
    assert isinstance(other, ImageSet) and (other.pad, other.flip) == (2, False)
    assert other.spec == InputSpec(1, 32, 32, 10)
    assert [other.count(name) for name in ("train", "val", "test")] == [1200, 100, 497]


def test_a_parquet_set_in_memory(tmp_path):
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", FILES[4:], LABELS[4:], names="a,b,c")
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", FILES[:4], LABELS[:4])
    write_parquet(tmp_path / "data" / "test.parquet", FILES[:3], LABELS[:3])
    data = load(tmp_path)
    assert data.name == tmp_path.name and data.class_names == ("a", "b", "c")
    assert data.spec == InputSpec(3, 5, 5, 3) and data.statistics == channel_statistics(CHW)
    assert np.array_equal(data.train.images, CHW) and data.train.labels.tolist() == LABELS
    assert np.array_equal(data.test.images, CHW[:3]) and data.test.labels.tolist() == LABELS[:3]
    assert data.count("val") == 0
    write_parquet(tmp_path / "data" / "validation.parquet", FILES[:2], LABELS[:2])
    assert np.array_equal(load(tmp_path).val.images, CHW[:2])


@layouts
def test_a_streamed_set_as_it_comes_and_divided_as_one_in_memory(tmp_path, source):
    WRITE[source](tmp_path)
    data = load_streamed(tmp_path, source=source)
    assert [data.count(name) for name in ("train", "val", "test")] == [30, 0, 7]
    assert data.class_names == NAMES and data.name == tmp_path.name
    assert data.spec == InputSpec(3, 16, 16, 3)
    assert data.statistics.mean == (0.485, 0.456, 0.406) and data.statistics.std == (0.229, 0.224, 0.225)
    assert np.bincount(data.train.labels).tolist() == [10, 10, 10]
    assert data.test.store is not data.train.store
    whole = WRITE[source](tmp_path / "whole", test=0)
    data = load_streamed(whole, source=source, val=6, test=5)
    parts = [set(part.indices.tolist()) for part in data.splits.values()]
    assert [len(part) for part in parts] == [19, 6, 5] and set.union(*parts) == set(range(30))
    few = load_streamed(whole, source=source, val=6, test=5, per_class=3, train_limit=8)
    assert len(few.train) == 8 and np.bincount(few.train.labels).max() <= 3
    assert set(few.train.indices) <= parts[0] and np.array_equal(few.test.indices, data.test.indices)
    with pytest.raises(DataError, match="the 8 images of this split stay on disk"):
        _ = few.train.images


@layouts
def test_a_streamed_sets_digests_are_equal_for_equal_images_wherever_they_are(tmp_path, source):
    one, two = (load_streamed(WRITE[source](tmp_path / name), source=source) for name in "ab")
    digests = [[data.digest(split) for split in ("train", "test")] for data in (one, two)]
    assert digests[0] == digests[1] and digests[0][0] != digests[0][1]
    assert load_streamed(tmp_path / "a", source=source, train_limit=8).digest("train") != digests[0][0]


def test_digests_in_memory_depend_on_every_pixel_and_label():
    data, found = load(), set()
    for array in (data.train.images, data.train.labels):
        for change in (0, 1):
            array.flat[5] ^= change
            found.add(data.digest("train"))
    assert len(found) == 3 and all(len(digest) == 16 for digest in found)


def test_a_set_sent_to_another_process_is_small_and_the_same(tmp_path):
    data = load_streamed(write_shards(tmp_path), val=6)
    ours = bits(data.open(CPU, 8, 8).train(0, "a"))  # derives what need not be sent
    sent = pickle.dumps(data)
    assert len(sent) < 5000
    assert bits(pickle.loads(sent).open(CPU, 8, 8).train(0, "a")) == ours


def test_test_shards_count_if_they_have_labels(tmp_path):
    """ImageNet's have none: there the public validation images are the test set."""
    write_shards(tmp_path)
    write_parquet(tmp_path / "test-00000-of-00001.parquet", photographs(5), [-1] * 5)
    data = load_streamed(tmp_path)
    assert (data.count("test"), data.count("val")) == (7, 0)
    write_parquet(tmp_path / "test-00000-of-00001.parquet", photographs(5), [0, 1, 2, 0, 1])
    data = load_streamed(tmp_path)
    assert (data.count("test"), data.count("val"), data.count("train")) == (5, 7, 30)
    with refused("data.val = 3", "validation split of its own"):
        load_streamed(tmp_path, val=3)


@pytest.mark.parametrize(
    ("names", "labels", "text"),
    [
        (None, [0, 2, 1, 9], "labels go up to 9 with only 8 images"),
        (None, [0, 2, -1, 3], "test.parquet: row 2: label -1 is out of range; labels must be from 0 to 3"),
        ("a,b,c", [0, 0, 1, 3], "test.parquet: row 3: label 3 is out of range; labels must be from 0 to 2"),
        ("a,b,d", [0, 0, 1, 2], "test.parquet: its class names differ from those of "),
    ],
)
@pytest.mark.parametrize("source", ["parquet", "shards"])
def test_labels_fit_the_class_names_or_number_the_classes(tmp_path, source, names, labels, text):
    config = DataConfig(source=source, path=str(tmp_path), pad=0)
    train = None if names is None else "a,b,c"
    write_parquet(tmp_path / "train.parquet", FILES[:4], [0, 1, 2, 2], names=train)
    write_parquet(tmp_path / "test.parquet", FILES[:4], [0, 1, 2, 0], names=train)
    assert load_data(config, 0).class_names == (tuple("abc") if names else tuple("012"))
    write_parquet(tmp_path / "test.parquet", FILES[:4], labels, names=names)
    with refused(text):
        load_data(config, 0)


def test_sizes_that_do_not_fit_the_set(tmp_path):
    with refused("data.pad = 8: of images of 8x8 pixels", "--data.image-size"):
        load(pad=8)
    with refused("data.image_size = 32: not for shards; set --data.crop, --data.resize"):
        load_streamed(write_shards(tmp_path), image_size=32)
    odd = Named("mine:odd", lambda config: ([(np.zeros((6, 6, 2), np.uint8), 0)] * 9,) * 2)
    with refused("data.augment = 'randaugment': for images of 1 or 3 channels, not 2"):
        load_data(DataConfig(odd, augment="randaugment"), 0)


@layouts
def test_the_files_must_be_where_the_set_is_opened(tmp_path, source):
    data = load_streamed(WRITE[source](tmp_path / "here"), source=source)
    (tmp_path / "here").rename(tmp_path / "there")
    with refused("no such file on ", "; every node must see the images there"):
        list(data.open(CPU, 8, 8).train(0, "a"))

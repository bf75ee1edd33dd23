"""Small sets: the digits, CIFAR with a made-up archive, rows of Parquet files, and scaling."""

import hashlib
import pickle
import re
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import numpy as np
import pytest
import torch
from made_up_images import encode, make_split, random_pixels, refused, write_parquet
from PIL import Image
from sklearn import datasets, model_selection
from torchvision.datasets import CIFAR10, CIFAR100

from raygf.config.run import DataConfig
from raygf.data import small_sets
from raygf.data.small_sets import decode_parts, load_cifar, load_digits, load_own, resize
from raygf.data.stores import Part, index_shards
from raygf.errors import DataError, Named, UserError

PIXELS = random_pixels(7)
FILES = [encode(pixels) for pixels in PIXELS]
CHW = np.stack(PIXELS).transpose(0, 3, 1, 2)


def test_digits_are_those_of_the_library_split_as_it_splits_them(monkeypatch):
    source, original = load_digits(None), datasets.load_digits()
    assert source.class_names == tuple("0123456789") and source.test is not None
    parts = model_selection.train_test_split(
        np.arange(1797), test_size=497, random_state=0, stratify=original.target
    )
    for split, indices in zip((source.train, source.test), map(np.sort, parts), strict=True):
        expected = np.rint(original.images[indices] * (255 / 16)).astype(np.uint8)
        assert np.array_equal(split.images, expected[:, None])
        assert np.array_equal(split.labels, original.target[indices])
    assert load_digits(32).train.images.shape == (1300, 1, 32, 32)
    monkeypatch.setattr(small_sets, "find_spec", lambda name: None)
    with refused("pip install scikit-learn"):
        load_digits(None)


def store(path, content):
    path.write_bytes(pickle.dumps(content))
    return hashlib.md5(path.read_bytes()).hexdigest()


def make_archive(folder, kind, key, monkeypatch):
    """An archive of 20 images a file, whose checksums torchvision is told to expect."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for part in ("train_list", "test_list"):
        files = []
        for name, _ in getattr(kind, part):
            data = random.integers(0, 256, (20, 3072), dtype=np.uint8)
            files.append([name, store(folder / name, {"data": data, key: [*range(10), *range(10)]})])
        monkeypatch.setattr(kind, part, files)
    md5 = store(folder / kind.meta["filename"], {kind.meta["key"]: list("abcdefghij")})
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5})
    return folder


def test_cifar10_and_cifar100_by_its_fine_labels(tmp_path, monkeypatch):
    archive = make_archive(tmp_path / "cifar-10-batches-py", CIFAR10, "labels", monkeypatch)
    source = load_cifar("cifar10", str(tmp_path), None)
    raw = pickle.loads((archive / "data_batch_1").read_bytes())["data"]
    assert source.train.images.shape == (100, 3, 32, 32)
    assert np.array_equal(source.train.images[:20], raw.reshape(20, 3, 32, 32))
    assert source.train.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert source.name == "cifar10" and source.class_names == tuple("abcdefghij")
    assert source.statistics is not None and source.statistics.mean == (0.4914, 0.4824, 0.4467)
    small = load_cifar("cifar10", str(tmp_path), 16)
    assert small.test is not None and small.test.images.shape == (20, 3, 16, 16)
    make_archive(tmp_path / "cifar-100-python", CIFAR100, "fine_labels", monkeypatch)
    source = load_cifar("cifar100", str(tmp_path), None)
    assert source.name == "cifar100" and source.train.labels.tolist() == [*range(10), *range(10)]
    assert source.statistics is not None and source.statistics.std == (0.2675, 0.2565, 0.2761)


def test_an_archive_that_is_missing_or_damaged_is_named(tmp_path, monkeypatch):
    archive = make_archive(tmp_path / "cifar-10-batches-py", CIFAR10, "labels", monkeypatch)
    path, whole = archive / "data_batch_2", (archive / "data_batch_2").read_bytes()
    path.write_bytes(whole[:-1])
    with refused(f"{archive}: incomplete, or damaged (by MD5 sums); unpack http", "--data.path"):
        load_cifar("cifar10", str(tmp_path), None)
    path.unlink()
    with refused(f"{archive}: incomplete, or damaged"):
        load_cifar("cifar10", str(tmp_path), None)
    with refused(f"{tmp_path}/none/cifar-10-batches-py: no such folder; unpack http"):
        load_cifar("cifar10", f"{tmp_path}/none", None)


def decoded(path, files, *parts, size=None):
    """Those of ``files`` that the three ``parts`` name, out of one Parquet file."""
    stored = index_shards([write_parquet(path / "train.parquet", files, [*range(len(files))])])
    train, val, test = (Part(stored, np.array(part, np.int64)) for part in parts)
    return list(decode_parts((train, val, test), size))


def test_rows_are_decoded_into_arrays(tmp_path):
    parts = ([0, 1, 2, 5], [], [3, 6])
    splits = decoded(tmp_path, FILES, *parts)
    for split, part in zip(splits, parts, strict=True):
        assert np.array_equal(split.images, CHW[part]) and split.labels.tolist() == part
        assert split.images.shape[1:] == (3, 5, 5)


def test_rows_that_are_not_needed_may_be_anything(tmp_path):
    other = encode(random_pixels(1, 9)[0])
    files = [*FILES[:3], b"no image", None, other]
    assert np.array_equal(decoded(tmp_path, files, [0], [1], [2])[2].images, CHW[2:3])
    with refused("train.parquet: row 3: the image can't be decoded"):
        decoded(tmp_path, files, [0], [1], [2, 3])
    with refused("train.parquet: row 4 has no image bytes"):
        decoded(tmp_path, files, [0], [1, 4], [2])
    with refused("train.parquet: row 5: image sizes differ: 9x9 here, 5x5 in", "--data.image-size"):
        decoded(tmp_path, files, [0, 5], [1], [2])
    assert decoded(tmp_path, files, [0, 5], [1], [2], size=6)[0].images.shape == (2, 3, 6, 6)


def test_too_large_for_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(small_sets, "MAX_BYTES", 6 * 75)
    assert len(decoded(tmp_path, FILES, [0, 1, 2], [3], [4, 5])[0]) == 3
    with refused("7 images of 5x5 pixels", "GiB", "--data.image-size"):
        decoded(tmp_path, FILES, [0, 1, 2], [3], [4, 5, 6])
    with refused("1 images of 50x50 pixels"):
        decoded(tmp_path, FILES, [0], [], [], size=50)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [4, 13, 32])
def test_scaling_is_pillows_bilinear(size):
    images = make_split(2, (1, 8, 8)).images
    images.flags.writeable = False  # as in Ray's object store
    expected = [
        np.asarray(Image.fromarray(image[0]).resize((size, size), Image.Resampling.BILINEAR))
        for image in images
    ]
    assert np.abs(resize(images, size)[:, 0].astype(int) - np.stack(expected)).max() <= 1


def test_scaling_cuts_the_central_square_first_and_changes_nothing_of_that_size():
    images = make_split(2, (3, 6, 10)).images
    assert resize(images, None) is images
    assert np.array_equal(resize(images, 6), images[..., 2:8])
    assert np.array_equal(resize(images, 12), resize(images[..., 2:8], 12))


class Rows(list):
    """A map-style data set with names of classes."""

    classes = ("no", "yes")


RED = np.zeros((5, 5, 3), np.uint8)
RED[..., 0] = 255


@pytest.mark.parametrize(
    ("image", "pixels"),
    [
        (RED, RED.transpose(2, 0, 1)),
        (RED[..., 0], RED[None, ..., 0]),
        (Image.fromarray(RED), RED.transpose(2, 0, 1)),
        (Image.fromarray(RED).convert("P"), RED.transpose(2, 0, 1)),
        (Image.fromarray(RED[..., 0]), RED[None, ..., 0]),
        (torch.tensor(RED).permute(2, 0, 1), RED.transpose(2, 0, 1)),
        (torch.full((1, 2, 2), 100 / 255), np.full((1, 2, 2), 100)),
    ],
)
def test_own_images_may_be_pictures_arrays_or_tensors(image, pixels):
    sets = Rows([(image, 1), (image, torch.tensor(0))]), None
    found = load_own(DataConfig(Named("mine:sets", lambda config: sets)))
    assert np.array_equal(found.train.images, np.stack([pixels] * 2)) and found.train.labels.tolist() == [
        1,
        0,
    ]
    assert (found.name, found.class_names, found.test) == ("sets", ("no", "yes"), None)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([(RED - 5.0, 0)], "(not normalised), not float64 from -5 to 250"),
        ([(RED, 0), (RED[:4], 1)], "image sizes differ: 5x4 at 1, 5x5 at 0; set data.image_size"),
        ([(RED, 0), (RED, 2)], "classes go from 0 to 2; number them from 0"),
        ([(RED, -1)], "classes go from -1 to -1"),
        ([RED[0, 0, 0]], "the images can't be read: TypeError"),
        (None, "the images can't be read: TypeError"),
    ],
)
def test_own_images_that_are_no_images_are_refused(rows, says):
    sets = rows if rows is None else (Rows(rows), None)
    with pytest.raises(UserError, match=re.escape(says)):
        load_own(DataConfig(Named("mine:sets", lambda config: sets)))


def test_a_set_of_the_hub_is_read_by_its_kinds_of_columns(monkeypatch):
    """By a stand-in with the two kinds of features and the rows as the package gives them."""
    kinds = {"Image": type("Image", (), {}), "ClassLabel": type("ClassLabel", (), {"names": ["no", "yes"]})}
    rows = Rows([{"id": 1, "picture": Image.fromarray(RED), "kind": 1}])
    rows.features = {"id": 0, "picture": kinds["Image"](), "kind": kinds["ClassLabel"]()}
    hub = ModuleType("datasets")
    hub.load_dataset = {"some/set": {"train": rows, "validation": rows}}.__getitem__
    hub.__spec__ = ModuleSpec("datasets", None)
    monkeypatch.setitem(sys.modules, "datasets", hub)
    found = load_own(DataConfig("hf:some/set"))
    assert np.array_equal(found.train.images[0], RED.transpose(2, 0, 1)) and found.test.labels.tolist() == [1]
    assert (found.name, found.class_names) == ("some/set", ("no", "yes"))
    del rows.features["kind"]
    with pytest.raises(DataError, match="no columns of images and classes among id, picture"):
        load_own(DataConfig("hf:some/set"))

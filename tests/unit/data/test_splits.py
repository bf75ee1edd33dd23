"""Seeded splits: exact counts, disjoint, repeatable."""

from itertools import chain

import numpy as np
import pytest
from made_up_images import make_split, refused

from raygf.config.run import DataConfig
from raygf.data.splits import Source, divide
from raygf.errors import DataError

NAMES = tuple("abcdefghij")
LABELS = np.arange(200, dtype=np.int64) % 10


def divided(seed=0, **fields):
    return divide(LABELS, NAMES, DataConfig(**fields), seed)


@pytest.mark.parametrize(
    "fields", [{}, {"val": 30}, {"val": 198, "train_limit": 2}, {"per_class": 20, "train_limit": 200}]
)
def test_training_and_validation_images_are_disjoint_complete_and_in_order(fields):
    train, val = divided(**fields)
    assert len(val) == fields.get("val", 0)
    assert np.array_equal(np.sort(np.concatenate([train, val])), np.arange(200))
    assert (np.diff(train) > 0).all() and (np.diff(val) > 0).all()


@pytest.mark.parametrize("fields", [{"val": 30}, {"per_class": 3}, {"train_limit": 17}])
def test_the_seed_decides(fields):
    first, again, other = (divided(seed, **fields) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_classes_and_limit_are_cut_from_what_is_left_by_the_draws_before():
    _, held_out = divided(val=30)
    per_class, val = divided(val=30, per_class=7)
    assert np.array_equal(np.bincount(LABELS[per_class]), np.full(10, 7))
    assert np.array_equal(val, held_out) and not set(per_class) & set(val)
    limited, _ = divided(val=30, per_class=7, train_limit=41)
    assert len(limited) == 41 and set(limited) <= set(per_class)
    for field in ("per_class", "train_limit"):
        small, large = (divided(**{field: count})[0] for count in (4, 9))
        assert set(small) < set(large)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"val": 200}, "data.val = 200: there are only 200 training images.*lower --data.val"),
        ({"train_limit": 201}, "data.train_limit = 201: only 200.*lower --data.train-limit"),
        ({"val": 10, "train_limit": 191}, "only 190 training images"),
        ({"per_class": 21}, "data.per_class = 21: class 'a' has only 20.*lower --data.per-class"),
        ({"val": 199}, "1 training image is left: at least 2 are needed to train.*lower --data.val"),
        ({"train_limit": 1}, "1 training image is left.*--data.train-limit"),
    ],
)
def test_more_than_there_are_is_refused(fields, text):
    with pytest.raises(DataError, match=text):
        divided(**fields)


def source(**fields):
    return Source("set", NAMES, make_split(30), **fields)


def brightness(split):
    """A number for each image, by which it can be told from the others."""
    return split.images.sum(axis=(1, 2, 3), dtype=np.int64).tolist()


def test_a_test_set_that_is_held_out_is_the_same_whatever_the_seed():
    whole = source()
    first, again, other = (whole.divide(DataConfig(val=6, test=5), seed) for seed in (0, 0, 1))
    assert [len(split) for split in first] == [19, 6, 5]
    assert sorted(chain(*map(brightness, first))) == sorted(brightness(whole.train))
    assert list(map(brightness, first)) == list(map(brightness, again))
    assert brightness(first[1]) != brightness(other[1]) and brightness(first[2]) == brightness(other[2])


def test_splits_that_the_set_brings_are_kept_as_they_are():
    own = source(test=make_split(7, seed=1), val=make_split(4, seed=2))
    train, val, test = own.divide(DataConfig(), 0)
    assert train is own.train and val is own.val and test is own.test
    with refused("data.val = 3: set has a validation split of its own", "--data.val 0"):
        own.divide(DataConfig(val=3), 0)
    with refused("data.test = 5: set has test images of its own", "leave --data.test out"):
        own.divide(DataConfig(test=5), 0)


def test_test_images_must_come_from_somewhere():
    with refused("set has no test images", "--data.test"):
        source().divide(DataConfig(), 0)
    with refused("data.test = 30: there are only 30 training images", "lower --data.test"):
        source().divide(DataConfig(test=30), 0)
    with refused("data.val = 25: there are only 25 training images"):
        source().divide(DataConfig(test=5, val=25), 0)

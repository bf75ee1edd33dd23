"""Seeded splits: exact counts, disjoint, repeatable."""

from __future__ import annotations

import numpy as np
import pytest
from made_up_images import make_split

from raygf.config.run import DataConfig
from raygf.data.splits import Split, divide
from raygf.errors import DataError

NAMES = tuple("abcdefghij")
LABELS = np.arange(200, dtype=np.int64) % 10


def test_validation_and_training_are_disjoint_and_complete() -> None:
    train, val = divide(LABELS, NAMES, DataConfig(val=30), 0)
    assert len(val) == 30
    assert np.array_equal(np.sort(np.concatenate([train, val])), np.arange(200))


def test_without_any_limit_every_image_is_trained_on_in_order() -> None:
    train, val = divide(LABELS, NAMES, DataConfig(), 0)
    assert np.array_equal(train, np.arange(200)) and len(val) == 0


@pytest.mark.parametrize("config", [DataConfig(val=30), DataConfig(per_class=3), DataConfig(train_limit=17)])
def test_the_seed_decides(config: DataConfig) -> None:
    first, again, other = (divide(LABELS, NAMES, config, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_per_class_is_exact_and_after_the_validation_split() -> None:
    train, val = divide(LABELS, NAMES, DataConfig(val=30, per_class=7), 0)
    assert np.array_equal(np.bincount(LABELS[train]), np.full(10, 7))
    assert not set(train) & set(val)
    assert np.array_equal(val, divide(LABELS, NAMES, DataConfig(val=30), 0)[1])


def test_train_limit_comes_last() -> None:
    per_class, _ = divide(LABELS, NAMES, DataConfig(val=30, per_class=7), 0)
    limited, _ = divide(LABELS, NAMES, DataConfig(val=30, per_class=7, train_limit=41), 0)
    assert len(limited) == 41 and set(limited) <= set(per_class)


@pytest.mark.parametrize("field", ["per_class", "train_limit"])
def test_a_smaller_subset_lies_within_a_larger_one(field: str) -> None:
    small, large = (divide(LABELS, NAMES, DataConfig(**{field: count}), 0)[0] for count in (4, 9))
    assert set(small) < set(large)


def test_all_images_may_be_asked_for() -> None:
    train, _ = divide(LABELS, NAMES, DataConfig(val=198, train_limit=2), 0)
    assert len(train) == 2
    train, _ = divide(LABELS, NAMES, DataConfig(per_class=20, train_limit=200), 0)
    assert np.array_equal(train, np.arange(200))


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (DataConfig(val=200), "data.val = 200: there are only 200 training images.*lower --data.val"),
        (DataConfig(val=300), "data.val = 300"),
        (DataConfig(train_limit=201), "data.train_limit = 201: only 200.*lower --data.train-limit"),
        (DataConfig(val=10, train_limit=191), "only 190 training images"),
        (DataConfig(per_class=21), "data.per_class = 21: class 'a' has only 20.*lower --data.per-class"),
        (DataConfig(per_class=2, train_limit=21), "only 20 training images"),
        (DataConfig(val=199), "1 training image is left: at least 2 are needed to train.*lower --data.val"),
        (DataConfig(train_limit=1), "1 training image is left.*--data.train-limit"),
    ],
)
def test_more_than_there_are_is_refused(config: DataConfig, text: str) -> None:
    with pytest.raises(DataError, match=text):
        divide(LABELS, NAMES, config, 0)


def test_a_class_without_images_is_named() -> None:
    with pytest.raises(DataError, match="class 'k' has only 0 training images"):
        divide(LABELS, (*NAMES, "k"), DataConfig(per_class=1), 0)


def test_take_copies() -> None:
    split = make_split(10)
    taken = split.take(np.array([3, 1]))
    assert np.array_equal(taken.images[1], split.images[1]) and taken.labels.tolist() == [3, 1]
    assert not np.shares_memory(taken.images, split.images)


def test_wrong_arrays_are_refused() -> None:
    good = make_split(4)
    with pytest.raises(DataError, match="images must be uint8"):
        Split(good.images.astype(np.float32), good.labels)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"labels must be int64 \(4,\)"):
        Split(good.images, good.labels[:3])

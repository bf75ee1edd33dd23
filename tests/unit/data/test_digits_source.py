"""Scikit-learn's digits."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import datasets

from raygf.config import DataConfig
from raygf.data import load_data
from raygf.data.digits import load_digits


def test_counts_and_pixels() -> None:
    source = load_digits(None)
    assert source.train.images.shape == (1300, 1, 8, 8) and source.test.images.shape == (497, 1, 8, 8)
    assert source.class_names == tuple("0123456789")
    levels = np.unique(np.concatenate([source.train.images, source.test.images]))
    assert np.array_equal(levels, np.rint(np.arange(17) * 255 / 16))


def test_train_and_test_together_are_the_whole_set() -> None:
    source, original = load_digits(None), datasets.load_digits()
    together = np.concatenate([source.train.images, source.test.images]).reshape(1797, 64)
    expected = np.rint(original.data * 255 / 16).astype(np.uint8)
    assert sorted(map(bytes, together)) == sorted(map(bytes, expected))


def test_test_split_is_stratified() -> None:
    source = load_digits(None)
    counts = np.bincount(source.train.labels) + np.bincount(source.test.labels)
    assert np.abs(np.bincount(source.test.labels) - counts * 497 / 1797).max() < 1


def test_only_the_validation_split_depends_on_the_seed() -> None:
    first, second = (load_data(DataConfig(val=200), seed) for seed in (0, 1))
    assert np.array_equal(first.test.images, second.test.images)
    assert not np.array_equal(first.val.images, second.val.images)
    assert (first.count("train"), first.count("val"), first.count("test")) == (1100, 200, 497)


@pytest.mark.parametrize("size", [8, 32])
def test_image_size(size: int) -> None:
    data = load_data(DataConfig(image_size=size), 0)
    assert (data.spec.channels, data.spec.height, data.spec.width, data.spec.classes) == (1, size, size, 10)
    assert data.train.images.shape[2:] == data.test.images.shape[2:] == (size, size)
    assert data.train.images.max() == 255

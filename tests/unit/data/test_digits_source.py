"""Scikit-learn's digits."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from sklearn import datasets, model_selection

from raygf.config.run import DataConfig
from raygf.data.load import load_data
from raygf.data.small_sets import load_digits
from raygf.errors import DataError


def test_counts_and_pixels() -> None:
    source = load_digits(None)
    assert source.train.images.shape == (1300, 1, 8, 8) and source.test.images.shape == (497, 1, 8, 8)
    assert source.class_names == tuple("0123456789")
    levels = np.unique(np.concatenate([source.train.images, source.test.images]))
    assert np.array_equal(levels, np.rint(np.arange(17) * 255 / 16))


def test_images_labels_and_split_are_those_of_the_library() -> None:
    source, original = load_digits(None), datasets.load_digits()
    parts = model_selection.train_test_split(
        np.arange(1797), test_size=497, random_state=0, stratify=original.target
    )
    for split, indices in zip((source.train, source.test), map(np.sort, parts), strict=True):
        expected = np.rint(original.images[indices] * (255 / 16)).astype(np.uint8)
        assert np.array_equal(split.images[:, 0], expected)
        assert np.array_equal(split.labels, original.target[indices])


def test_the_library_is_not_loaded() -> None:
    code = "import sys, raygf.data.small_sets as d; d.load_digits(None); print('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raygf.data.small_sets.find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install scikit-learn"):
        load_digits(None)


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

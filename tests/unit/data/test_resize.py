"""Scaling."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from made_up_images import make_split
from PIL import Image

from raygf.data.small_sets import resize


def test_none_and_the_same_size_change_nothing() -> None:
    images = make_split(3).images
    assert resize(images, None) is images
    assert np.array_equal(resize(images, 6), images)


@pytest.mark.parametrize("size", [4, 13, 32])
def test_is_pillows_bilinear(size: int) -> None:
    images = make_split(2, (1, 8, 8)).images
    expected = [
        np.asarray(Image.fromarray(image[0]).resize((size, size), Image.Resampling.BILINEAR))
        for image in images
    ]
    assert np.abs(resize(images, size)[:, 0].astype(int) - np.stack(expected)).max() <= 1


def test_cuts_the_central_square_first() -> None:
    images = make_split(2, (3, 6, 10)).images
    assert np.array_equal(resize(images, 6), images[..., 2:8])
    assert np.array_equal(resize(images, 12), resize(images[..., 2:8], 12))


def test_read_only_images_serve_without_a_warning() -> None:
    images = make_split(2).images
    images.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resize(images, 9).shape == (2, 3, 9, 9)

"""Scikit-learn's handwritten digits: 1 797 grey images of 8x8 pixels that come with the library."""

from __future__ import annotations

import numpy as np

from raygf.data.resize import resize
from raygf.data.source import Source
from raygf.data.splits import Split

TEST = 497
TEST_SEED = 0  # Not the run's: runs of different seeds are compared on the same test images.


def load_digits(image_size: int | None) -> Source:
    """1 300 images to train on and 497 to test, each class with its share in both; (1, 8, 8) or enlarged."""
    from sklearn import datasets, model_selection

    bunch = datasets.load_digits()
    # Grey values are whole numbers from 0 to 16.
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    whole = Split(resize(images, image_size), bunch.target.astype(np.int64))
    train, test = model_selection.train_test_split(
        np.arange(len(whole)), test_size=TEST, random_state=TEST_SEED, stratify=whole.labels
    )
    names = tuple(str(name) for name in bunch.target_names)
    return Source("digits", names, whole.take(np.sort(train)), whole.take(np.sort(test)))

"""Scikit-learn's handwritten digits: 1 797 grey images of 8x8 pixels that come with the library."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from raygf.data.resize import resize
from raygf.data.source import Source
from raygf.data.splits import Split
from raygf.errors import DataError

_TEST = bytes.fromhex(
    "00200488b526304000164121934205005a00080122240028062c1e081108960a009019120420fca0128110e040"
    "080adab0441524c942c8a00a0030804004d821408b8020004885c40010400ea090000548e800301000020ecc09"
    "005224840083b8013c21a69c0a0224000fc9402804a498cd02124061e5008024604e9c376a8192160154c84048"
    "42a0a4180a5000b40b8561e68811804b126c80c02205068e420109f202c141398813c009190000148e2102c410"
    "a8e50133283924c944c0c8680e0102832682028922a6402c26062108a860809889a00c1286024a12853ca41500"
)
"""A bit an image: is it one of the 497 to test on? As scikit-learn's ``train_test_split`` draws them from
``random_state`` 0, each class with its share. Runs of different seeds are compared on the same images."""


def load_digits(image_size: int | None) -> Source:
    """1 300 images to train on and 497 to test, each class with its share in both; (1, 8, 8) or enlarged.

    The library's file is read, the library is not loaded: that takes a second, in every process.

    Raises:
        DataError: scikit-learn is not installed.
    """
    table = np.loadtxt(_library() / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    # Grey values are whole numbers from 0 to 16.
    images = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    whole = Split(resize(images, image_size), table[:, -1].astype(np.int64))
    test = np.unpackbits(np.frombuffer(_TEST, np.uint8), count=len(table)).astype(bool)
    names = tuple(str(digit) for digit in range(10))
    return Source("digits", names, whole.take(np.flatnonzero(~test)), whole.take(np.flatnonzero(test)))


def _library() -> Path:
    spec = find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("the digits come with scikit-learn: pip install scikit-learn")
    return Path(spec.submodule_search_locations[0])

"""Small images of one size, held in memory: scikit-learn's digits, CIFAR, and rows of Parquet files."""

import math
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from raygf.config.fields import local_path
from raygf.config.run import DataConfig
from raygf.data.base import ChannelStatistics
from raygf.data.pixels import decode_rgb
from raygf.data.splits import Source, Split
from raygf.data.stores import Part
from raygf.errors import DataError, RaygfError, import_function, user_error

MAX_BYTES = 8 * 2**30
# Of the training images, as in the program of MSDNet (github.com/kalviny/MSDNet-PyTorch, dataloader.py).
STATISTICS = {
    "cifar10": ChannelStatistics((0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616)),
    "cifar100": ChannelStatistics((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}


_TEST = bytes.fromhex(
    "00200488b526304000164121934205005a00080122240028062c1e081108960a009019120420fca0128110e040"
    "080adab0441524c942c8a00a0030804004d821408b8020004885c40010400ea090000548e800301000020ecc09"
    "005224840083b8013c21a69c0a0224000fc9402804a498cd02124061e5008024604e9c376a8192160154c84048"
    "42a0a4180a5000b40b8561e68811804b126c80c02205068e420109f202c141398813c009190000148e2102c410"
    "a8e50133283924c944c0c8680e0102832682028922a6402c26062108a860809889a00c1286024a12853ca41500"
)
"""A bit an image: is it one of the 497 to test on? As scikit-learn's ``train_test_split`` draws them from
``random_state`` 0, each class with its share. Runs of different seeds are compared on the same images."""


def load_digits(image_size: int | None) -> Source[Split]:
    """1 300 images to train on and 497 to test, each class with its share in both; (1, 8, 8) or enlarged.

    The library's file is read, the library is not loaded: that takes a second, in every process.

    Raises DataError: scikit-learn is not installed.
    """
    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise DataError("the digits come with scikit-learn: pip install scikit-learn")
    file = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(file, delimiter=",")
    # Grey values are whole numbers from 0 to 16.
    images = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    whole = Split(resize(images, image_size), table[:, -1].astype(np.int64))
    test = np.unpackbits(np.frombuffer(_TEST, np.uint8), count=len(table)).astype(bool)
    names = tuple(str(digit) for digit in range(10))
    return Source("digits", names, whole.take(np.flatnonzero(~test)), whole.take(np.flatnonzero(test)))


def load_cifar(name: Literal["cifar10", "cifar100"], path: str, image_size: int | None) -> Source[Split]:
    """50 000 training and 10 000 test images of 32x32 pixels, unless scaled.

    ``path``: the folder that holds the unpacked archive, ``cifar-10-batches-py`` or ``cifar-100-python``.

    Raises DataError: the folder or a file is missing, or a file differs from the published one (MD5).
    """
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    root = local_path("data.path", path)
    try:
        train, test = (kind(root, train=is_train, download=False) for is_train in (True, False))
    except RuntimeError as error:
        folder = root / kind.base_folder
        how = "incomplete, or damaged (by MD5 sums)" if folder.is_dir() else "no such folder"
        raise DataError(f"{folder}: {how}; unpack {kind.url} in {root} or set --data.path") from error
    pixels = (np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)) for part in (train, test))
    targets = (np.asarray(part.targets, np.int64) for part in (train, test))
    splits = [
        Split(resize(images, image_size), labels) for images, labels in zip(pixels, targets, strict=True)
    ]
    return Source(name, tuple(train.classes), splits[0], splits[1], statistics=STATISTICS[name])


HUB = "hf:"


def load_own(config: DataConfig) -> Source[Split]:
    """The images of the user's own function ``data.source``, or of a set of the Hugging Face Hub.

    The function is called with ``config``, and returns map-style data sets of (image, class) to train on and
    to test on; None in place of the latter: some are held out. An image is a PIL image, an array (H, W, C) or
    (H, W), or a tensor (C, H, W); of uint8, or of floats from 0 to 1. Classes are numbered from 0; their
    names are ``classes`` of the first set, if it has that.

    Raises:
        ConfigError: the function can't be imported, or fails.
        DataError: what it returns is not as above, sizes differ, or the images are too many for the memory.
    """
    name = config.source
    make = _hub_sets if name.startswith(HUB) else import_function("data.source", name)
    try:
        sets = make(config)
        train, test = _read(sets[0], config), None if sets[1] is None else _read(sets[1], config)
        labels = np.concatenate([train.labels, *([test.labels] if test else [])])
        names = getattr(sets[0], "classes", range(labels.max() + 1))
    except RaygfError:
        raise
    except (Exception, SystemExit) as error:  # it is the user's, and may raise anything
        raise user_error("data.source", name, "the images can't be read", error) from error
    if labels.min() < 0 or labels.max() >= len(names):
        says = f"classes go from {labels.min()} to {labels.max()}; number them from 0 to {len(names) - 1}"
        raise DataError(f"data.source = {name!r}: {says}")
    return Source(name.rpartition(":")[2], tuple(map(str, names)), train, test)


def _read(part: Any, config: DataConfig) -> Split:
    """All images of a map-style data set, scaled as ``config`` says."""
    images: list[NDArray[np.uint8]] = []
    labels = np.empty(len(part), np.int64)
    for index in range(len(part)):
        image, labels[index] = part[index]
        images.append(resize(_pixels(image)[None], config.image_size)[0])
        if images[-1].shape != images[0].shape:
            found = f"{_size(images[-1].shape)} at {index}, {_size(images[0].shape)} at 0"
            raise DataError(
                f"data.source = {config.source!r}: image sizes differ: {found}; set data.image_size"
            )
        require_memory(0 if index else len(part), images[0].shape)
    return Split(np.stack(images), labels)


def _pixels(image: Any) -> NDArray[np.uint8]:
    """Any image as uint8 (C, H, W)."""
    from torchvision.transforms.v2 import functional as transforms

    if isinstance(image, Image.Image) and image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    pixels = transforms.to_image(image)
    if pixels.is_floating_point() and pixels.min() >= 0 and pixels.max() <= 1:
        pixels = (pixels * 255).round().to(torch.uint8)
    if pixels.dtype != torch.uint8:
        kind = f"{pixels.dtype} from {pixels.min():g} to {pixels.max():g}".removeprefix("torch.")
        raise DataError(f"images must be uint8, or floats from 0 to 1 (not normalised), not {kind}")
    array: NDArray[np.uint8] = pixels.numpy()
    return array


class _HubPart:
    """A split of the Hub as (image, class), by the first columns of these kinds."""

    def __init__(self, rows: Any) -> None:
        kinds = {type(feature).__name__: name for name, feature in reversed(rows.features.items())}
        try:
            self._image, self._label = kinds["Image"], kinds["ClassLabel"]
        except KeyError:
            raise DataError(f"no columns of images and classes among {', '.join(rows.features)}") from None
        self._rows, self.classes = rows, rows.features[self._label].names

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        row = self._rows[index]
        return row[self._image], row[self._label]


def require_hub(config: DataConfig) -> None:
    """Raise DataError unless the Hub's package is installed."""
    if find_spec("datasets") is None:
        raise DataError(f"data.source = {config.source!r}: needs a package: pip install datasets")


def _hub_sets(config: DataConfig) -> tuple[Any, Any]:
    """Images to train on and to test on, the Hub's "validation" where it has no "test"."""
    require_hub(config)
    from datasets import load_dataset

    splits = load_dataset(config.source.removeprefix(HUB))
    test = splits.get("test") or splits.get("validation")
    return _HubPart(splits["train"]), None if test is None else _HubPart(test)


def decode_parts(parts: tuple[Part, Part, Part], image_size: int | None) -> tuple[Split, Split, Split]:
    """The images of training, validation and test ``parts``, decoded.

    All must have one size unless ``image_size`` scales them (the central square of each, see ``resize``).

    Raises DataError: an image is missing or damaged, sizes differ, or the pixels would take more than 8 GiB.
    """
    shape = next(_decoded(parts[0], image_size))[1].shape
    require_memory(sum(map(len, parts)), shape)
    train, val, test = (_decode(part, image_size, shape) for part in parts)
    return train, val, test


def _decode(part: Part, image_size: int | None, shape: tuple[int, ...]) -> Split:
    images = np.empty((len(part), *shape), np.uint8)
    for place, (where, pixels) in enumerate(_decoded(part, image_size)):
        if pixels.shape != shape:
            raise DataError(
                f"{where}: image sizes differ: {_size(pixels.shape)} here, {_size(shape)} in the first; set "
                "--data.image-size"
            )
        images[place] = pixels
    return Split(images, part.labels)


def _decoded(part: Part, image_size: int | None) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Where each image is, and its pixels uint8 (3, H, W)."""
    for where, file in part.files():
        if file is None:
            raise DataError(f"{where} has no image bytes; images must be stored inside the file")
        try:
            pixels = decode_rgb(file.tobytes())
        except ValueError as error:
            raise DataError(f"{where}: {error}; fetch it again or leave the row out") from error
        yield where, resize(pixels[None], image_size)[0]


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[-1]}x{shape[-2]}"


def require_memory(count: int, shape: Sequence[int]) -> None:
    """Raise DataError if ``count`` images uint8 of ``shape`` (C, H, W) are more than may be held in memory.

    To be asked before they are scaled: the first one may be too large already.
    """
    needed = count * math.prod(shape)
    if needed > MAX_BYTES:
        raise DataError(
            f"{count} images of {shape[-1]}x{shape[-2]} pixels take {needed / 2**30:.1f} GiB; at most "
            f"{MAX_BYTES / 2**30:g} GiB are held in memory: set a smaller --data.image-size"
        )


def resize(images: NDArray[np.uint8], size: int | None) -> NDArray[np.uint8]:
    """``images`` uint8 (N, C, H, W) as (N, C, size, size): bilinear, smoothed when made smaller.

    An image that is not square is cut to its central square first, so nothing is distorted. ``size`` None
    leaves the images as they are.

    Raises DataError: they would take more memory than a set may.
    """
    if size is None:
        return images
    require_memory(len(images), (images.shape[1], size, size))
    side = min(images.shape[2:])
    top, left = ((length - side) // 2 for length in images.shape[2:])
    square = images[:, :, top : top + side, left : left + side]
    if side == size:
        return np.ascontiguousarray(square)
    # tensor() copies: the array may be read-only, which from_numpy can't stand for.
    scaled = functional.interpolate(torch.tensor(square), size=(size, size), mode="bilinear", antialias=True)
    pixels: NDArray[np.uint8] = scaled.contiguous().numpy()
    return pixels

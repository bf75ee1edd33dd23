"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) from the Python archives, read and checked by torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from raygf.data.resize import resize
from raygf.data.source import Source
from raygf.data.splits import Split
from raygf.data.statistics import ChannelStatistics
from raygf.errors import DataError
from raygf.paths import local_path

# Of the training images, as in the program of MSDNet (github.com/kalviny/MSDNet-PyTorch, dataloader.py).
STATISTICS = {
    "cifar10": ChannelStatistics((0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616)),
    "cifar100": ChannelStatistics((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}


def load_cifar(name: Literal["cifar10", "cifar100"], path: str, image_size: int | None) -> Source:
    """50 000 training and 10 000 test images of 32x32 pixels, unless scaled.

    Args:
        name: which of the two.
        path: the folder that holds the unpacked archive, ``cifar-10-batches-py`` or ``cifar-100-python``.
        image_size: pixels a side to scale to; None: as they are.

    Raises:
        DataError: the folder or a file is missing, or a file differs from the published one (MD5).
    """
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    root = local_path("data.path", path)
    try:
        train, test = (kind(root, train=is_train, download=False) for is_train in (True, False))
    except RuntimeError as error:
        raise DataError(_fault(kind, root)) from error
    return Source(
        name,
        tuple(train.classes),
        _split(train, image_size),
        _split(test, image_size),
        statistics=STATISTICS[name],
    )


def _split(part: Any, image_size: int | None) -> Split:
    images = np.ascontiguousarray(part.data.transpose(0, 3, 1, 2))
    return Split(resize(images, image_size), np.asarray(part.targets, np.int64))


def _fault(kind: Any, root: Path) -> str:
    """Why torchvision refused ``root``, and what to do."""
    from torchvision.datasets.utils import check_integrity

    folder = root / kind.base_folder
    remedy = f"unpack {kind.url} there"
    if not root.is_dir():
        return f"{root}: no such folder; --data.path must hold {kind.base_folder}/ ({kind.url}, unpacked)"
    if not folder.is_dir():
        return f"{folder}: no such folder; unpack {kind.url} in {root} or set --data.path"
    files = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
    for file, md5 in files:
        if not (folder / file).is_file():
            return f"{folder / file}: no such file; {remedy}"
        if not check_integrity(str(folder / file), md5):
            return f"{folder / file}: damaged (its MD5 sum is not the published one); {remedy} anew"
    return f"{folder}: torchvision can't read it; {remedy} anew"

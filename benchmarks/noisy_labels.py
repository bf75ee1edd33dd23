"""CIFAR-10 whose training labels are partly wrong, for ``--data.source noisy_labels:cifar10``."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from raygf.config.run import DataConfig

SHARE, SEED = 0.4, 7
"""Share of the training images, held-out ones among them, that get a class which is not theirs."""


class Images(Dataset[tuple[Image.Image, int]]):
    """The images of one file, with ``labels`` (N,)."""

    def __init__(self, file: Path) -> None:
        table = pq.read_table(file)
        self.classes = (table.schema.metadata or {})[b"class_names"].decode().split(",")
        self._files = table["image"].combine_chunks().field("bytes").to_pylist()
        self.labels: NDArray[np.int64] = table["label"].to_numpy().copy()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.open(io.BytesIO(self._files[index])), int(self.labels[index])


def cifar10(config: DataConfig) -> tuple[Images, Images]:
    """The images of the first training and test file in ``data.path``; those of the former mislabelled."""
    train, test = (Images(min(Path(config.path).glob(f"{name}*.parquet"))) for name in ("train", "test"))
    train.labels = mislabelled(train.labels, len(train.classes))
    return train, test


def mislabelled(labels: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """``labels`` (N,), of which ``SHARE`` have become another class, all others alike."""
    draw = np.random.default_rng(SEED)
    wrong = draw.permutation(len(labels))[: round(SHARE * len(labels))]
    changed = labels.copy()
    changed[wrong] = (labels[wrong] + draw.integers(1, classes, len(wrong))) % classes
    return changed

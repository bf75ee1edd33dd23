"""Images in the standard folder layout: a folder for every split, in it one for every class."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raygf.data.name_table import NameTable
from raygf.errors import DataError

ENDINGS = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
"""Files that are taken for images, in upper or lower case."""


@dataclass(frozen=True, eq=False)
class FolderStore:
    """The image files of one split. An ``raygf.data.image_store.ImageStore``."""

    folder: str
    """The split's folder."""
    class_names: tuple[str, ...]
    """Names of the class folders; the label is the place in this list."""
    files: NameTable
    labels: NDArray[np.int64]
    units: None = None
    bytes_per_image: float = 0.0

    def where(self, image: int) -> str:
        """The file's path."""
        return f"{self.folder}/{self.class_names[self.labels[image]]}/{self.files[image]}"

    def check(self) -> None:
        """Raise DataError if the folder can't be seen from this machine."""
        if not Path(self.folder).is_dir():
            raise DataError(
                f"{self.folder}: no such folder on {platform.node()}; every node must see the images there"
            )

    def open(self) -> FolderReader:
        """A reader, for one process."""
        return FolderReader(self)


class FolderReader:
    """Reads single files."""

    def __init__(self, store: FolderStore) -> None:
        self._store = store

    def read(self, image: int, visit: int) -> NDArray[np.uint8]:
        """The file's bytes; ``visit`` does not matter."""
        path = self._store.where(image)
        try:
            return np.fromfile(path, np.uint8)
        except OSError as error:
            cause = error.strerror or error
            raise DataError(f"{path}: can't be read ({cause}); mend or remove it") from error

    def leave(self, visits: Iterable[int]) -> None:
        """Nothing is kept."""


def index_folder(root: str, split: str, class_names: tuple[str, ...] | None = None) -> FolderStore:
    """The images of ``root``/``split``, by class in the order of the names, by file name within a class.

    Args:
        class_names: the classes; None: the folders that are there, sorted.

    Raises:
        DataError: there is no such folder, it has no classes, another class, or a class without images.
    """
    folder = Path(root) / split
    found = tuple(sorted(_folders(folder)))
    if not found:
        raise DataError(f"{folder}: no class folders; images must lie in {folder}/CLASS/")
    names = found if class_names is None else class_names
    strange = sorted(set(found) - set(names))
    if strange:
        raise DataError(f"{folder / strange[0]}: no class of that name among the training images")
    files, labels = [], []
    for label, name in enumerate(names):
        inside = sorted(_images(folder / name)) if name in found else []
        if class_names is None and not inside:
            raise DataError(f"{folder / name}: no images; expected files ending in {', '.join(ENDINGS)}")
        files.extend(inside)
        labels.append(np.full(len(inside), label, np.int64))
    if not files:
        raise DataError(f"{folder}: no images; expected files ending in {', '.join(ENDINGS)}")
    return FolderStore(str(folder), names, NameTable.of(files), np.concatenate(labels))


def _folders(folder: Path) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            yield from (entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: can't be listed ({error.strerror}); set --data.path") from error


def _images(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        yield from (entry.name for entry in entries if _is_image(entry.name))


def _is_image(name: str) -> bool:
    return name.lower().endswith(ENDINGS) and not name.startswith(".")

"""What a worker does: read, decode, cut out, put into the batch."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from raygf.data.base import SplitName
from raygf.data.decode_tensor import decode_tensor
from raygf.data.image_store import ImageReader, ImageStore
from raygf.data.image_views import evaluation_view, training_view
from raygf.data.tasks import Task
from raygf.errors import DataError
from raygf.seeding import derive_seed


@dataclass(frozen=True)
class ViewSizes:
    """How images are cut."""

    crop: int
    """Pixels a side of what the network sees."""
    resize: int
    """Pixels of the shorter side before the centre is cut out."""
    flip: bool
    """Whether half of the training images are mirrored."""


@dataclass(frozen=True)
class Failure:
    """An image that could not be decoded."""

    place: int
    """Its row of the slot."""
    where: str
    why: str


@dataclass(frozen=True)
class Done:
    """How a task went."""

    failures: tuple[Failure, ...] = ()
    error: str = ""
    """Why the whole task could not be done. A text: exceptions change on their way out of a worker."""


class ViewMaker:
    """Does tasks, putting the images into ``slots`` (S, B, H, W, 3); one for each process."""

    def __init__(
        self, stores: Mapping[SplitName, ImageStore], sizes: ViewSizes, slots: NDArray[np.uint8]
    ) -> None:
        self._stores = stores
        self._sizes = sizes
        self._slots = torch.from_numpy(slots).permute(0, 1, 4, 2, 3)
        self._readers: dict[SplitName, ImageReader] = {}

    def __getitem__(self, task: Task) -> Done:
        """Do ``task``; under this name because torch's DataLoader asks for it so."""
        try:
            return self._do(task)
        except DataError as error:
            return Done(error=str(error))

    def _do(self, task: Task) -> Done:
        reader = self._reader(task.split)
        failures = []
        for place, image, visit in zip(task.places, task.images, task.visits, strict=True):
            file = reader.read(int(image), int(visit))
            try:
                if file is None:
                    raise ValueError("there are no image bytes; images must be stored inside the file")
                view = self._view(decode_tensor(file), int(image), task.key)
            except ValueError as error:
                where = self._stores[task.split].where(int(image))
                failures.append(Failure(int(place), where, str(error)))
            else:
                self._slots[task.slot, place].copy_(view)
        reader.leave(task.over.tolist())
        return Done(tuple(failures))

    def _view(self, image: torch.Tensor, index: int, key: tuple[str | int, ...] | None) -> torch.Tensor:
        sizes = self._sizes
        if key is None:
            return evaluation_view(image, sizes.resize, sizes.crop)
        seed, *names = key
        # Of its own for every image: nothing depends on who does which image in which order.
        stream = random.Random(derive_seed(int(seed), *names, "image", index))
        return training_view(image, sizes.crop, sizes.flip, stream)

    def _reader(self, split: SplitName) -> ImageReader:
        if split not in self._readers:
            self._readers[split] = self._stores[split].open()
        return self._readers[split]

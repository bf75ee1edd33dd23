"""Recognising that memory ran out, and saying how much there was and what takes less."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from raygf.errors import MemoryExhausted

EXIT_KNOBS = (
    "this would happen again, so it was not retried: use smaller batches (batch_size), fewer actors on a "
    "node (resources.actors, resources.cpus_per_exit), or on a GPU a whole one for each "
    "(resources.gpus_per_exit 1)"
)
DRIVER_KNOBS = (
    "use smaller batches (batch_size, eval_batch_size), fewer actors beside the driver (resources.actors), "
    "or on a GPU a whole one for it (resources.driver_gpus 1)"
)
_CPU = "can't allocate memory"
_AMOUNT = re.compile(r"\d\s?([KMGT]i?B|bytes)\b")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that the host or the GPU has no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _CPU in str(error)


def memory_cause(error: BaseException, known: str) -> str:
    """``error`` in one line that has sizes in it: its own, or else those ``known``."""
    words = " ".join(str(error).split())
    text = f"{type(error).__name__}: {words.split(' See documentation')[0][:300]}".rstrip(": ")
    return text if _AMOUNT.search(text) else f"{text} ({known})"


def sizes(batch_size: int, parameters: int) -> str:
    """What memory goes into, for people: ``batches of 64 images, 28.1 MiB of weights``."""
    return f"batches of {batch_size} images, {parameters * 4 / 2**20:.1f} MiB of weights"


@contextmanager
def memory_named(who: str, known: str) -> Iterator[None]:
    """Lack of memory inside becomes MemoryExhausted, saying that ``who`` lacked it; ``known`` sizes help."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        cause = memory_cause(error, known)
        raise MemoryExhausted(
            f"{who} ran out of memory on node {socket.gethostname()}: {cause}; {DRIVER_KNOBS}"
        ) from error

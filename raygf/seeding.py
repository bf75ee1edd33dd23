"""Random streams: every draw comes from a generator named by (seed, purpose, round, exit …)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(seed: int, *key: str | int) -> int:
    """A 63-bit seed for the stream ``key`` of run ``seed``; different keys give independent streams.

    Example: ``derive_seed(0, "exit", round, exit)``.
    """
    name = repr((seed, *key)).encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little") >> 1


def generator(seed: int, *key: str | int) -> torch.Generator:
    """A CPU generator at the start of the stream ``key``. On the CPU, so that all devices draw alike."""
    return torch.Generator().manual_seed(derive_seed(seed, *key))


@contextmanager
def seeded_globals(seed: int, *key: str | int) -> Iterator[None]:
    """Torch's global generators seeded for the stream ``key`` inside, and as they were before outside.

    For code that can't be handed a generator: layer constructors and dropout.
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive_seed(seed, *key))
        yield

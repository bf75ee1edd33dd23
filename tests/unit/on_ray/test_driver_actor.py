"""The driver actor without its actor."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from raygf.config.run import RunConfig
from raygf.on_ray.driver import DriverActor, Parts
from raygf.storage.lock import Owner


class Rubbish:
    """Refers to itself, so that only the garbage collector ends it."""

    def __init__(self) -> None:
        self.itself = self


class Leaving:
    """A driver whose rounds leave rubbish."""

    def __init__(self) -> None:
        self.left: list[weakref.ref[Rubbish]] = []

    def rounds(self, run_id: str) -> Iterator[int]:
        for round in (1, 2, 3):
            self.left.append(weakref.ref(Rubbish()))
            yield round


@pytest.fixture
def no_collections() -> Iterator[None]:
    """Python does not collect garbage by itself meanwhile."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collections")
def test_what_a_round_leaves_is_gone_when_its_record_comes() -> None:
    driver: Any = Leaving()
    assert [len(driver.left) for _ in driver.rounds("") if driver.left[-1]() is not None] == [1, 2, 3]
    actor = DriverActor(RunConfig(), None, Owner.new(), Parts())
    actor._driver = driver = Leaving()  # type: ignore[assignment]
    assert [driver.left[-1]() for _ in actor.rounds("")] == [None, None, None]

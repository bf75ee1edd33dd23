"""The driver in a process of its own: a plain class, to which its handle applies ``ray.remote``."""

from __future__ import annotations

import gc
import queue
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from raygf.config import RunConfig
from raygf.driver import Driver
from raygf.on_ray.bundles import Bundles
from raygf.on_ray.executor import RayExecutor
from raygf.on_ray.exit_actor import MakeTrainer, Place, this_place
from raygf.records import RoundRecord, RunEnd, RunStart
from raygf.storage.owner import Owner
from raygf.storage.run_folder import OpenFolder, RunFolder
from raygf.training.exit_trainer import ExitTrainer


@dataclass(frozen=True)
class Parts:
    """What a driver actor is made of: who trains an exit, and what the checkpoints' folder is."""

    trainer: MakeTrainer = ExitTrainer
    open_folder: OpenFolder = RunFolder


class DriverActor:
    """The plain driver with an Ray executor; ``news`` and ``abandon`` need a thread of their own."""

    def __init__(self, config: RunConfig, bundles: Bundles | None, owner: Owner, parts: Parts) -> None:
        self._config, self._bundles, self._owner, self._parts = config, bundles, owner, parts
        self._news: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._driver: Driver | None = None

    def place(self) -> Place:
        """Where it runs; answered once it does."""
        return this_place()

    def prepare(self) -> RunStart:
        """See ``Driver.prepare``; the driver is made here, as Ray does not hand a constructor's errors on."""
        say, parts = self._news.put, self._parts
        self._driver = Driver(
            self._config,
            partial(RayExecutor, trainer=parts.trainer, bundles=self._bundles, say=say),
            owner=self._owner,
            say=say,
            open_folder=parts.open_folder,
        )
        start = self._driver.prepare()
        gc.freeze()  # what is there now stays: ``collect`` need not look at it
        return start

    def rounds(self, run_id: str) -> Iterator[RoundRecord]:
        """See ``Driver.rounds``; called as a streaming generator.

        What a round leaves behind goes at once. A full collection, which also empties Python's free lists,
        comes by itself only after thousands of rounds; until then some 28 small blocks a round stay.
        """
        assert self._driver is not None
        for record in self._driver.rounds(run_id):
            gc.collect()
            yield record

    def end(self) -> RunEnd:
        """See ``Driver.end``."""
        assert self._driver is not None
        return self._driver.end()

    def close(self) -> None:
        """See ``Driver.close``."""
        if self._driver is not None:
            self._driver.close()

    def news(self, limit: float) -> list[str]:
        """What the driver has to say, waited for ``limit`` seconds at most."""
        with suppress(queue.Empty):
            return [self._news.get(timeout=limit)]
        return []

    def abandon(self) -> None:
        """See ``Driver.abandon``."""
        if self._driver is not None:
            self._driver.abandon()

"""Injects the faults of a plan by replacing parts of executors and drivers.

Faults are files in a folder that all processes of this machine read, as ``fault_plan`` writes them. A fault
that has fired leaves a mark there, with the process and the time. More can be added during a run.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import fault_plan
import ray
from fault_plan import Fault, parse

from raygf.compute import Compute
from raygf.config.run import RunConfig
from raygf.data.base import ALL, Batch, BatchSource, Dataset, Portion, SplitName
from raygf.on_ray.driver import Parts
from raygf.storage.folder import RunFolder
from raygf.training.exit_trainer import ExitTrainer, ExitUpdate
from raygf.training.peers import Peers

for module in (sys.modules[__name__], fault_plan):  # actors can't import them
    ray.cloudpickle.register_pickle_by_value(module)

DELAY_S = 0.7
_STUCK_S = 3600.0
_CHECKPOINT = re.compile(r"round-(\d{6})\.npz")


@dataclass(frozen=True)
class Fired:
    """Where and when a fault happened; ``at``: seconds since 1970."""

    fault: Fault
    pid: int
    at: float


class Faults:
    """The faults in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, text: str) -> None:
        """Have the faults of the plan ``text`` happen, see ``fault_plan``."""
        for fault in parse(text):
            number = len(list(self.folder.glob("fault-*")))
            (self.folder / f"fault-{number:04d}").write_text(str(fault))

    def fired(self) -> list[Fired]:
        """The faults that have happened, in the order of the plan."""
        marks = [json.loads(path.read_text()) for path in sorted(self.folder.glob("fired-*"))]
        return [Fired(parse(mark["fault"])[0], mark["pid"], mark["at"]) for mark in marks]

    def waiting(self) -> list[Fault]:
        """The faults that have not happened."""
        return [fault for number, fault in self._all() if not self._mark(number).exists()]

    def due(self, **like: Any) -> Fault | None:
        """A fault with these fields that has not happened, marked as fired by this process; or None."""
        for number, fault in self._all():
            if all(getattr(fault, name) == value for name, value in like.items()) and self._claim(
                number, fault
            ):
                return fault
        return None

    def log(self, name: str, value: int) -> None:
        """Add ``value`` to the log ``name``."""
        with (self.folder / f"log-{name}").open("a") as log:
            log.write(f"{value}\n")

    def logged(self, name: str) -> list[int]:
        """What the log ``name`` has, in order. ``began-R`` and ``ended-R``: exits of round R; ``writes``."""
        path = self.folder / f"log-{name}"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def trainer(self, config: RunConfig, dataset: Dataset) -> ExitTrainer:
        """An exit trainer that the faults happen to; to be given to ``RayExecutor``."""
        return LoggedTrainer(config, dataset, self)

    def folder_of(self, path: str, name: str) -> RunFolder:
        """A run's folder that the faults happen to; to be given to ``Driver``."""
        return FaultyFolder(self, path, name)

    def parts(self) -> Parts:
        """What a driver actor is made of, for ``RemoteDriver``."""
        return Parts(self.trainer, self.folder_of)

    def _all(self) -> list[tuple[str, Fault]]:
        paths = sorted(self.folder.glob("fault-*"))
        return [(path.name.removeprefix("fault-"), parse(path.read_text())[0]) for path in paths]

    def _mark(self, number: str) -> Path:
        return self.folder / f"fired-{number}"

    def _claim(self, number: str, fault: Fault) -> bool:
        """True for one caller of all processes."""
        try:
            with self._mark(number).open("x") as mark:
                mark.write(json.dumps({"fault": str(fault), "pid": os.getpid(), "at": time.time()}))
                mark.flush()
                os.fsync(mark.fileno())
        except FileExistsError:
            return False
        return True


class LoggedTrainer(ExitTrainer):
    """Logs when trainings begin and end, once for all replicas that share one, and which replicas it had."""

    def __init__(self, config: RunConfig, dataset: Dataset, faults: Faults) -> None:
        super().__init__(config, cast(Dataset, FaultyDataset(dataset, faults)))
        self._faults = faults

    def train(self, state: Any, exit: int, exits: int, round: int, *rest: Any, **named: Any) -> ExitUpdate:
        """See ``ExitTrainer``."""
        peers: Peers | None = named.get("peers")
        if peers is not None:
            self._faults.log(f"replicas-{round}", peers.ranks[0])
        if peers is None or peers.first:
            self._faults.log(f"began-{round}", exit + 1)
        update = super().train(state, exit, exits, round, *rest, **named)
        if peers is None or peers.first:
            self._faults.log(f"ended-{round}", exit + 1)
        return update


class FaultyDataset:
    """The data set ``inner``, whose training batches trigger the faults."""

    def __init__(self, inner: Dataset, faults: Faults) -> None:
        self._inner, self._faults = inner, faults

    def open(self, compute: Compute, batch_size: int, eval_batch_size: int) -> BatchSource:
        """See ``Dataset``."""
        return FaultyBatches(self._inner.open(compute, batch_size, eval_batch_size), self._faults)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@dataclass(frozen=True)
class FaultyBatches:
    """See ``FaultyDataset``."""

    inner: BatchSource
    faults: Faults

    @property
    def dataset(self) -> Dataset:
        """See ``BatchSource``."""
        return self.inner.dataset

    @property
    def batch_size(self) -> int:
        """See ``BatchSource``."""
        return self.inner.batch_size

    def train(self, seed: int, *key: str | int, part: Portion = ALL) -> Iterator[Batch]:
        """See ``BatchSource``; ``key`` is ("exit", round, exit), the exit from 0, or ("fuse", round)."""
        target = {"exit": "exit", "fuse": "share"}[str(key[0])]
        like = {"target": target, "round": key[1], "exit": int(key[2]) + 1 if key[2:] else 0}
        for step, (pixels, labels) in enumerate(self.inner.train(seed, *key, part=part), start=1):
            fault = self.faults.due(**like, step=step)
            if fault is not None:
                suffer(fault.verb)
            bad = fault is not None and fault.verb == "nan"
            yield (pixels * float("nan") if bad else pixels), labels

    def evaluate(self, split: SplitName) -> Iterator[Batch]:
        """See ``BatchSource``."""
        return self.inner.evaluate(split)


def suffer(verb: str) -> None:
    """Apply the fault ``verb`` to this process."""
    if verb == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif verb == "stick":
        time.sleep(_STUCK_S)
    elif verb == "delay":
        time.sleep(DELAY_S)
    elif verb == "exhaust":
        raise MemoryError("made-up lack of memory")
    elif verb == "raise":
        raise ValueError("made-up trouble\nwith a second line")


class FaultyFolder(RunFolder):
    """A run's folder in which writing a checkpoint fails or ends the process."""

    def __init__(self, faults: Faults, path: str, name: str) -> None:
        super().__init__(path, name)
        self._faults = faults

    @contextmanager
    def replacing(self, name: str, *, force: bool = True) -> Iterator[Any]:
        """See ``RunFolder``."""
        found = _CHECKPOINT.fullmatch(name)
        if found is None:
            with super().replacing(name, force=force) as stream:
                yield stream
            return
        round, number = int(found[1]), len(self._faults.logged("writes")) + 1
        self._faults.log("writes", round)
        if self._faults.due(target="write", write=number):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        kill = partial(self._kill_if_due, round)
        kill("before it writes")
        with super().replacing(name, force=force) as stream:
            yield Counted(stream, partial(kill, "while it writes"))
        kill("after it writes")

    def _kill_if_due(self, round: int, moment: str) -> None:
        if self._faults.due(target="driver", round=round, moment=moment):
            os.kill(os.getpid(), signal.SIGKILL)


class Counted:
    """A stream that calls ``then`` after its third write."""

    def __init__(self, stream: Any, then: Any) -> None:
        self._stream, self._then, self._left = stream, then, 3

    def write(self, content: Any) -> Any:
        """Write."""
        written = self._stream.write(content)
        self._left -= 1
        if self._left == 0:
            self._then()
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

"""A sweep's folder: Ray Tune's trials and checkpoints, and in ``raygf/`` what raygf needs to go on.

Tune copies files that lie beside its own when it resumes, and later writes the copies back; hence a folder
of raygf's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import yaml

from raygf.config.run import StorageConfig
from raygf.errors import StorageError
from raygf.storage.folder import RunFolder, brief
from raygf.storage.lock import Owner, RunLock
from raygf.sweep.plan import Plan, read_plan

OURS = "raygf"

_PLAN = "sweep.yaml"
_TRIALS = "trials.yaml"
_TUNE = "experiment_state-"


class SweepFolder:
    """The folder ``storage.name`` in ``storage.path`` (a local path or a URI)."""

    def __init__(self, storage: StorageConfig) -> None:
        """Nothing is created yet.

        Raises:
            StorageError: there is no such kind of storage.
        """
        self._storage = storage
        self._tunes = RunFolder(storage.path, storage.name)
        self.path = self._tunes.shown
        self._files = RunFolder(self.path, OURS)

    @contextmanager
    def held(self) -> Iterator[None]:
        """The folder for this process alone.

        Raises:
            StorageError: another sweep is in it, or it can't be written.
        """
        try:
            self._files.create()
        except OSError as error:
            raise StorageError(f"storage.path: can't write to {self.path}: {brief(error)}") from None
        lock = RunLock(self._files, Owner.new())
        lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def of_trial(self, trial: str) -> str:
        """The folder that Tune keeps ``trial`` in."""
        return self._tunes.path(trial)

    def has_plan(self) -> bool:
        """Whether there is a sweep in it."""
        return _PLAN in self._names(self._files)

    def has_trials(self) -> bool:
        """Whether Tune has written down the state of its trials, so that they can be restored."""
        return any(name.startswith(_TUNE) for name in self._names(self._tunes))

    def write_plan(self, plan: Plan) -> None:
        """Keep ``plan``."""
        self.write(_PLAN, yaml.safe_dump(plan.text(), sort_keys=False).encode())

    def read_plan(self) -> Plan:
        """The plan that is kept, its storage being where it was found.

        Raises:
            StorageError: there is none, or it can't be read.
        """
        if not self.has_plan():
            raise StorageError(f"there is no sweep in {self.path}: check --storage.path and --storage.name")
        plan = read_plan(self._read(_PLAN))
        storage = replace(plan.run.storage, path=self._storage.path, name=self._storage.name)
        return replace(plan, run=replace(plan.run, storage=storage))

    def write_trials(self, trials: dict[str, str]) -> None:
        """Keep every started trial's MLflow run, by the trial's id, in the order of their start."""
        self.write(_TRIALS, yaml.safe_dump(trials, sort_keys=False).encode())

    def read_trials(self) -> dict[str, str]:
        """What ``write_trials`` kept; nothing before the first trial."""
        return self._read(_TRIALS) if _TRIALS in self._names(self._files) else {}

    def write(self, name: str, content: bytes) -> str:
        """Write a file beside the plan, whole or not at all; returns its path.

        Raises:
            StorageError: it could not be written.
        """
        try:
            with self._files.replacing(name, force=False) as stream:
                stream.write(content)
        except OSError as error:
            raise StorageError(f"storage.path: can't write to {self.path}: {brief(error)}") from None
        return self._files.path(name)

    def _read(self, name: str) -> dict[str, Any]:
        try:
            return dict(yaml.safe_load(self._files.read(name)) or {})
        except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
            raise StorageError(f"{self._files.path(name)} can't be read: {brief(error)}") from None

    def _names(self, folder: RunFolder) -> list[str]:
        try:
            return folder.names()
        except OSError as error:
            raise StorageError(f"storage.path: can't read {self.path}: {brief(error)}") from None

"""A run's place in the storage: taken for this run alone, read when it starts, written after every round."""

from __future__ import annotations

import time

from raygf.config import RunConfig
from raygf.errors import CheckpointError, StorageError, StorageLost
from raygf.masked import without_password
from raygf.retry import pause_s
from raygf.saying import Say
from raygf.storage.checkpoint import Checkpoint, CheckpointStore
from raygf.storage.owner import Owner
from raygf.storage.run_folder import OpenFolder, RunFolder
from raygf.storage.run_lock import RunLock
from raygf.storage.same_run import require_same_run


class RunStorage:
    """The checkpoints of the run ``config``, and the lock on their folder, which ``owner`` holds.

    Args:
        say: told of every write that failed and is tried again, and of an owner that may be dead.
        open_folder: makes the folder.
    """

    def __init__(
        self, config: RunConfig, owner: Owner, say: Say, open_folder: OpenFolder = RunFolder
    ) -> None:
        """
        Raises:
            StorageError: there is no such kind of storage.
        """
        storage = config.storage
        self._config = config
        self._say = say
        self._store = CheckpointStore(storage.path, storage.name, storage.keep, open_folder)
        self._lock = RunLock(self._store.files, owner, say=say)

    def open(self) -> tuple[Checkpoint | None, tuple[str, ...]]:
        """Take the folder; returns the checkpoint to go on from, if any, and remarks.

        Raises:
            StorageError: it can't be written, another run is in it, or it holds checkpoints and is not to be
                resumed.
            CheckpointError: no checkpoint in it can be read, or they are of another configuration.
        """
        self._store.check_writable()
        taken = self._lock.acquire()
        try:
            checkpoint, notes = self._find()
        except BaseException:
            self.close()
            raise
        return checkpoint, (*taken, *notes)

    def path(self, round: int) -> str:
        """Where the checkpoint of ``round`` is."""
        return self._store.path(round)

    def save(self, checkpoint: Checkpoint) -> tuple[str, ...]:
        """Write ``checkpoint``; returns a remark for every try that failed.

        Raises:
            StorageLost: none of the tries worked; earlier checkpoints stand.
            RunFailed: another run has taken the folder.
        """
        notes: list[str] = []
        while True:
            self._lock.check()
            try:
                self._store.save(checkpoint)
                return tuple(notes)
            except StorageLost as error:
                pause = pause_s(len(notes), self._config.storage.retries)
                if pause is None:
                    raise StorageLost(f"{error}; tried {len(notes) + 1} times (storage.retries)") from None
                notes.append(f"{error}; trying again after {pause:g} s")
                self._say(notes[-1])
                time.sleep(pause)

    def close(self) -> None:
        """Give the folder back."""
        self._lock.release()

    def _find(self) -> tuple[Checkpoint | None, tuple[str, ...]]:
        store, shown = self._store, without_password(self._store.folder)
        if not self._config.storage.resume:
            if store.rounds():
                raise StorageError(
                    f"{shown} holds checkpoints already: "
                    "go on from them with --storage.resume True or choose another --storage.name"
                )
            return None, ()
        checkpoint, notes = store.newest()
        if checkpoint is None and notes:
            why = notes[0].removesuffix("; trying the one before")
            raise CheckpointError(
                f"no checkpoint in {shown} can be read: {why}; start anew under another --storage.name"
            )
        if checkpoint is None:
            return None, (f"no checkpoint in {shown} yet: starting from the first round",)
        require_same_run(checkpoint, self._config)
        return checkpoint, notes

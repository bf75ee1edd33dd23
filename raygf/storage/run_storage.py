"""A run's place in the storage: taken for this run alone, read when it starts, written after every round.

Beside the checkpoints it has files for people and other programs: ``config.yaml``, ``metrics.csv`` with a
line for every round and exit, and at the end ``summary.json``. Trouble with these costs a note, never the
run.
"""

import csv
import io
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import yaml
from pyarrow import fs

from raygf.config.fields import did_you_mean, flatten, from_dict, to_dict
from raygf.config.recipes import RECIPES, get_recipe
from raygf.config.run import RunConfig, StorageConfig
from raygf.errors import (
    CheckpointError,
    RaygfError,
    StorageError,
    StorageLost,
    without_password,
    without_passwords,
)
from raygf.records import Entry, Notify, RoundRecord, read_history, shortened, to_json
from raygf.storage.checkpoint import Checkpoint, CheckpointStore
from raygf.storage.folder import OpenFolder, RunFolder, brief, file_system
from raygf.storage.lock import Owner, RunLock

_LONGEST_PAUSE_S = 60.0


def pause_s(failures: int, retries: int) -> float | None:
    """Seconds to wait before the next try, 1, 2, 4 … up to a minute; None if it was the last.

    Args:
        failures: tries that failed before this one.
        retries: how many times to try again.
    """
    return None if failures >= retries else min(_LONGEST_PAUSE_S, 2.0**failures)


CONFIG, METRICS, SUMMARY = "config.yaml", "metrics.csv", "summary.json"
_TITLES = (
    "round,exit,training_passes,training_operations,seconds,"
    "train_loss,train_accuracy,val_loss,val_accuracy,fusion_weight\n"
)

_NONE = np.empty(0)

FREE_ON_RESUME = (
    *("resources", "storage", "tracking", "stop_after", "eval_batch_size"),
    "data.workers",
    *("on_divergence", "max_skipped_rounds"),  # a run that has got this far did so under either
)
"""Sections and fields of a run that do not change its result."""


def binding(values: dict[str, Any]) -> dict[str, Any]:
    """The fields of a configuration (as ``to_dict`` gives it) that change the result, by dotted name."""
    free = tuple(f"{name}." for name in FREE_ON_RESUME)
    return {name: value for name, value in flatten(values).items() if not f"{name}.".startswith(free)}


def recipe_of(config: RunConfig, name: str) -> str:
    """``name`` if ``config`` is this recipe with another seed or place of the images at most, else ""."""
    if name not in RECIPES:
        return ""
    ours, theirs = (binding(to_dict(run)) for run in (config, get_recipe(name)))
    return name if {n for n in ours if ours[n] != theirs[n]} <= {"seed", "data.path"} else ""


def require_same_run(checkpoint: Checkpoint, config: RunConfig) -> None:
    """Raise CheckpointError if a field that changes the result differs from the checkpoint's."""
    if not isinstance(checkpoint.meta.get("config"), dict):
        raise CheckpointError("the checkpoint does not say which configuration it belongs to")
    # A field that is newer than the checkpoint has its default there: that is what runs did before.
    stored = {**binding(to_dict(RunConfig())), **binding(checkpoint.meta["config"])}
    now = binding(to_dict(config))
    odd = sorted(name for name in stored.keys() | now.keys() if stored.get(name) != now.get(name))
    if odd:
        shown = "; ".join(f"{name} was {stored.get(name)!r}, is now {now.get(name)!r}" for name in odd[:3])
        raise CheckpointError(
            f"can't resume with another configuration: {shown}; give the same, or another --storage.name"
        )


def metric_lines(entries: Sequence[Entry]) -> str:
    """The lines of ``METRICS`` for shortened entries of rounds; what is not known is left empty."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    for entry in entries:
        seconds = sum(value or 0.0 for value in entry["seconds"].values())
        spent = (entry["training_passes"], entry.get("training_operations"), f"{seconds:.6g}")
        for number, scores in enumerate(zip(*_columns(entry), strict=True), start=1):
            lines.writerow([entry["round"], number, *spent, *scores])
    return text.getvalue()


def _columns(entry: Entry) -> Iterator[Sequence[float | None]]:
    unknown = [None] * len(entry["train"]["loss"])
    for split in ("train", "val"):
        for kind in ("loss", "accuracy"):
            yield (entry[split] or {}).get(kind, unknown)
    yield (entry["fusion"] or {}).get("mean_weight", unknown)


LAST = "last"
"""In place of a run's name: the one that was started last."""


def stored_run(storage: StorageConfig, name: str) -> RunConfig:
    """The run ``name`` in ``storage.path``, or its ``LAST``, set to be resumed with all its settings.

    Raises:
        StorageError: there is none.
        ConfigError: its configuration can't be read by this version.
    """
    system, root = file_system(storage.path)
    selector = fs.FileSelector(root, allow_not_found=True)
    try:
        folders = [info.base_name for info in system.get_file_info(selector)]
        files = system.get_file_info([f"{root}/{folder}/{CONFIG}" for folder in folders])
        known = {folder: info for folder, info in zip(folders, files, strict=True) if info.is_file}
        if known and name == LAST:
            name = max(known, key=lambda folder: known[folder].mtime_ns or 0)
        if name not in known:
            what = "run" if name == LAST else f"run {name}"
            shown = f"no {what} in {without_password(storage.path)}{did_you_mean(name, known)}"
            raise StorageError(f"resume: {shown}; set --storage.path to the folder above")
        values = yaml.safe_load(RunFolder(storage.path, name).read(CONFIG))
        checkpoint, _ = CheckpointStore(storage.path, name, storage.keep).newest()
    except (OSError, yaml.YAMLError) as error:
        raise StorageError(f"resume: {without_password(storage.path)}: {brief(error)}") from None
    run = from_dict(RunConfig, values if checkpoint is None else checkpoint.meta["config"])  # with passwords
    return replace(run, storage=replace(run.storage, path=storage.path, name=name, resume=True))


class RunStorage:
    """The checkpoints of the run ``config``, and the lock on their folder, which ``owner`` holds."""

    def __init__(
        self, config: RunConfig, owner: Owner, notify: Notify, open_folder: OpenFolder = RunFolder
    ) -> None:
        """``notify`` is told of every write that failed and is tried again.

        Raises StorageError: there is no such kind of storage.
        """
        storage = config.storage
        self._config = config
        self._notify = notify
        self._store = CheckpointStore(storage.path, storage.name, storage.keep, open_folder)
        self._lock = RunLock(self._store.files, owner)
        self._unwritten = ""
        self._begun = False

    def open(self) -> tuple[Checkpoint | None, tuple[str, ...]]:
        """Take the folder; returns the checkpoint to resume from, if any, and notes.

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
        """The file of the checkpoint of ``round``."""
        return self._store.path(round)

    def save(self, checkpoint: Checkpoint) -> tuple[str, ...]:
        """Write ``checkpoint``; returns a note on every try that failed.

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
                self._notify(notes[-1])
                time.sleep(pause)

    def begin(self, checkpoint: Checkpoint | None) -> None:
        """Write ``CONFIG``, and ``METRICS`` with the rounds done: a lost process may have written others."""
        self._begun = True
        values = without_passwords(to_dict(self._config))
        values["storage"]["resume"] = False  # so that the file describes the same run ever after
        self.write(CONFIG, yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode())
        done = [] if checkpoint is None else read_history(checkpoint.meta)
        self.write(METRICS, (_TITLES + metric_lines(done)).encode())

    def log(self, record: RoundRecord) -> None:
        """Add the lines of a round to ``METRICS``; those that could not be written come with the next."""
        if (fusion := record.fusion) is not None:  # without its large arrays
            fusion = replace(fusion, weights=_NONE, tensor_cosine=_NONE)
        self._unwritten += metric_lines([shortened(to_json(replace(record, fusion=fusion)))])
        content = self._unwritten.encode()
        if self._attempt(METRICS, lambda: self._store.files.append(METRICS, content)):
            self._unwritten = ""

    def write(self, name: str, content: bytes) -> None:
        """Replace the file ``name`` whole."""
        self._attempt(name, lambda: self._store.files.write(name, content))

    def close(self) -> None:
        """Give the folder back; one that no checkpoint was stored in is deleted."""
        if self._begun:
            with suppress(OSError, RaygfError):
                self._lock.check()
                if not self._store.rounds():
                    self._store.files.delete(CONFIG)
                    self._store.files.delete(METRICS)
        self._lock.release()
        self._store.files.delete_if_empty()

    def _attempt(self, name: str, write: Callable[[], None]) -> bool:
        try:
            write()
        except OSError as error:
            self._notify(f"{name} could not be written: {brief(error)}; the run goes on")
            return False
        return True

    def _find(self) -> tuple[Checkpoint | None, tuple[str, ...]]:
        store, shown = self._store, without_password(self._store.folder)
        if not self._config.storage.resume:
            if store.rounds():
                raise StorageError(
                    f"{shown} holds checkpoints already: "
                    "resume them with --storage.resume True or choose another --storage.name"
                )
            return None, ()
        try:
            checkpoint, notes = store.newest()
        except CheckpointError as error:
            raise CheckpointError(f"{error}; start anew under another --storage.name") from None
        if checkpoint is None:
            return None, (f"no checkpoint in {shown} yet: starting from the first round",)
        require_same_run(checkpoint, self._config)
        return checkpoint, notes

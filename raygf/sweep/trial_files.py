"""A trial's checkpoints between its driver, which writes them, and Ray Tune, which keeps them.

The driver writes to a folder on its own node. Each round's checkpoint is handed to Tune under one fixed name:
after a crash Tune may use a checkpoint's folder again, and there must not be two in it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from pyarrow import fs
from ray import tune

from raygf.config import RunConfig
from raygf.config_dict import to_dict
from raygf.errors import CheckpointError
from raygf.storage.checkpoint import Checkpoint, CheckpointStore, read_archive
from raygf.storage.run_folder import file_system
from raygf.sweep.space import Values

NAME = "checkpoint.npz"
"""What the checkpoint is called in the folders that Tune keeps."""


@contextmanager
def handed_over(path: str) -> Iterator[tune.Checkpoint | None]:
    """The checkpoint file ``path`` as Tune wants it: alone in a folder.

    None if it is gone: records that a lost driver could not hand out come after newer checkpoints.
    """
    with TemporaryDirectory(dir=Path(path).parent, prefix="to-tune-", ignore_cleanup_errors=True) as folder:
        try:
            _link(path, Path(folder) / NAME)
        except FileNotFoundError:
            yield None
        else:
            yield tune.Checkpoint.from_directory(folder)


def _link(path: str, name: Path) -> None:
    try:
        os.link(path, name)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without links
        shutil.copyfile(path, name)


def take_over(given: tune.Checkpoint, trial_folder: str, run: RunConfig, values: Values) -> tuple[str, ...]:
    """Put the checkpoint that Tune has ``given`` where the driver of ``run`` looks for it.

    Population based training gives the checkpoint of another trial, and other ``values`` to go on with; only
    those may differ from what is stored. Should the checkpoint be gone or damaged (Tune may have been killed
    just after it deleted an old one), the newest in ``trial_folder`` serves.

    Returns:
        A remark if another checkpoint than the one given was taken.

    Raises:
        CheckpointError: none can be read.
    """
    notes: tuple[str, ...] = ()
    try:
        checkpoint = _read(given.filesystem, given.path)
    except CheckpointError as error:
        checkpoint, path = _newest(trial_folder, error)
        notes = (f"{error}; going on from {path}",)
    store = CheckpointStore(run.storage.path, run.storage.name, keep=1)
    store.check_writable()
    store.save(_with_values(checkpoint, run, values))
    return notes


def _read(system: fs.FileSystem, folder: str) -> Checkpoint:
    try:
        with system.open_input_file(f"{folder}/{NAME}") as stream:
            return read_archive(stream)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}/{NAME}: {error}") from None
    except OSError as error:
        raise CheckpointError(f"{folder}/{NAME} can't be read: {type(error).__name__}") from None


def _newest(trial_folder: str, first: CheckpointError) -> tuple[Checkpoint, str]:
    """The whole checkpoint of the latest round in ``trial_folder``, and its folder."""
    found: list[tuple[Checkpoint, str]] = []
    system, inner = file_system(trial_folder)
    for info in system.get_file_info(fs.FileSelector(inner, allow_not_found=True)):
        if info.type == fs.FileType.Directory and info.base_name.startswith("checkpoint_"):
            try:
                found.append((_read(system, info.path), info.path))
            except CheckpointError:
                continue
    if not found:
        raise first
    return max(found, key=lambda pair: pair[0].round)


def _with_values(checkpoint: Checkpoint, run: RunConfig, values: Values) -> Checkpoint:
    """``checkpoint`` as if it had been written with ``values``."""
    stored, now = checkpoint.meta.get("config"), to_dict(run)
    if not isinstance(stored, dict):
        return checkpoint
    for name in values:
        stored = _with_value(stored, now, name.split("."))
    return replace(checkpoint, meta={**checkpoint.meta, "config": stored})


def _with_value(stored: dict[str, object], now: dict[str, object], path: list[str]) -> dict[str, object]:
    """``stored`` with the value at ``path`` as it is ``now``."""
    head, rest = path[0], path[1:]
    theirs, ours = stored.get(head), now[head]
    if rest and isinstance(theirs, dict) and isinstance(ours, dict):
        return {**stored, head: _with_value(theirs, ours, rest)}
    return {**stored, head: ours}

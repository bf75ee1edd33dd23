"""The checkpoint that a person means: a file, or a run's folder and its newest checkpoint."""

from __future__ import annotations

from pathlib import Path

from raygf.errors import CheckpointError
from raygf.masked import without_password
from raygf.paths import storage_path
from raygf.storage.checkpoint import CheckpointStore


def find_checkpoint(path: str) -> tuple[str, tuple[str, ...]]:
    """The file that ``path`` (local or a URI) stands for, and a line for every damaged one passed over.

    A path that ends in .npz is a file; anything else is the folder of a run.

    Raises:
        CheckpointError: the folder holds no checkpoint that can be read.
    """
    place, mark, options = path.partition("?") if "://" in path else (path, "", "")
    if place.endswith(".npz"):
        return path, ()
    whole = storage_path("checkpoint", place)
    if "://" not in whole and Path(whole).is_file():
        raise CheckpointError(
            f"{path}: a file, but no checkpoint: those end in .npz; name one, or a run's folder"
        )
    parent, _, name = whole.rstrip("/").rpartition("/")
    store, notes = CheckpointStore(f"{parent or '/'}{mark}{options}", name, keep=1), []
    for round in reversed(store.rounds()):
        try:
            store.load(round)
        except CheckpointError as error:
            notes.append(f"{error}; taking the one before")
        else:
            return store.path(round), tuple(notes)
    if notes:
        raise CheckpointError(notes[0].removesuffix("; taking the one before"))
    raise CheckpointError(
        f"{without_password(path)}: no checkpoint in it, or no such folder; name a run's folder or an .npz"
    )

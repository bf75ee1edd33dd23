"""The checkpoint that a person means: a file, or a run's folder and its newest checkpoint."""

from __future__ import annotations

from pathlib import Path

from raygf.checkpoint import CheckpointStore
from raygf.errors import CheckpointError


def find_checkpoint(path: str) -> tuple[str, tuple[str, ...]]:
    """The file that ``path`` (local or a URI) stands for, and a line for every damaged one passed over.

    A path that ends in .npz is a file; anything else is the folder of a run.

    Raises:
        CheckpointError: the folder holds no checkpoint that can be read.
    """
    if path.endswith(".npz"):
        return path, ()
    whole = path if "://" in path else str(Path(path).expanduser().absolute())
    parent, _, name = whole.rstrip("/").rpartition("/")
    store, notes = CheckpointStore(parent or "/", name, keep=1), []
    for round in reversed(store.rounds()):
        try:
            store.load(round)
        except CheckpointError as error:
            notes.append(f"{error}; taking the one before")
        else:
            return f"{store.folder}/round-{round:06d}.npz", tuple(notes)
    if notes:
        raise CheckpointError(notes[0].removesuffix("; taking the one before"))
    raise CheckpointError(f"{path}: no checkpoint in it, or no such folder")

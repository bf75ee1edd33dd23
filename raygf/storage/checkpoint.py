"""Checkpoints: one NumPy archive a round, written whole or not at all, wherever pyarrow.fs can write.

An archive holds plain arrays and one JSON text. Its zip container carries a checksum of every member, so
damage is noticed when it is read; nothing in it is ever unpickled.
"""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raygf.config.fields import storage_path
from raygf.errors import CheckpointError, StorageError, StorageLost, within, without_password
from raygf.records import JsonText
from raygf.storage.folder import ANSWER_S, OpenFolder, RunFolder, brief, file_system
from raygf.training.network import Arrays, NetworkState

_FORMAT = 1
_DAMAGE = (
    *(ValueError, KeyError, EOFError, TypeError, AttributeError, RuntimeError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
    MemoryError,  # an array that claims to be larger than any memory
)
_NAME = re.compile(r"round-(\d{6})\.npz")


@dataclass(frozen=True)
class Checkpoint:
    """A run after ``round`` rounds: network, the method's arrays, JSON values that describe the run."""

    round: int
    network: NetworkState
    method: Arrays
    meta: dict[str, Any]


class CheckpointStore:
    """The checkpoints of one run, in the folder ``name`` of ``path`` (a local path or a URI)."""

    def __init__(self, path: str, name: str, keep: int, open_folder: OpenFolder = RunFolder) -> None:
        self._files = open_folder(path, name)
        self._keep = keep
        self.name = name
        self.folder = self._files.shown
        self._shown = without_password(self.folder)

    @property
    def files(self) -> RunFolder:
        """The folder that they are in."""
        return self._files

    def check_writable(self) -> None:
        """Create the folder and write a byte in it.

        Raises:
            StorageError: that doesn't work.
        """
        try:
            within(ANSWER_S, self._files.create)
        except (OSError, ValueError) as error:
            raise StorageError(
                f"storage.path: can't write to {self._shown}: {brief(error)}; set another --storage.path"
            ) from None

    def rounds(self) -> list[int]:
        """The rounds that there are checkpoints of, oldest first."""
        try:
            matches = [_NAME.fullmatch(name) for name in self._files.names()]
        except OSError as error:
            raise StorageError(f"storage.path: can't read {self._shown}: {brief(error)}") from None
        return sorted(int(match[1]) for match in matches if match)

    def save(self, checkpoint: Checkpoint) -> str:
        """Write ``checkpoint`` and drop those older than the ``keep`` newest; returns its path.

        A reader never sees a part of it. An old one that can't be deleted now is tried again the next time.

        Raises:
            StorageLost: it could not be written; earlier checkpoints stand.
        """
        name = _name(checkpoint.round)
        try:
            with self._files.replacing(name) as stream:
                write_archive(stream, checkpoint)
        except OSError as error:
            raise StorageLost(
                f"checkpoint of round {checkpoint.round} could not be written to {self._shown}: "
                f"{brief(error)}; earlier checkpoints stand"
            ) from None
        with suppress(OSError, StorageError):
            earlier = [round for round in self.rounds() if round <= checkpoint.round]
            for old in earlier[: -self._keep]:
                self._files.delete(_name(old))
        return self.path(checkpoint.round)

    def newest(self) -> tuple[Checkpoint | None, tuple[str, ...]]:
        """The newest checkpoint that is whole, and a line for every damaged one that was passed over."""
        notes: list[str] = []
        for round in reversed(self.rounds()):
            try:
                return self.load(round), tuple(notes)
            except CheckpointError as error:
                notes.append(f"{error}; trying the one before")
        return None, tuple(notes)

    def load(self, round: int) -> Checkpoint:
        """The checkpoint of ``round``.

        Raises:
            CheckpointError: it is missing, damaged, or not of this format.
        """
        try:
            with self._files.open(_name(round)) as stream:
                return read_archive(stream)
        except CheckpointError as error:
            raise CheckpointError(f"{self.path(round)}: {error}") from None
        except OSError as error:
            raise CheckpointError(f"{self.path(round)}: {brief(error)}") from None

    def path(self, round: int) -> str:
        """Where the checkpoint of ``round`` is."""
        return self._files.path(_name(round))


def load_checkpoint(path: str) -> Checkpoint:
    """The checkpoint in the file ``path`` (local or a URI).

    Raises:
        CheckpointError: it is missing, damaged, or not of this format.
    """
    system, inner = file_system(path, "checkpoint")
    shown = without_password(path)
    try:
        with system.open_input_file(inner) as stream:
            return read_archive(stream)
    except CheckpointError as error:
        raise CheckpointError(f"{shown}: {error}; take another checkpoint") from None
    except FileNotFoundError:
        raise CheckpointError(f"{shown}: there is no such file") from None
    except OSError as error:
        raise CheckpointError(f"{shown}: {brief(error)}") from None


def write_archive(stream: Any, checkpoint: Checkpoint) -> None:
    """Write ``checkpoint`` to a binary file that need not be seekable; the text lists every array."""
    arrays = _arrays(checkpoint)
    listing = {name: [array.dtype.str, list(array.shape)] for name, array in arrays.items()}
    meta = {**checkpoint.meta, "format": _FORMAT, "round": checkpoint.round, "arrays": listing}
    with zipfile.ZipFile(stream, "w") as archive:
        for name, array in {"meta": np.array(_text(meta).encode()), **arrays}.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def read_archive(stream: Any) -> Checkpoint:
    """Read and verify an archive from a seekable binary file.

    Raises:
        CheckpointError: it is damaged or not of this format.
    """
    try:
        with zipfile.ZipFile(stream) as archive:
            members = {
                info.filename.removesuffix(".npy"): _read_array(archive, info) for info in archive.infolist()
            }
        meta = json.loads(members.pop("meta").item())
        return _checkpoint(meta, members)
    except _DAMAGE as error:
        raise CheckpointError(f"not a whole checkpoint ({brief(error)})") from None


def _name(round: int) -> str:
    return f"round-{round:06d}.npz"


def _read_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[Any]:
    """One member, read to its end: only then is its checksum compared."""
    if info.compress_type != zipfile.ZIP_STORED:  # it could be of any size once it is unpacked
        raise ValueError(f"{info.filename} is compressed")
    array: NDArray[Any] = np.lib.format.read_array(io.BytesIO(archive.read(info)), allow_pickle=False)
    return array


def _text(meta: dict[str, Any]) -> str:
    """``meta`` as JSON; values that are JSON already go in as they are."""
    encoded = {
        name: value if isinstance(value, JsonText) else json.dumps(value) for name, value in meta.items()
    }
    return f"{{{', '.join(f'{json.dumps(name)}: {text}' for name, text in encoded.items())}}}"


def _arrays(checkpoint: Checkpoint) -> Arrays:
    buffers = {f"buffer/{name}": np.asarray(array) for name, array in checkpoint.network.buffers.items()}
    method = {f"method/{name}": np.asarray(array) for name, array in checkpoint.method.items()}
    return {"vector": checkpoint.network.vector, **buffers, **method}


def _checkpoint(meta: dict[str, Any], members: Arrays) -> Checkpoint:
    if meta["format"] != _FORMAT:
        raise CheckpointError(
            f"has format {meta['format']!r:.20}, this version reads format {_FORMAT}: it is another raygf's"
        )
    if meta["arrays"] != {name: [array.dtype.str, list(array.shape)] for name, array in members.items()}:
        raise CheckpointError("not a whole checkpoint (its arrays are not those that it lists)")
    if type(meta["round"]) is not int or meta["round"] < 0:
        raise CheckpointError(f"not a whole checkpoint (it is of round {meta['round']!r:.20})")
    buffers = {n.removeprefix("buffer/"): a for n, a in members.items() if n.startswith("buffer/")}
    method = {n.removeprefix("method/"): a for n, a in members.items() if n.startswith("method/")}
    return Checkpoint(meta["round"], NetworkState(members["vector"], buffers), method, meta)


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

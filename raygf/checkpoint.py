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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyarrow import fs

from raygf.errors import CheckpointError, StorageError
from raygf.state import Arrays, NetworkState

_FORMAT = 1
_DAMAGE = (
    *(ValueError, KeyError, EOFError, TypeError, AttributeError, RuntimeError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
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

    def __init__(self, path: str, name: str, keep: int) -> None:
        self._fs, root = _file_system(path)
        self._folder = f"{root.rstrip('/')}/{name}"
        self._keep = keep
        self.name = name
        self.folder = f"{path.rstrip('/')}/{name}" if "://" in path else self._folder

    def check_writable(self) -> None:
        """Create the folder and write a byte in it.

        Raises:
            StorageError: that doesn't work.
        """
        probe = f"{self._folder}/.probe"
        try:
            self._fs.create_dir(self._folder, recursive=True)
            with self._fs.open_output_stream(probe) as stream:
                stream.write(b"1")
            self._fs.delete_file(probe)
        except OSError as error:
            raise StorageError(f"storage.path: can't write to {self.folder}: {_brief(error)}") from None

    def rounds(self) -> list[int]:
        """The rounds that there are checkpoints of, oldest first."""
        selector = fs.FileSelector(self._folder, allow_not_found=True)
        try:
            matches = [_NAME.fullmatch(info.base_name) for info in self._fs.get_file_info(selector)]
        except OSError as error:
            raise StorageError(f"storage.path: can't read {self.folder}: {_brief(error)}") from None
        return sorted(int(match[1]) for match in matches if match)

    def save(self, checkpoint: Checkpoint) -> str:
        """Write ``checkpoint`` and drop those older than the ``keep`` newest; returns its path.

        The archive is written under another name and then moved, so a reader never sees a part of one.

        Raises:
            StorageError: it could not be written; earlier checkpoints stand.
        """
        path = self._path(checkpoint.round)
        try:
            with self._fs.open_output_stream(f"{path}.part") as stream:
                write_archive(stream, checkpoint)
            self._fs.move(f"{path}.part", path)
            earlier = [round for round in self.rounds() if round <= checkpoint.round]
            for old in earlier[: -self._keep]:
                self._fs.delete_file(self._path(old))
        except OSError as error:
            raise StorageError(
                f"checkpoint of round {checkpoint.round} could not be written to {self.folder}: "
                f"{_brief(error)}; earlier checkpoints stand"
            ) from None
        return self._shown(checkpoint.round)

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
            with self._fs.open_input_file(self._path(round)) as stream:
                return read_archive(stream)
        except CheckpointError as error:
            raise CheckpointError(f"{self._shown(round)}: {error}") from None
        except OSError as error:
            raise CheckpointError(f"{self._shown(round)}: {_brief(error)}") from None

    def _path(self, round: int) -> str:
        return f"{self._folder}/round-{round:06d}.npz"

    def _shown(self, round: int) -> str:
        return f"{self.folder}/round-{round:06d}.npz"


def load_checkpoint(path: str) -> Checkpoint:
    """The checkpoint in the file ``path`` (local or a URI).

    Raises:
        CheckpointError: it is missing, damaged, or not of this format.
    """
    system, inner = _file_system(path)
    try:
        with system.open_input_file(inner) as stream:
            return read_archive(stream)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: {_brief(error)}") from None


def write_archive(stream: Any, checkpoint: Checkpoint) -> None:
    """Write ``checkpoint`` to a binary file that need not be seekable; the text lists every array."""
    arrays = _arrays(checkpoint)
    listing = {name: [array.dtype.str, list(array.shape)] for name, array in arrays.items()}
    meta = {**checkpoint.meta, "format": _FORMAT, "round": checkpoint.round, "arrays": listing}
    with zipfile.ZipFile(stream, "w") as archive:
        for name, array in {"meta": np.array(json.dumps(meta).encode()), **arrays}.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def read_archive(stream: Any) -> Checkpoint:
    """Read and verify an archive from a seekable binary file.

    Raises:
        CheckpointError: it is damaged or not of this format.
    """
    try:
        with zipfile.ZipFile(stream) as archive:
            members = {name.removesuffix(".npy"): _read_array(archive, name) for name in archive.namelist()}
        meta = json.loads(members.pop("meta").item())
        return _checkpoint(meta, members)
    except _DAMAGE as error:
        raise CheckpointError(f"not a whole checkpoint ({_brief(error)})") from None


def _read_array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """One member, read to its end: only then is its checksum compared."""
    array: NDArray[Any] = np.lib.format.read_array(io.BytesIO(archive.read(name)), allow_pickle=False)
    return array


def _arrays(checkpoint: Checkpoint) -> Arrays:
    buffers = {f"buffer/{name}": np.asarray(array) for name, array in checkpoint.network.buffers.items()}
    method = {f"method/{name}": np.asarray(array) for name, array in checkpoint.method.items()}
    return {"vector": checkpoint.network.vector, **buffers, **method}


def _checkpoint(meta: dict[str, Any], members: Arrays) -> Checkpoint:
    if meta["format"] != _FORMAT:
        raise CheckpointError(f"has format {meta['format']}, this version reads format {_FORMAT}")
    if meta["arrays"] != {name: [array.dtype.str, list(array.shape)] for name, array in members.items()}:
        raise CheckpointError("not a whole checkpoint (its arrays are not those that it lists)")
    buffers = {n.removeprefix("buffer/"): a for n, a in members.items() if n.startswith("buffer/")}
    method = {n.removeprefix("method/"): a for n, a in members.items() if n.startswith("method/")}
    return Checkpoint(int(meta["round"]), NetworkState(members["vector"], buffers), method, meta)


def _file_system(path: str) -> tuple[fs.FileSystem, str]:
    try:
        if "://" in path:
            return fs.FileSystem.from_uri(path)  # type: ignore[no-any-return]
    except (OSError, ValueError) as error:
        raise StorageError(f"storage.path = {path!r}: {_brief(error)}") from None
    return fs.LocalFileSystem(), str(Path(path).expanduser().absolute())


def _brief(error: BaseException) -> str:
    return str(error).split("\n")[0].split(". Detail:")[0] or type(error).__name__

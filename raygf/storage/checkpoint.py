"""Checkpoints: one NumPy archive a round, written whole or not at all, wherever pyarrow.fs can write.

An archive holds plain arrays and one JSON text. Its zip container carries a checksum of every member, so
damage is noticed when it is read; nothing in it is ever unpickled.
"""

import io
import json
import re
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from raygf.config.fields import storage_path
from raygf.errors import CheckpointError, StorageError, StorageLost, one_line, within, without_password
from raygf.records import JsonText
from raygf.storage.folder import ANSWER_S, OpenFolder, RunFolder, above, brief, file_system
from raygf.training.network import Arrays, NetworkState, averaged

WEIGHTS, MODEL = "model.safetensors", "model.json"
"""A trained network in two files that need no raygf to be read; see ``raygf.evaluation.loading``."""
_FORMAT = 1
_NAME = re.compile(r"round-(\d{6})\.npz")


@dataclass(frozen=True)
class Checkpoint:
    """A run after ``round`` rounds: network, the method's arrays, and JSON values that describe the run."""

    round: int
    network: NetworkState
    method: Arrays
    meta: dict[str, Any]

    @property
    def evaluated(self) -> NetworkState:
        """The network to evaluate and to hand on: the average where ``optim.ema`` keeps one."""
        return averaged(self.method, self.network)


class CheckpointStore:
    """The checkpoints of one run, in the folder ``name`` of ``path`` (a local path or a URI)."""

    def __init__(self, path: str, name: str, keep: int, open_folder: OpenFolder = RunFolder) -> None:
        self.files = open_folder(path, name)
        self._keep = keep
        self.folder = self.files.shown
        self._shown = without_password(self.folder)

    def check_writable(self) -> None:
        """Create the folder and write a byte in it, or raise StorageError."""
        try:
            within(ANSWER_S, self.files.create)
        except (OSError, ValueError) as error:
            raise StorageError(
                f"storage.path: can't write to {self._shown}: {brief(error)}; set another --storage.path"
            ) from None

    def rounds(self) -> list[int]:
        """The rounds of its checkpoints, oldest first."""
        try:
            matches = [_NAME.fullmatch(name) for name in self.files.names()]
        except OSError as error:
            raise StorageError(f"storage.path: can't read {self._shown}: {brief(error)}") from None
        return sorted(int(match[1]) for match in matches if match)

    def save(self, checkpoint: Checkpoint) -> str:
        """Write ``checkpoint`` and drop those older than the ``keep`` newest; returns its path.

        A reader never sees a part of it. An old one that can't be deleted now is tried again the next time.

        Raises StorageLost: it could not be written; earlier checkpoints stand.
        """
        name = _name(checkpoint.round)
        try:
            with self.files.replacing(name) as stream:
                write_archive(stream, checkpoint)
        except OSError as error:
            raise StorageLost(
                f"checkpoint of round {checkpoint.round} could not be written to {self._shown}: "
                f"{brief(error)}; earlier checkpoints stand"
            ) from None
        with suppress(OSError, StorageError):
            earlier = [round for round in self.rounds() if round <= checkpoint.round]
            for old in earlier[: -self._keep]:
                self.files.delete(_name(old))
        return self.path(checkpoint.round)

    def newest(self) -> tuple[Checkpoint | None, tuple[str, ...]]:
        """The newest checkpoint that is whole (None if there are none), and a note on each one passed over.

        Raises CheckpointError: there are checkpoints, and all of them are damaged.
        """
        notes: list[str] = []
        for round in reversed(self.rounds()):
            try:
                return self.load(round), tuple(f"{note}; trying the one before" for note in notes)
            except CheckpointError as error:
                notes.append(str(error))
        if notes:
            raise CheckpointError(f"no checkpoint in {self._shown} can be read: {notes[0]}")
        return None, ()

    def load(self, round: int) -> Checkpoint:
        """The checkpoint of ``round``; CheckpointError if it is missing, damaged, or not of this format."""
        return _load(lambda: self.files.open(_name(round)), self.path(round))

    def path(self, round: int) -> str:
        """The file of the checkpoint of ``round``."""
        return self.files.path(_name(round))


def load_checkpoint(path: str) -> Checkpoint:
    """The checkpoint in the file ``path`` (local or a URI), or in ``model.safetensors`` and ``model.json``.

    Raises CheckpointError: it is missing, damaged, or not of this format.
    """
    folder, name = above("checkpoint", path)
    if name == WEIGHTS:
        return _load_model(RunFolder(*above("checkpoint", folder)))
    system, inner = file_system(path, "checkpoint")
    return _load(lambda: system.open_input_file(inner), without_password(path))


def find_checkpoint(path: str) -> tuple[str, tuple[str, ...]]:
    """The checkpoint file that ``path`` (local or a URI) means, and a note on each damaged one passed over.

    A path that ends in .npz is a file; anything else is the folder of a run, or one that was exported.

    Raises CheckpointError: the folder holds no checkpoint that can be read.
    """
    if path.partition("?")[0].endswith((".npz", f"/{WEIGHTS}")):
        return path, ()
    if "://" not in path and Path(storage_path("checkpoint", path)).is_file():
        raise CheckpointError(
            f"{path}: a file, but no checkpoint: those end in .npz; name one, or a run's folder"
        )
    store = CheckpointStore(*above("checkpoint", path), keep=1)
    checkpoint, notes = store.newest()
    if checkpoint is None and MODEL in store.files.names():
        return store.files.path(WEIGHTS), ()
    if checkpoint is None:
        what = "no checkpoint in it, or no such folder; name a run's folder or an .npz"
        raise CheckpointError(f"{without_password(path)}: {what}")
    return store.path(store.rounds()[-1 - len(notes)]), notes  # there is a note on every later one


def _load_model(files: RunFolder) -> Checkpoint:
    name = MODEL
    try:
        meta = json.loads(files.read(MODEL))
        if meta["format"] != _FORMAT:
            raise CheckpointError(f"has format {meta['format']!r:.20}, this version reads format {_FORMAT}")
        name = WEIGHTS
        arrays = load(files.read(WEIGHTS))
        vector = np.concatenate([arrays.pop(tensor).ravel() for tensor in meta["tensors"]])
        return Checkpoint(int(meta["rounds"]), NetworkState(vector, arrays), {}, meta)
    except Exception as error:  # damage raises many kinds
        ours = isinstance(error, CheckpointError | OSError)
        why = brief(error) if ours else f"not a whole model of raygf ({one_line(error)})"
        raise CheckpointError(f"{without_password(files.path(name))}: {why}") from None


def _load(open_file: Callable[[], Any], shown: str) -> Checkpoint:
    try:
        with open_file() as stream:
            return read_archive(stream)
    except CheckpointError as error:
        raise CheckpointError(f"{shown}: {error}") from None
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
    """Read an archive from a seekable binary file; CheckpointError if it is damaged or of another format."""
    try:
        with zipfile.ZipFile(stream) as archive:
            members = {
                info.filename.removesuffix(".npy"): _read_array(archive, info) for info in archive.infolist()
            }
        meta = json.loads(members.pop("meta").item())
        return _checkpoint(meta, members)
    except (OSError, CheckpointError):
        raise
    except Exception as error:  # damage raises many kinds
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
    buffers = {n.removeprefix("buffer/"): a for n, a in members.items() if n.startswith("buffer/")}
    method = {n.removeprefix("method/"): a for n, a in members.items() if n.startswith("method/")}
    if meta["round"] < 0:
        raise CheckpointError(f"not a whole checkpoint (it is of round {meta['round']})")
    return Checkpoint(meta["round"], NetworkState(members["vector"], buffers), method, meta)

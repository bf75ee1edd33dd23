"""The folder of one run, wherever pyarrow.fs can write: local, NFS, S3, GCS."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pyarrow import fs

from raygf.config.fields import local_path, storage_path
from raygf.errors import StorageError, one_line, within, without_password

_PROBE = ".probe"
ANSWER_S = 60.0
"""Seconds that a storage may take to answer at first; left to itself, Google's tries for many minutes."""


def file_system(path: str, field: str = "storage.path") -> tuple[fs.FileSystem, str]:
    """The file system that ``path`` (local or a URI), the value of ``field``, is on, and its name there.

    Raises UserError: there is no such file system, it does not answer, or the path names nothing in it.
    """
    if "://" not in path:
        return fs.LocalFileSystem(), str(local_path(field, path))
    shown = without_password(path)
    try:
        system, root = within(ANSWER_S, lambda: fs.FileSystem.from_uri(path))
    except (OSError, ValueError) as error:
        raise StorageError(f"{field} = {shown!r}: {brief(error)}") from None
    if not root.strip("/") and not isinstance(system, fs.LocalFileSystem):
        raise StorageError(f"{field} = {shown!r}: names no bucket")
    return system, root


def above(field: str, path: str) -> tuple[str, str]:
    """The folder above ``path`` (local or a URI), the value of ``field``, and the name in it."""
    place, mark, options = path.partition("?") if "://" in path else (path, "", "")
    parent, _, name = storage_path(field, place).rstrip("/").rpartition("/")
    return f"{parent or '/'}{mark}{options}", name


def inside(uri: str, name: str) -> str:
    """The URI of ``name`` in the folder ``uri``, whose options stay at the end."""
    place, mark, options = uri.partition("?")
    return f"{place.rstrip('/')}/{name}{mark}{options}"


def brief(error: BaseException) -> str:
    """A file system's error in one line, with its system's own reason but without Arrow's other details."""
    shown = one_line(error, kind=False).split(". Detail:")[0]
    number = error.errno if isinstance(error, OSError) else None
    why = os.strerror(number) if number else ""  # which Arrow has among the details
    return shown if why.lower() in shown.lower() else f"{shown}: {why}"


class RunFolder:
    """The folder ``name`` in ``path`` (a local path or a URI); ``shown`` is what people call it.

    Files are named inside it. What the file system says goes wrong is raised as OSError.
    """

    def __init__(self, path: str, name: str) -> None:
        """
        Raises:
            UserError: there is no such file system, or it does not answer.
        """
        self._fs, root = file_system(path)
        self._folder = f"{root.rstrip('/')}/{name}"
        self.local = isinstance(self._fs, fs.LocalFileSystem)
        self.shown = inside(path, name) if "://" in path else self._folder

    def create(self) -> None:
        """Create the folder and write a byte in it."""
        self._fs.create_dir(self._folder, recursive=True)
        self.write(_PROBE, b"1")
        self.delete(_PROBE)

    def names(self) -> list[str]:
        """Names of what is in it; none if it does not exist."""
        selector = fs.FileSelector(self._folder, allow_not_found=True)
        return [info.base_name for info in self._fs.get_file_info(selector)]

    def read(self, name: str) -> bytes:
        """The file's content."""
        with self.open(name) as stream:
            return bytes(stream.read())

    def open(self, name: str) -> Any:
        """The file as a seekable binary stream."""
        return self._fs.open_input_file(self._path(name))

    def write(self, name: str, content: bytes) -> None:
        """The file with this content, replaced whole; not forced to the disk."""
        if self.local:
            with self.replacing(name, force=False) as stream:
                stream.write(content)
            return
        with self._output(name) as stream:  # elsewhere a file appears when it is whole
            stream.write(content)

    def append(self, name: str, content: bytes) -> None:
        """Add ``content`` to the end of the file, which may not be there yet, or leave it as it was."""
        if not self.local:  # object stores have nothing but whole files
            self.write(name, (self.read(name) if name in self.names() else b"") + content)
            return
        with Path(self._path(name)).open("ab", buffering=0) as stream:
            end = stream.tell()
            if (written := stream.write(content)) != len(content):
                stream.truncate(end)
                raise OSError(errno.ENOSPC, f"{written} of {len(content)} bytes written")

    def create_only(self, name: str, content: bytes) -> bool:
        """Write the file unless it is there; returns whether it was written.

        This is atomic on local file systems (NFS included) only.
        """
        if self.local:
            try:
                with Path(self._path(name)).open("xb") as stream:
                    stream.write(content)
            except FileExistsError:
                return False
            return True
        if name in self.names():
            return False
        self.write(name, content)
        return True

    @contextmanager
    def replacing(self, name: str, *, force: bool = True) -> Iterator[Any]:
        """A binary stream; what is written to it becomes the file ``name`` at the end, whole or not at all.

        It is written under another name and then moved. With ``force`` and on a local file system it is
        forced to the disk before, so that a machine that goes dark leaves the old file or the new one. What a
        failure leaves is deleted: on a full disk others need the room.
        """
        part = f"{name}.part"
        try:
            with self._output(part) as stream:
                yield stream
            if force and self.local:
                with Path(self._path(part)).open("rb") as written:
                    os.fsync(written.fileno())
            self._fs.move(self._path(part), self._path(name))
        except BaseException:
            with suppress(OSError):
                self.delete(part)
            raise

    def delete(self, name: str) -> None:
        """Delete the file."""
        self._fs.delete_file(self._path(name))

    def delete_if_empty(self) -> None:
        """Delete the folder itself, if it is a local one with nothing in it."""
        if self.local:
            with suppress(OSError):
                Path(self._folder).rmdir()

    def silence_s(self, name: str) -> float:
        """Seconds since the file was written, by the storage's own clock; 0 if it keeps no times."""
        self.write(_PROBE, b"1")
        old, new = self._fs.get_file_info([self._path(name), self._path(_PROBE)])
        self.delete(_PROBE)
        return max(0.0, ((new.mtime_ns or 0) - (old.mtime_ns or new.mtime_ns or 0)) / 1e9)

    def path(self, name: str) -> str:
        """The file's path or URI, for people and for ``load_checkpoint``."""
        return inside(self.shown, name) if "://" in self.shown else f"{self.shown}/{name}"

    def _output(self, name: str) -> Any:
        if self.local:  # if it is a link, what it points to is not ours
            Path(self._path(name)).unlink(missing_ok=True)
        return self._fs.open_output_stream(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}"


OpenFolder = Callable[[str, str], RunFolder]
"""Makes a run's folder from ``storage.path`` and ``storage.name``."""
